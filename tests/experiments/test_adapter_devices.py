"""An adapter trains to the same result on one device and on four with sharded parameters, also with dropout."""

import jax
import numpy as np
import pytest

from configs import digits_dit
from diffusion_jax import models, systems
from experiments.building.kinds import open_experiment
from experiments.building.wiring import Experiment

STEPS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory, data_dir):
    """The config of a LoRA training on a saved small class-conditional model."""
    config = digits_dit.get_config()
    config.data.data_dir = str(data_dir)
    config.model.update(hidden_size=16, depth=2, num_heads=2)
    model = Experiment(config).model
    params = model.init_params(jax.random.key(0), models.init_params)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * draw.standard_normal(leaf.shape).astype(leaf.dtype), params)
    folder = tmp_path_factory.mktemp("base") / "model"
    systems.save_model(folder, model, params)
    with config.unlocked():
        del config.model, config.process
        config.init.folder = str(folder)
        config.adapter = {"name": "lora", "rank": 4, "targets": ("network/blocks/.*/kernel",), "dropout": 0.1}
    config.train.update(batch_size=16)
    return config


def trained(config, devices, accumulation=1, **parallel):
    """The metrics of a few steps, and the adapter after them."""
    config = config.copy_and_resolve_references()
    config.parallel.update(**parallel)
    config.train.accumulation = accumulation
    experiment = open_experiment(config, devices=tuple(jax.devices()[:devices]))
    experiment.check()
    layout = experiment.layout
    frozen, _ = experiment.read_frozen()
    split = [leaf for leaf in jax.tree.leaves(frozen) if leaf.addressable_shards[0].data.size < leaf.size]
    state = experiment.first_state().replace(frozen=frozen)
    step = layout.compile(experiment.train_step(), experiment.abstract_state)
    batches, rows = experiment.pipeline.batches(), []
    for _ in range(STEPS):
        state, metrics = step(state, layout.place_batch(next(batches)))
        rows.append(layout.fetch(metrics))
    return rows, jax.device_get(state.params["adapters/lora"]), len(split)


@pytest.fixture(scope="module")
def alone(base):
    return trained(base, 1)


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_device_and_four(base, alone, accumulation):
    rows, own, split = trained(base, 4, accumulation, data=1, fsdp=4)
    assert (alone[2], split > 0) == (0, True), "the frozen model is shared out"
    for found, wanted in zip(rows, alone[0], strict=True):
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6), own, alone[1])


def test_it_moves_and_dropout_counts(base, alone):
    config = base.copy_and_resolve_references()
    config.adapter.dropout = 0.0
    rows, _, _ = trained(config, 1)
    assert all(np.abs(np.asarray(leaves["up"])).max() > 0 for leaves in alone[1].values())
    assert rows[-1]["loss"] != alone[0][-1]["loss"]
