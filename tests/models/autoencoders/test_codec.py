"""Codecs by registration: what is decoded is what was encoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import CODECS, Values, from_tokens, to_tokens
from diffusion_jax.specs import DataSpec

PIXELS = DataSpec(kind="pixels", shape=(4, 4, 2))


@pytest.fixture(params=list(CODECS))
def codec(request):
    return CODECS.example(request.param)


def test_decode_undoes_encode(codec):
    x = np.random.default_rng(0).integers(0, 17, (3, *PIXELS.shape)).astype(np.float32) / 8 - 1
    params = codec.init_params(jax.random.key(0))
    z = jax.jit(codec.encode)(params, x, None)
    spec = codec.spec(PIXELS)
    assert z.shape == (3, *spec.shape)
    assert z.dtype == spec.dtype
    np.testing.assert_allclose(jax.jit(codec.decode)(params, z), x, atol=1e-6)
    assert hash(codec) == hash(codec)


def test_pixels_as_tokens_and_back():
    tokens = jnp.arange(17)
    np.testing.assert_array_equal(to_tokens(from_tokens(tokens, 17), 17), tokens)
    np.testing.assert_allclose(from_tokens(jnp.array([0, 16]), 17), [-1, 1])
    np.testing.assert_array_equal(Values(num_values=17).decode(None, jnp.array([17, 16])), [0, 1])


def test_only_pixels_have_values():
    with pytest.raises(UserError, match="latents: use identity"):
        Values(num_values=4).spec(DataSpec(kind="latents", shape=(4, 4, 2)))
