"""Sharded parameters are gathered layer by layer; the examples of a batch are not moved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits_dit, digits_unet
from diffusion_jax import data, parallel
from diffusion_jax.models.attention import attention
from diffusion_jax.models.dit import DiT
from diffusion_jax.parallel.activations import in_force
from diffusion_jax.parallel.hlo import Program
from diffusion_jax.specs import DataSpec
from experiments.building.wiring import Experiment

DIGITS = data.DatasetInfo(
    name="digits", split="train", num_examples=1437, spec=DataSpec(kind="pixels", shape=(8, 8, 1)), num_classes=10
)


def compiled(
    config: ConfigDict, *, data_axis: int, fsdp: int, tensor: int = 1, context: int = 1
) -> tuple[Program, int]:
    """The train step over 8 devices, compiled for CPU, and the size of the network's parameters in bytes."""
    config.parallel.update(data=data_axis, fsdp=fsdp, tensor=tensor, context=context)
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


@pytest.mark.parametrize("config", [dit, pytest.param(unet, marks=pytest.mark.slow)], ids=lambda make: make.__name__)
def test_fsdp_gathers_parameters_and_no_activations(config):
    """The gathered bytes are those of the parameters in three passes: forward, recomputation and backward."""
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


def test_divided_tokens_send_keys_and_values_and_at_most_one_gradient():
    """Each block gathers K and V, reduces and scatters their gradients, and sends nothing else but one gradient."""
    config = dit()
    config.train.batch_size = 64
    program, size = compiled(config, data_axis=1, fsdp=1, context=8)
    keys_and_values = 2 * config.model.depth * 64 * 16 * config.model.hidden_size * 4  # bytes, for 16 tokens
    found = program.collectives
    assert found.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    assert found["all-gather"].sent_bytes == keys_and_values * 7 / 8
    assert found["reduce-scatter"].sent_bytes == keys_and_values * 7 / 8
    assert found["all-reduce"].sent_bytes <= 1.01 * 2 * size * 7 / 8


def test_long_attention_over_divided_tokens_is_attention():
    """All implementations give the same values and gradients with queries on 4 devices and examples on 2."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 512, 2, 64)) for key in keys)
    layout = parallel.LAYOUTS.build({"name": "jit", "data": 2, "context": 4})
    placed = jax.device_put((q, k, v), layout.batch_sharding)

    def loss(q, k, v, implementation):
        return jnp.sum(jnp.sin(attention(q, k, v, implementation=implementation)))

    expected = jax.value_and_grad(loss, (0, 1, 2))(q, k, v, "einsum")
    for implementation in ("einsum", "chunked", "splash"):
        with in_force(layout.mesh):
            found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)(*placed, implementation)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected)


def test_tensor_axis_sums_the_activations_of_a_block_four_times():
    """The sums come after attention and MLP forward, and before them backward (Shoeybi et al. 2019, sec. 3)."""
    config = dit()
    config.train.batch_size = 64
    config.model.num_heads = 8
    program, _ = compiled(config, data_axis=1, fsdp=1, tensor=8)
    activations = 64 * 16 * config.model.hidden_size * 4  # bytes
    least = 4 * config.model.depth * 2 * activations * 7 / 8
    np.testing.assert_allclose(program.collectives["all-reduce"].sent_bytes, least, rtol=0.01)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 4, "tensor": 2}], ids=str)
def test_divided_networks_have_the_same_derivatives(axes):
    """The value, its derivative in time and that derivative's gradient (as in MeanFlow) are equal in float64."""
    network = DiT(
        image_size=4, image_channels=1, num_classes=3, hidden_size=64, depth=2, num_heads=4, dtype=jnp.float64
    )
    with jax.enable_x64(True):
        x, time = jax.random.normal(jax.random.key(0), (8, 4, 4, 1), jnp.float64), jnp.linspace(0.1, 0.9, 8)
        conditioning = {"label": jnp.arange(8) % 3}
        params = jax.jit(network.init)(jax.random.key(1), x, time, conditioning)["params"]
        params = jax.tree.map(
            lambda p: p.astype(jnp.float64) + 0.02 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
        )

        def derivative(params, x, time):
            of_time = lambda t: network.apply({"params": params}, x, t, conditioning)  # noqa: E731
            return jax.jvp(of_time, (time,), (jnp.ones_like(time),))

        def loss(params, x, time):
            value, change = derivative(params, x, time)
            return jnp.sum(jnp.square(value - change))

        both = lambda *arguments: (derivative(*arguments), jax.grad(loss)(*arguments))  # noqa: E731
        expected = jax.jit(both)(params, x, time)
        layout = parallel.LAYOUTS.build({"name": "jit", **axes})
        placed = jax.device_put(params, layout.canonical_shardings(params))
        inputs = jax.device_put((x, time), layout.batch_sharding)
        with in_force(layout.mesh):
            found = jax.jit(lambda *arguments: both(*arguments))(placed, *inputs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected)
