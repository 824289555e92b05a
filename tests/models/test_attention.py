"""Attention: one result by every implementation, forward and both derivatives; bounded memory where it is promised."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import attention

IMPLEMENTATIONS = ["einsum", "xla", "chunked", "splash"]


def inputs(queries=256, keys=128, heads=2, dim=8, dtype=jnp.float32):
    shapes = [(2, n, heads, dim) for n in (queries, keys, keys)]
    return [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes)]


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 96 queries, which do not divide the length."""
    monkeypatch.setattr(importlib.import_module("diffusion_jax.models.attention"), "_CHUNK", 96 * 128)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_same_values_and_derivatives(implementation, small_chunks):
    qkv = inputs()
    tangents = [jnp.cos(x) for x in qkv]

    def both(name):
        def f(*qkv):
            return attention(*qkv, implementation=name)

        value, derivative = jax.jit(lambda q, t: jax.jvp(f, q, t))(tuple(qkv), tuple(tangents))
        gradient = jax.jit(jax.grad(lambda *qkv: jnp.sum(jnp.sin(f(*qkv))), argnums=(0, 1, 2)))(*qkv)
        return value, derivative, gradient

    for ours, expected in zip(jax.tree.leaves(both(implementation)), jax.tree.leaves(both("einsum")), strict=True):
        np.testing.assert_allclose(ours, expected, atol=3e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_near_float32(implementation):
    exact = attention(*inputs(), implementation="einsum")
    half = attention(*inputs(dtype=jnp.bfloat16), implementation=implementation)
    assert half.dtype == jnp.bfloat16
    assert float(jnp.abs(half.astype(jnp.float32) - exact).max()) < 0.05


def temporaries(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("backward", [False, True])
def test_long_sequences_do_not_make_the_matrix_of_logits(backward):
    """16,384 tokens: the logits of one head alone would take 1 GiB."""
    shape = jax.ShapeDtypeStruct((1, 16_384, 1, 16), jnp.float32)

    def run(q, k, v):
        return jnp.sum(attention(q, k, v) ** 2)

    function = jax.grad(run, argnums=(0, 1, 2)) if backward else run
    assert temporaries(function, shape, shape, shape) < 2**26


def test_short_sequences_are_two_products():
    jaxpr = str(jax.make_jaxpr(attention)(*inputs()))
    assert jaxpr.count("dot_general") == 2
    assert "scan" not in jaxpr


def test_wrong_requests_are_named():
    with pytest.raises(UserError, match="unknown attention implementation 'flash'"):
        attention(*inputs(), implementation="flash")
    with pytest.raises(UserError, match="divide by 128, got 100 queries"):
        attention(*inputs(queries=100), implementation="splash")


def test_tokens_attend_within_their_segment(small_chunks):
    """Two sequences packed into one give what each gives alone, by both ways that take segments, and backward."""
    q, k, v = inputs(queries=200, keys=200)
    segments = jnp.array([[0] * 120 + [1] * 80] * 2)

    def whole(name):
        def f(*qkv):
            return jnp.sum(jnp.sin(attention(*qkv, segments=segments, implementation=name)))

        return attention(q, k, v, segments=segments, implementation=name), jax.grad(f, argnums=(0, 1, 2))(q, k, v)

    parts = [attention(*(x[:, a:b] for x in (q, k, v))) for a, b in ((0, 120), (120, 200))]
    found, gradient = whole("einsum")
    np.testing.assert_allclose(found, jnp.concatenate(parts, axis=1), atol=3e-6)
    for ours, expected in zip(jax.tree.leaves(whole("chunked")), jax.tree.leaves((found, gradient)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=3e-6)
    with pytest.raises(UserError, match="'splash' takes no segments"):
        attention(q, k, v, segments=segments, implementation="splash")
