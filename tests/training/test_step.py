"""A train step also guards against NaN, drops conditioning, and keeps the state in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.training import TrainState


def test_first_nonfinite_step_is_remembered(make_trainable, make_step, batch):
    step, init = make_step(make_trainable())
    compiled = jax.jit(step)
    state, _ = compiled(init(), batch(0))
    assert int(state.nonfinite_step) == -1
    bad = batch(1)
    bad["data"][3, 0, 0, 0] = np.nan
    state, _ = compiled(state, bad)
    state, _ = compiled(state, batch(2))
    assert int(state.nonfinite_step) == 2, "the second step is the first bad one"


def test_steps_are_a_function_of_seed_and_step_number(make_trainable, make_step, batch):
    trainable = make_trainable(dropout=0.3)
    step, init = make_step(trainable)
    compiled = jax.jit(step)
    once, twice = (compiled(init(), batch(0))[1] for _ in range(2))
    assert float(once["loss"]) == float(twice["loss"])
    later = compiled(init().replace(step=jnp.int32(7)), batch(0))[1]
    assert float(later["loss"]) != float(once["loss"]), "another step draws other noise"
    other_step, _ = make_step(trainable, seed=1)
    assert float(jax.jit(other_step)(init(), batch(0))[1]["loss"]) != float(once["loss"])


def test_conditioning_is_dropped_at_the_asked_rate(make_trainable, batch):
    """About 20% of the labels that reach the network are the null class; the others are unchanged."""
    trainable = make_trainable()
    seen = []

    class Spy:
        takes, sows = trainable.model.network.takes, {}

        @staticmethod
        def apply(variables, x, time, conditions, dropout_keys=None):
            seen.append(conditions["label"])
            return jnp.zeros_like(x)

    trainable = dataclasses.replace(trainable, model=dataclasses.replace(trainable.model, network=Spy))
    labels = np.arange(3000, dtype=np.int32) % 3
    rows = {"data": np.zeros((3000, 4, 4, 1), np.float32), "label": labels}
    state = TrainState(step=0, params={}, opt_state=(), ema={}, nonfinite_step=-1)
    trainable.loss({"network": {}}, state, rows, BatchKey.create(stream_key(0, "train"), 3000))
    dropped = np.asarray(seen[0]) == 3
    assert 0.17 < dropped.mean() < 0.23
    np.testing.assert_array_equal(np.asarray(seen[0])[~dropped], labels[~dropped])
    trainable.validation_loss({"network": {}}, state, rows, BatchKey.create(stream_key(0, "train"), 3000))
    np.testing.assert_array_equal(seen[1], labels)


def test_bfloat16_compute_keeps_float32_state(make_trainable, make_step, batch):
    step, init = make_step(make_trainable(dtype=jnp.bfloat16), optimizer="adam")
    state, metrics = jax.jit(step)(init(), batch())
    floating = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floating} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32
    assert np.isfinite(metrics["loss"])
