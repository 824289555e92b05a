"""Reformulations for XLA on CPU are used only there: accelerators get the plain network, with the same values.

Nothing here needs an accelerator: the active mesh says for which platform a program is traced.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, use_abstract_mesh

from configs import digits_unet
from diffusion_jax.models import MODELS, example_inputs, init_params, layers
from diffusion_jax.models.attention import attention
from diffusion_jax.parallel.activations import for_cpu
from experiments.building.wiring import Experiment

CHIP = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
SLICE = AbstractMesh((1,), ("data",), abstract_device=CHIP)


def on_tpu(function):
    """Wrap a function so that it is traced for a TPU."""

    def traced(*arguments):
        with use_abstract_mesh(SLICE):
            return function(*arguments)

    return traced


def test_the_mesh_says_what_is_compiled_for():
    assert for_cpu()
    assert not on_tpu(for_cpu)()


def test_dense_and_attention_are_the_plain_ones_on_tpu():
    x = jnp.ones((2, 6, 8))
    ours, flax = layers.Dense(4), nn.Dense(4)
    params = flax.init(jax.random.key(0), x)

    def operations(function, *arguments):
        return [str(equation.primitive) for equation in jax.make_jaxpr(function)(*arguments).eqns]

    assert operations(on_tpu(ours.apply), params, x) == operations(flax.apply, params, x)
    assert "reshape" in operations(ours.apply, params, x)[0]

    q = jnp.ones((2, 6, 2, 4))
    assert "transpose" not in str(jax.make_jaxpr(on_tpu(attention))(q, q, q)).split("dot_general")[0]
    assert "transpose" in str(jax.make_jaxpr(attention)(q, q, q)).split("dot_general")[0]


@pytest.mark.parametrize("name", ["dit", "jit", "uvit", "vit", "ddit"])
def test_blocks_are_computed_again_on_tpu_only_where_remat_says_so(name):
    network = MODELS.example(name)
    params = jax.eval_shape(lambda: init_params(network, jax.random.key(0)))
    inputs = example_inputs(network, 2)

    def jaxpr(network, traced=lambda function: function):
        return str(jax.make_jaxpr(traced(lambda p: network.apply({"params": p}, *inputs)))(params))

    assert "remat" in jaxpr(network)
    assert "remat" not in jaxpr(network, on_tpu)
    assert "remat" in jaxpr(network.clone(remat="full"), on_tpu)


@pytest.mark.parametrize(
    "name", ["dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("jit", "uvit")), "ddit"]
)
def test_both_forms_are_the_same_function(name, monkeypatch, x64):
    network = MODELS.example(name).clone(dtype=jnp.float64)
    params = jax.tree.map(lambda p: p.astype(jnp.float64) + 0.1, init_params(network, jax.random.key(0)))
    inputs = jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, example_inputs(network, 2)
    )

    def result():
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(network.apply({"params": p}, *inputs)))))(params)

    expected = result()
    for module in (layers, sys.modules[attention.__module__]):
        monkeypatch.setattr(module, "for_cpu", lambda: False)
    found = result()
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10 * scale), found, expected)


def test_gradients_of_convolutions_are_in_no_loop_on_cpu():
    """Microbatches use a loop on accelerators, but none on CPU, where XLA computes convolution gradients slowly in
    loops."""
    config = digits_unet.get_config()
    config.train.accumulation = 2
    config.model.update(base_channels=8, channel_multipliers=(1,), attention_resolutions=())
    experiment = Experiment.planned(config)
    arguments = experiment.abstract_state, experiment.abstract_batch(config.train.batch_size)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)

    def passes(traced):
        """The number of iterations of each loop."""
        loops = [e.params for e in jax.make_jaxpr(traced)(*arguments).eqns if e.primitive.name == "scan"]
        return [loop["length"] // loop["unroll"] for loop in loops]

    assert passes(on_tpu(experiment.train_step())) == [2]
    assert passes(experiment.train_step()) == [1]
