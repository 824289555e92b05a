"""Constraints on parameters hold after every update: frozen constants, and EDM2's weight norms."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from diffusion_jax import models, training
from diffusion_jax.objectives import OBJECTIVES


def test_update_keeps_the_norm_of_edm2s_weights(make_trainable, make_step, batch):
    small = {"base_channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "head_channels": 4}
    trainable = make_trainable("edm2", **small)
    step, init = make_step(trainable, learning_rate=0.5, optimizer="adam")
    before = init()
    after, _ = jax.jit(step)(before, batch(0))
    moved = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.params):
        old = before.params
        for entry in path:
            old = old[entry.key]
        if path[-1].key == "kernel":
            norms = np.sqrt((np.asarray(leaf) ** 2).sum(tuple(range(leaf.ndim - 1))))
            np.testing.assert_allclose(norms, np.sqrt(leaf.size / leaf.shape[-1]), rtol=2e-3)
            moved += not np.array_equal(leaf, old)
    assert moved  # at least the output kernel; no other has a gradient while the gain is zero


def test_update_keeps_the_norm_of_the_weights_of_edm2s_uncertainty(make_trainable, make_step, batch):
    objective = {"name": "denoising", "schedule": "edm", "prediction": "edm", "time_sampler": "log_normal"}
    small = {"base_channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "head_channels": 4}
    learned = OBJECTIVES.build({**objective, "uncertainty": True})
    trainable = dataclasses.replace(make_trainable("edm2", **small), objective=learned)
    step, init = make_step(trainable, learning_rate=0.5, optimizer="adam")
    before = init()
    after, _ = jax.jit(step)(before, batch(0))
    weights = [np.asarray(state.params["objective"]["weight"]) for state in (before, after)]
    np.testing.assert_allclose(np.linalg.norm(weights[1]), np.sqrt(128), rtol=2e-3)
    assert np.abs(weights[1] - weights[0]).max() > 0.1


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_frozen_constants_stay(optimizer):
    spec = {"name": optimizer, **({"weight_decay": 0.1} if optimizer == "adamw" else {})}
    transformation = training.make_optimizer(spec, learning_rate=lambda step: 0.1, is_frozen=models.is_frozen)
    params = {"time": {"frozen_frequencies": np.ones(3, np.float32), "kernel": np.ones(3, np.float32)}}
    updates, _ = transformation.update(params, transformation.init(params), params)
    found = optax.apply_updates(params, updates)["time"]
    np.testing.assert_array_equal(found["frozen_frequencies"], 1.0)
    assert (np.asarray(found["kernel"]) < 1).all()
