"""All attention implementations agree, forward and in both derivatives, and keep the promised memory bounds."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import attention, causal

IMPLEMENTATIONS = ["einsum", "xla", "chunked", "splash"]


def inputs(queries=256, keys=128, heads=2, dim=8, dtype=jnp.float32):
    shapes = [(2, n, heads, dim) for n in (queries, keys, keys)]
    return [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes)]


@pytest.fixture
def small_chunks(monkeypatch):
    """Blocks of 96 queries and 56 keys, which do not divide the lengths."""
    module = importlib.import_module("diffusion_jax.models.attention")
    monkeypatch.setattr(module, "_block_sides", lambda heads, queries, keys: (min(96, queries), min(56, keys)))


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
    """Attention over 16,384 tokens never forms the logits, which would take 1 GiB for a single head."""
    shape = jax.ShapeDtypeStruct((1, 16_384, 1, 16), jnp.float32)

    def run(q, k, v):
        return jnp.sum(attention(q, k, v) ** 2)

    function = jax.grad(run, argnums=(0, 1, 2)) if backward else run
    assert temporaries(function, shape, shape, shape) < 2**26


def test_a_block_is_bounded_for_all_examples_and_heads():
    """Two examples with 8 heads and 16,384 tokens stay below 256 MiB, forward and backward; all logits would take 16
    GiB."""
    shape = jax.ShapeDtypeStruct((2, 16_384, 8, 16), jnp.float32)  # 16 MiB
    gradient = jax.grad(lambda *qkv: jnp.sum(attention(*qkv) ** 2), argnums=(0, 1, 2))
    assert temporaries(gradient, shape, shape, shape) < 2**28


def test_blocks_whose_keys_do_not_count_leave_nothing(small_chunks):
    """Chunked attention equals dense attention with a causal bias and a fully masked first block of keys."""
    q, k, v = inputs(queries=130, keys=130)
    mask = jnp.stack([jnp.arange(130) >= 60, jnp.arange(130) % 3 < 2])
    told = {
        "mask": mask,
        "bias": 0.3 * jax.random.normal(jax.random.key(9), (2, 130, 130)) + causal(130).swapaxes(1, 2),
    }

    def both(name):
        def f(*qkv):
            return attention(*qkv, **told, implementation=name)

        gradient = jax.grad(lambda *qkv: jnp.sum(jnp.sin(f(*qkv))), argnums=(0, 1, 2))
        return jax.jit(lambda *qkv: (f(*qkv), gradient(*qkv)))(q, k, v)

    for ours, dense in zip(jax.tree.leaves(both("chunked")), jax.tree.leaves(both("einsum")), strict=True):
        np.testing.assert_allclose(ours, dense, atol=3e-6)


def test_short_sequences_are_two_products():
    jaxpr = str(jax.make_jaxpr(attention)(*inputs()))
    assert jaxpr.count("dot_general") == 2
    assert "scan" not in jaxpr


def test_wrong_requests_are_named():
    with pytest.raises(UserError, match="unknown attention implementation 'flash'"):
        attention(*inputs(), implementation="flash")
    with pytest.raises(UserError, match="divisible by 128, got 100 queries"):
        attention(*inputs(queries=100), implementation="splash")


def test_tokens_attend_within_their_segment(small_chunks):
    """Two packed sequences give the results of the separate ones, forward and backward, in both implementations with
    segments."""
    q, k, v = inputs(queries=200, keys=200)
    segments = jnp.array([[0] * 120 + [1] * 80] * 2)

    def whole(name):
        def f(*qkv):
            return jnp.sum(jnp.sin(attention(*qkv, segments=segments, implementation=name)))

        return jax.jit(lambda *qkv: (attention(*qkv, segments=segments, implementation=name), grad(f)(*qkv)))(q, k, v)

    grad = functools.partial(jax.grad, argnums=(0, 1, 2))
    parts = [attention(*(x[:, a:b] for x in (q, k, v))) for a, b in ((0, 120), (120, 200))]
    found, gradient = whole("einsum")
    np.testing.assert_allclose(found, jnp.concatenate(parts, axis=1), atol=3e-6)
    for ours, expected in zip(jax.tree.leaves(whole("chunked")), jax.tree.leaves((found, gradient)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=3e-6)
    with pytest.raises(UserError, match="'splash' takes no segments"):
        attention(q, k, v, segments=segments, implementation="splash")
