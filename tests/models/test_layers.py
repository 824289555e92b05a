import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.errors import UserError
from diffusion_jax.models import layers
from diffusion_jax.models.attention import attention
from diffusion_jax.models.layers import Dropout, GroupNorm, sinusoidal_embedding


def test_time_embedding_of_adm_and_dit():
    expected = [-0.83907151, 0.54030234, 0.99500418, 0.99994999, -0.54402113, 0.84147098, 0.09983341, 0.00999983]
    actual = sinusoidal_embedding(jnp.asarray([10.0]), 8, flip_sin_to_cos=True, frequency_shift=0)[0]
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_time_embedding_of_ddpm():
    # The frequencies 1, 10^(-4/3), 10^(-8/3), 10^-4 include both ends of the range.
    angles = 500.0 * 10.0 ** np.array([0, -4 / 3, -8 / 3, -4])
    actual = sinusoidal_embedding(jnp.asarray([500.0]), 8)[0]
    np.testing.assert_allclose(actual, np.concatenate([np.sin(angles), np.cos(angles)]), atol=2e-5)


def test_time_embedding_is_float32_for_whatever_times():
    for dtype in (jnp.bfloat16, jnp.int32, jnp.float32):
        assert sinusoidal_embedding(jnp.asarray([3], dtype), 8).dtype == jnp.float32
    for dim in (7, 2):
        with pytest.raises(UserError, match="even dim"):
            sinusoidal_embedding(jnp.zeros(1), dim)


def naive_attention(query, key, value):
    output = np.zeros_like(query)
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
        logits = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[-1])
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        output[b, :, h] = weights @ value[b, :, h]
    return output


def test_attention_by_hand(x64):
    draw = np.random.default_rng(0)
    query, key, value = draw.standard_normal((2, 3, 2, 4)), *draw.standard_normal((2, 2, 5, 2, 4))
    np.testing.assert_allclose(attention(query, key, value), naive_attention(query, key, value), rtol=1e-12)


def test_attention_softmax_is_float32_in_bfloat16():
    # A thousand equal logits: summing 1/1000 in bfloat16 would err by far more than the result's rounding.
    query, value = jnp.zeros((1, 1, 1, 4), jnp.bfloat16), jnp.ones((1, 1000, 1, 4), jnp.bfloat16)
    output = attention(query, value, value)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(output), 1.0, atol=0.01)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (144, 24), (3, 1)])
def test_group_norm_is_flax_group_norm(channels, groups):
    x = np.float32(2.0 + np.random.default_rng(0).standard_normal((2, 4, 4, channels)))
    layers = GroupNorm(), nn.GroupNorm(num_groups=groups)
    params = {"params": {"scale": np.linspace(0.5, 2.0, channels), "bias": np.linspace(-1.0, 1.0, channels)}}
    ours, flax = jax.jit(lambda params, x: [layer.apply(params, x) for layer in layers])(params, x)
    np.testing.assert_allclose(ours, flax, atol=2e-5)


class TwoDropouts(nn.Module):
    @nn.compact
    def __call__(self, x, keys):
        return Dropout(rate=0.25, name="a")(x, keys), Dropout(rate=0.25, name="b")(x, keys)


def test_dropout():
    keys = jax.random.split(jax.random.key(0), 8)
    x = jnp.ones((8, 16, 16, 4))
    a, b = TwoDropouts().apply({}, x, keys)
    assert set(np.unique(a)) == {0.0, np.float32(1 / 0.75)}
    deviations = 4.0 * np.sqrt(0.25 * 0.75 / x.size) / 0.75
    assert abs(float(a.mean()) - 1.0) < deviations
    # Layers and examples have separate masks, which agree as often as independent ones.
    agreement = 0.25**2 + 0.75**2
    for left, right in ((a, b), (a[0], a[1])):
        assert abs(float((left == right).mean()) - agreement) < 4.0 * np.sqrt(0.25 / left.size)
    np.testing.assert_array_equal(TwoDropouts().apply({}, x[2:3], keys[2:3])[0], a[2:3])
    np.testing.assert_array_equal(TwoDropouts().apply({}, x, None)[0], x)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_dense_on_rows_is_the_dense_layer(shape, x64):
    x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
    ours, flax = (layer(7, param_dtype=jnp.float64) for layer in (layers.Dense, nn.Dense))
    params = flax.init(jax.random.key(1), x)
    both = [jax.value_and_grad(lambda p, m=m: jnp.sum(jnp.sin(m.apply(p, x))))(params) for m in (ours, flax)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *both)


def test_layer_norm_is_flax_layer_norm(x64):
    x = 3 + jax.random.normal(jax.random.key(0), (4, 6, 10), jnp.float64)
    flax = nn.LayerNorm(epsilon=1e-5, use_bias=False, use_scale=False, param_dtype=jnp.float64)
    np.testing.assert_allclose(layers.layer_norm(x, 1e-5), flax.apply({}, x), rtol=1e-10, atol=1e-12)
