"""Several trainings in one program equal the separate trainings."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.digits_unet import get_config
from diffusion_jax.errors import UserError
from experiments.building.restoring import restore_params
from experiments.ground import workdir
from experiments.running.population import Population, populations, program
from experiments.sweeps.ablation import Ablation
from tests.processes import ROOT

COMMAND = "experiments.running.train_population"
STEPS = 40


def small(data_dir, *, seed=0, gamma=5.0, conditioning_dropout=0.1, model=None, **optimizer):
    config = get_config()
    config.data.data_dir = str(data_dir)
    if model is None:
        config.model.update(base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    else:
        config.model = model
    config.train.update(steps=STEPS, batch_size=32)
    config.log.update(every=10, validate_every=20, validation_examples=64, sample_every=0, num_samples=10)
    config.checkpoint.update(every=20, keep_best=0)
    config.sampling.update(steps=3)
    config.sampling.sampler = {"name": "euler"}
    config.evaluation.metrics = ()
    config.seed, config.optimizer.name, config.optimizer.weight_decay = seed, "adamw", 0.01
    config.optimizer.update(optimizer)
    config.objective = ConfigDict({"name": "denoising", "weighting": {"name": "min_snr", "gamma": gamma}})
    config.train.conditioning_dropout = conditioning_dropout
    return config


DIT = {"name": "dit", "patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
OTHER = {"learning_rate": 1e-3, "b1": 0.8, "b2": 0.98, "weight_decay": 0.1}
MEMBERS = ({"seed": 0}, {"seed": 3, "gamma": 1.0, "conditioning_dropout": 0.0, **OTHER})


def member_flags(tmp_path, configs, name):
    words = []
    for i, config in enumerate(configs):
        file = tmp_path / f"{i}.json"
        file.write_text(json.dumps(workdir.to_json(config)))
        words.append(f"--member={file}={tmp_path}/{name}_{i}")
    return words


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("model", "how", "devices"),
    [pytest.param(None, "unroll", 1, marks=pytest.mark.slow), (DIT, "vmap", 2)],
    ids=["unet-unroll", "dit-vmap-2-devices"],
)
def test_members_are_as_trained_alone(command, tmp_path, data_dir, model, how, devices):
    configs = [small(data_dir, model=model, **member) for member in MEMBERS]
    words = member_flags(tmp_path, configs, "together")
    command.run(COMMAND, *words, f"--how={how}", JAX_NUM_CPU_DEVICES=str(devices))
    for i in range(2):
        alone, together = tmp_path / f"alone_{i}", tmp_path / f"together_{i}"
        command.run("train", f"--config=configs/from_json.py:{tmp_path}/{i}.json", f"--workdir={alone}")
        expected, found = rows(alone), rows(together)
        assert [row.keys() for row in expected] == [row.keys() for row in found]
        for theirs, ours in zip(expected, found, strict=True):
            for name, value in theirs.items():
                assert ours[name] == pytest.approx(value, rel=2e-3), (ours["step"], name)
        _, theirs, _ = restore_params(alone)
        _, ours, source = restore_params(together)
        assert source["step"] == STEPS
        for path, value in jax.tree_util.tree_leaves_with_path(theirs):
            other = dict(jax.tree_util.tree_leaves_with_path(ours))[path]
            np.testing.assert_allclose(other, value, rtol=0, atol=2e-3 * np.abs(value).max() + 1e-5)
    assert rows(tmp_path / "together_0") != rows(tmp_path / "together_1")
    # The same command has nothing to do. After the loss of a newest checkpoint, all resume from the last common one.
    out, _ = command.run(COMMAND, *words, f"--how={how}")
    assert "all 2 members are finished" in out
    before = rows(tmp_path / "together_1")
    newest = tmp_path / "together_0" / "checkpoints" / str(STEPS)
    newest.rename(tmp_path / "lost")
    out, _ = command.run(COMMAND, *words, f"--how={how}", JAX_NUM_CPU_DEVICES=str(devices))
    assert "resuming 2 members at step 20" in out
    assert rows(tmp_path / "together_1") == before
    # A member can be continued alone: it is finished, and gets its pictures.
    command.run("train", f"--config=configs/from_json.py:{tmp_path}/0.json", f"--workdir={tmp_path}/together_0")
    assert (tmp_path / "together_0" / "report.html").exists()


def test_members_differ_in_numbers_alone(data_dir, tmp_path):
    first, other = small(data_dir), small(data_dir, seed=1, learning_rate=1e-3, gamma=2.0)
    assert program(first) == program(other)
    other.train.batch_size = 64
    with pytest.raises(UserError, match=r"differ in the seed and in floats of .*objective\.weighting alone"):
        Population([first, other], [tmp_path / "a", tmp_path / "b"])


def test_an_ablation_trains_in_populations():
    ablation = Ablation.read(ROOT / "configs" / "ablations" / "edm_design_space.py")
    trainings = {name: cells[0].training_config for name, cells in ablation.trainings().items()}
    groups = populations(trainings, 4)
    assert populations(trainings, 1) == [[name] for name in trainings]
    assert sorted(name for group in groups for name in group) == sorted(trainings)
    assert max(map(len, groups)) == 4
    for group in groups:
        assert len({program(trainings[name]) for name in group}) == 1
    # Configuration B also differs from A in clipping, so each configuration is one program: 5 seeds give 4 and 1.
    assert sorted(map(len, groups)) == [1] * 6 + [4] * 6


def test_trainings_that_start_from_a_model_are_alone(tmp_path):
    ablation = Ablation.read(ROOT / "configs" / "ablations" / "lora_rank.py")
    trainings = {name: cells[0].training_config for name, cells in ablation.trainings().items()}
    assert populations(trainings, 4) == [[name] for name in trainings]
    pair = [cell.training_config for cell in ablation.cells if cell.values == ablation.baseline][:2]
    assert [config.seed for config in pair] == [0, 1]
    with pytest.raises(UserError, match=r"starts from a model \(init\.folder\) cannot be a member of a population"):
        Population(pair, [tmp_path / "a", tmp_path / "b"])
