"""Promise 2: the update is the same on one device, under pmap, under sharded jit, and with microbatches."""

import jax
import numpy as np
import pytest

from diffusion_jax import parallel
from diffusion_jax.errors import UserError

STEPS = 3


def run(layout, step, init, batch):
    """Take three steps; returns the canonical state and the losses."""
    state = layout.init(init)
    compiled = layout.compile(step, jax.eval_shape(init))
    losses = []
    for number in range(STEPS):
        state, metrics = compiled(state, layout.place_batch(batch(number)))
        losses.append(layout.fetch(metrics)["loss"])
    return jax.device_get(layout.to_canonical(state)), losses


@pytest.fixture
def reference(make_trainable, make_step, batch):
    """The same steps on one device without a layout. SGD reveals gradients of a wrong scale."""

    def make(network, optimizer="sgd"):
        trainable = make_trainable(network, **({"dropout": 0.3} if network == "unet" else {}))
        step, init = make_step(trainable, optimizer=optimizer)
        state, losses = init(), []
        for number in range(STEPS):
            state, metrics = jax.jit(step)(state, batch(number))
            losses.append(float(metrics["loss"]))
        return jax.device_get(state), losses

    return make


@pytest.mark.parametrize(
    ("network", "spec", "accumulation"),
    [
        ("unet", {"name": "jit"}, 1),
        ("unet", {"name": "pmap"}, 1),
        ("unet", {"name": "jit", "data": 2, "fsdp": 4}, 1),
        ("unet", {"name": "jit"}, 2),
        ("unet", {"name": "pmap"}, 2),
        ("dit", {"name": "jit", "data": 2, "fsdp": 2, "tensor": 2}, 1),
        ("dit", {"name": "jit", "data": 2, "context": 4}, 1),
        ("dit", {"name": "jit", "data": 1, "fsdp": 2, "tensor": 2, "context": 2}, 1),
        ("unet", {"name": "jit", "data": 4, "context": 2}, 1),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_same_update_as_one_device(make_trainable, make_step, batch, reference, network, spec, accumulation):
    assert jax.device_count() == 8
    trainable = make_trainable(network, **({"dropout": 0.3} if network == "unet" else {}))
    step, init = make_step(trainable, accumulation=accumulation)
    expected, expected_losses = reference(network)
    state, losses = run(parallel.LAYOUTS.build(spec), step, init, batch)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), state, expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected.params, jax.device_get(init().params))
    assert max(jax.tree.leaves(moved)) > 1e-3, "the test must see an update"


def test_muon_sees_whole_matrices_however_they_are_sharded(make_trainable, make_step, batch, reference):
    """Its update of a number depends on the whole kernel, unlike those of the other optimizers."""
    step, init = make_step(make_trainable("dit"), optimizer="muon")
    one, expected = reference("dit", "muon")
    several, losses = run(parallel.LAYOUTS.build({"name": "jit", "data": 2, "fsdp": 2, "tensor": 2}), step, init, batch)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, jax.device_get(init().params))
    largest = max(jax.tree.leaves(moved))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02 * largest), several.params, one.params)


def test_fsdp_shards_parameters_optimizer_and_ema(make_trainable, make_step):
    layout = parallel.LAYOUTS.build({"name": "jit", "data": 1, "fsdp": 8})
    _, init = make_step(make_trainable("unet"), optimizer="adam")
    state = layout.init(init)
    for tree in (state.params, state.ema["decay_0.9"], state.opt_state):
        sharded = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1 and max(leaf.shape) % 8 == 0]
        assert sharded
        for leaf in sharded:
            assert leaf.addressable_shards[0].data.size * 8 == leaf.size, leaf.sharding


def test_state_made_under_any_layout_is_the_same(make_trainable, make_step):
    _, init = make_step(make_trainable("unet"))
    expected = jax.device_get(init())
    for spec in ({"name": "pmap"}, {"name": "jit", "data": 1, "fsdp": 8}):
        layout = parallel.LAYOUTS.build(spec)
        made = jax.device_get(layout.to_canonical(layout.init(init)))
        jax.tree.map(np.testing.assert_array_equal, made, expected)


def test_indivisible_batch_names_a_batch_that_fits():
    layout = parallel.LAYOUTS.build("jit")
    with pytest.raises(UserError, match="batch size 12 is not divisible by 8 devices; use a multiple of 8"):
        layout.check_batch(12)
    with pytest.raises(UserError, match="8 devices x 4 microbatches; use a multiple of 32"):
        layout.check_batch(16, accumulation=4)


def test_steps_compile_ahead_of_time_and_export(make_trainable, make_step, batch):
    step, init = make_step(make_trainable("unet"))
    abstract = jax.eval_shape(init)
    exported = jax.export.export(jax.jit(step))(abstract, batch())
    state, metrics = jax.jit(step)(init(), batch())
    again, metrics_again = exported.call(init(), batch())
    np.testing.assert_allclose(metrics["loss"], metrics_again["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.params, again.params)
