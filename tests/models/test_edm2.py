"""EDM2's properties: magnitudes are preserved, weights keep their norm, and conditioning enters through gains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import MODELS, init_params
from diffusion_jax.models.edm2 import MPFourier, MPLinear, mp_concatenate, mp_silu, mp_sum, normalize


@pytest.fixture(scope="module")
def network():
    return MODELS.example("edm2")


@pytest.fixture(scope="module")
def params(network):
    return init_params(network, jax.random.key(0))


def test_silu_has_unit_variance_for_normal_input():
    x = jax.random.normal(jax.random.key(0), (10**6,))
    assert float(jnp.mean(jax.nn.silu(x) ** 2) ** 0.5) == pytest.approx(0.5964692111, abs=2e-3)
    assert float(jnp.mean(mp_silu(x) ** 2)) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("balance", [0.3, 0.5])
def test_sums_and_concatenations_keep_unit_variance(balance):
    a, b = (jax.random.normal(jax.random.key(i), (16, 32, 32, n)) for i, n in enumerate((8, 24)))
    assert float(mp_sum(a, b[..., :8], balance).var()) == pytest.approx(1, abs=0.01)
    both = mp_concatenate(a, b, balance)
    assert float(jnp.mean(both**2)) == pytest.approx(1, abs=0.01)
    shares = [float(jnp.sum(part**2)) for part in (both[..., :8], both[..., 8:])]
    assert shares[1] / shares[0] == pytest.approx((balance / (1 - balance)) ** 2, rel=0.02)


def test_waves_have_unit_variance():
    module = MPFourier(features=512)
    time = jnp.linspace(-3, 3, 256)
    waves = module.apply(module.init(jax.random.key(0), time), time)
    assert float(jnp.mean(waves**2)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kernel_size", [0, 1, 3])
def test_layers_keep_unit_variance_whatever_the_size_of_their_weights(kernel_size):
    module = MPLinear(features=64, kernel_size=kernel_size)
    x = jax.random.normal(jax.random.key(0), (32, 16, 16, 48) if kernel_size else (4096, 48))
    params = module.init(jax.random.key(1), x)["params"]
    for scale in (1.0, 100.0):
        y = module.apply({"params": jax.tree.map(lambda k, s=scale: s * k, params)}, x)
        inner = y[:, 1:-1, 1:-1] if kernel_size else y  # zeros beyond the border have no variance
        assert float(inner.var()) == pytest.approx(1, abs=0.03)


def test_constrained_weights_have_the_norm_of_their_fan_in(network, params):
    large = jax.tree.map(lambda p: 7.0 * p, params)
    constrained = network.constrain(large)
    for path, leaf in jax.tree_util.tree_leaves_with_path(constrained):
        if path[-1].key == "kernel":
            fan_in = leaf.size // leaf.shape[-1]
            norms = jnp.sqrt(jnp.sum(leaf**2, axis=tuple(range(leaf.ndim - 1))))
            np.testing.assert_allclose(norms, np.sqrt(fan_in), rtol=2e-3)
        else:
            before = large
            for entry in path:
                before = before[entry.key]
            np.testing.assert_array_equal(leaf, before)


def test_constraining_does_not_change_what_is_computed(network, params):
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.3 * np.float32(draw.standard_normal(p.shape)), params)
    x = np.float32(draw.standard_normal((2, *network.image_shape)))
    inputs = (x, np.float32([0.1, -0.4]), {"label": np.array([0, 2])})
    expected = network.apply({"params": params}, *inputs)
    np.testing.assert_allclose(
        network.apply({"params": network.constrain(params)}, *inputs), expected, rtol=2e-3, atol=2e-3
    )


def test_a_fresh_block_ignores_its_conditioning(network, params):
    """A fresh block ignores its conditioning, because the conditioning gains start at zero."""
    opened = {**params, "out_gain": jnp.float32(1.0)}
    x = jax.random.normal(jax.random.key(2), (2, *network.image_shape))
    outputs = [
        network.apply({"params": opened}, x, jnp.full(2, time), {"label": jnp.array(label)})
        for time, label in ((0.3, [0, 1]), (-1.0, [2, 3]))
    ]
    np.testing.assert_array_equal(*outputs)
    assert float(jnp.abs(outputs[0]).max()) > 0.1


def test_normalising_zeros_has_a_derivative():
    gradient = jax.grad(lambda x: normalize(x, (0,)).sum())(jnp.zeros(4))
    assert bool(jnp.isfinite(gradient).all())
