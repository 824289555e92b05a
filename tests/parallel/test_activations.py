"""Sharded parameters are gathered layer by layer; the examples of a batch stay where they are."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits_dit, digits_unet
from diffusion_jax import data
from diffusion_jax.parallel.hlo import Program
from experiments.wiring import Experiment

DIGITS = data.DatasetInfo(name="digits", split="train", num_examples=1437, image_shape=(8, 8, 1), num_classes=10)


def compiled(config: ConfigDict, *, data_axis: int, fsdp: int) -> tuple[Program, int]:
    """The train step over 8 devices as the CPU's compiler makes it, and the bytes of the network's parameters."""
    config.parallel.update(data=data_axis, fsdp=fsdp)
    experiment = Experiment(config, stored_info=DIGITS)
    state = experiment.abstract_state
    step = experiment.layout.compile(experiment.train_step(), state)
    lowered = step.lower(state, experiment.abstract_batch(config.train.batch_size))
    size = sum(np.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(state.params))
    return Program(lowered.compile().as_text(), 8), int(size)


def dit():
    config = digits_dit.get_config()
    config.train.batch_size = 2048
    return config


def unet():
    config = digits_unet.get_config()
    config.model.base_channels = 16
    config.train.batch_size = 1024
    return config


@pytest.mark.parametrize("config", [dit, unet], ids=lambda make: make.__name__)
def test_fsdp_gathers_parameters_and_no_activations(config):
    """Forward and backward, and once more where they are computed again; activations would be many times as much."""
    program, size = compiled(config(), data_axis=1, fsdp=8)
    found = program.collectives
    assert found["all-gather"].result_bytes <= 3.05 * size, found
    assert "collective-permute" not in found
    assert program.sent_bytes <= 5.3 * size, "and at most one all-reduce of the gradients"
    assert program.unknown_loops == 0


def test_data_parallel_sends_one_gradient():
    program, size = compiled(dit(), data_axis=8, fsdp=1)
    assert list(program.collectives) == ["all-reduce"]
    least = functools.partial(np.testing.assert_allclose, desired=2 * size * 7 / 8, rtol=0.05)
    least(program.sent_bytes)
