"""Recomputing activations for the backward pass changes memory and time, but no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, example_inputs, init_params


@pytest.mark.parametrize("policy", ["full", "dots"])
@pytest.mark.parametrize(
    "name", ["dit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("jit", "uvit", "vit", "ddit"))]
)
def test_same_gradients(name, policy):
    plain = MODELS.example(name)
    params = init_params(plain, jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1, params)
    inputs = example_inputs(plain, 2)

    def gradient(network):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(network.apply({"params": p}, *inputs)))))(params)

    expected, found = gradient(plain), gradient(plain.clone(remat=policy))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    jaxpr = jax.make_jaxpr(lambda p: plain.clone(remat=policy).apply({"params": p}, *inputs))(params)
    assert "checkpoint" in str(jaxpr) or "remat" in str(jaxpr)


@pytest.mark.parametrize("name", ["dit", "jit", "uvit", "vit", "ddit"])
def test_unknown_policies_are_named(name):
    with pytest.raises(UserError, match="unknown remat policy 'ful'; did you mean 'full'"):
        MODELS.example(name).clone(remat="ful")


def test_pointwise_intermediates_are_not_kept():
    """The values that a DiT block keeps, in units of one vector per token (6 heads of 64, 64 tokens, so logits are one
    unit).

    They are the input of each branch (2), q, k, v (3), the attention's weights and result (2), the inputs of the gates
    (2) and the MLP before its GELU (4). With all intermediates of GELU and norms they were 40.
    """
    network = MODELS.build({"name": "dit", "size": "S/2", "image_size": 16, "image_channels": 4, "depth": 3})
    params = jax.eval_shape(lambda: init_params(network, jax.random.key(0)))
    inputs = example_inputs(network, 2)

    def residuals(p):
        return jax.vjp(lambda p: network.apply({"params": p}, *inputs), p)[1]

    kept = [leaf for leaf in jax.tree.leaves(jax.eval_shape(residuals, params)) if leaf.shape[:2] == (3, 2)]
    assert 12 < sum(leaf.size for leaf in kept) / (3 * 2 * 64 * 384) < 14
