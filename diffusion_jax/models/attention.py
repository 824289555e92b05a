"""Attention behind one function, computed in one of several ways that depends on shapes and platform.

    einsum      two products with the whole matrix of logits between them, for short sequences. On CPU the heads come
                first, and the softmax's sum divides the second product, which saves a pass over the matrix
    xla         jax.nn.dot_product_attention
    chunked     blocks of queries against blocks of keys, with a softmax whose greatest logit and sum go from block to
                block (Milakov & Gimelshein 2018, arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682): memory grows
                with the length, not with its square, forward and backward
    splash      the TPU's kernel, which never writes logits to memory; lengths that divide by 128

Without a choice of the caller einsum is taken up to 2048 x 2048 logits of a head, and a bounded way above that. A block
of the chunked form has at most 2^21 logits of all examples and heads together (8 MiB in float32), or 128 x 128 of each
head if that is more.

All four differentiate forward and backward (jvp and grad): the kernel has rules for neither, so it takes the tangent of
the chunked form.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.activations import attention_by_example, for_cpu
from diffusion_jax.registry import unknown_name

Implementation = Literal["einsum", "xla", "chunked", "splash"]

_WHOLE = 2048**2  # most logits of a head that are computed at once
_BLOCK = 2**21  # logits in one block, of all examples and heads
_LEAST_SIDE = 128  # queries and keys of the smallest block
_SPLASH_BLOCK = 128
_LOWEST = -1e30  # a logit below all others, finite so that its derivative is finite

Segments = tuple[Int[Array, "batch queries"], Int[Array, "batch keys"]]
"""The sequence that each query, and each key, belongs to."""


def attention(
    query: Float[Array, "batch queries heads dim"],
    key: Float[Array, "batch keys heads dim"],
    value: Float[Array, "batch keys heads dim"],
    *,
    mask: Bool[Array, "batch keys"] | None = None,
    bias: Float[Array, "heads_or_1 queries keys"] | None = None,
    segments: Int[Array, "batch tokens"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "batch queries heads dim"]:
    """softmax(Q K^T / sqrt(dim) + bias) V (Vaswani et al. 2017, eq. 1), with the softmax in float32.

    Args:
      query, key, value: as named.
      mask: which keys count, at least one for each example; the others have weight zero. The kernel takes no mask.
      bias: added to the logits of every example: relative positions, or `causal`. The kernel takes no bias.
      segments: the sequence that a token belongs to, where several are packed into one: tokens attend within their own.
        Queries and keys must then be the same tokens. The kernel takes no segments.
      implementation: one of the above; None takes einsum for short sequences, and for longer ones the kernel if the
        program is compiled for TPU and the lengths allow it, else blocks.

    Raises:
      UserError: an unknown implementation, or lengths that the kernel does not take.
    """
    if implementation not in (None, *_IMPLEMENTATIONS):
        raise UserError(unknown_name("attention implementation", implementation, list(_IMPLEMENTATIONS)))
    short = query.shape[1] * key.shape[1] <= _WHOLE
    told = {"mask": mask, "bias": bias, "segments": segments}
    if any(value is not None for value in told.values()):
        if implementation in ("splash", "xla"):
            what = " and ".join(name for name, value in told.items() if value is not None)
            raise UserError(f"attention implementation {implementation!r} takes no {what}: use einsum or chunked")
        masked = {None: _einsum if short else _chunked, "einsum": _einsum, "chunked": _chunked}[implementation]
        return attention_by_example(masked, query, key, value, **told)
    best = _einsum if short else _long
    chosen = best if implementation is None else _IMPLEMENTATIONS[implementation]
    return attention_by_example(chosen, query, key, value)


def causal(length: int) -> Float[np.ndarray, "1 length length"]:
    """The bias that lets a token attend only to itself and to earlier tokens."""
    return np.triu(np.full((1, length, length), _LOWEST, np.float32), k=1)


def _einsum(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    segments: Segments | None = None,
) -> Array:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query * np.asarray(1.0 / math.sqrt(query.shape[-1]), query.dtype)
    if not for_cpu():
        logits = _masked(jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide), mask, bias, segments)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    query, key, value = (jnp.moveaxis(x, 1, 2) for x in (query, key, value))
    logits = _masked(jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide), mask, bias, segments)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    found = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value, preferred_element_type=wide) / total
    return jnp.moveaxis(found.astype(value.dtype), 1, 2)


def _masked(
    logits: Float[Array, "batch heads queries keys"],
    mask: Bool[Array, "batch keys"] | None,
    bias: Float[Array, "heads_or_1 queries keys"] | None,
    segments: Segments | None,
) -> Array:
    """The logits with their bias; those of keys that do not count are so low that their weight is exactly zero."""
    logits = logits if bias is None else logits + bias
    if segments is not None:
        of_queries, of_keys = segments
        logits = jnp.where(of_queries[:, None, :, None] == of_keys[:, None, None], logits, _LOWEST)
    return logits if mask is None else jnp.where(mask[:, None, None], logits, _LOWEST)


def _block_sides(heads: int, queries: int, keys: int) -> tuple[int, int]:
    """Queries and keys of a block, which are nearly as many; `heads` counts those of all examples."""
    logits = max(_BLOCK // heads, _LEAST_SIDE**2)
    side = max(_LEAST_SIDE, math.isqrt(logits) // _LEAST_SIDE * _LEAST_SIDE)
    of_keys = min(keys, side)
    of_queries = max(side, logits // of_keys // _LEAST_SIDE * _LEAST_SIDE)
    return _even(queries, of_queries), _even(keys, of_keys)


def _even(length: int, most: int) -> int:
    """The size of a piece if a length is cut into as few equal pieces of at most `most` as it can be."""
    return -(-length // -(-length // most))


def _cut(x: Array | None, axis: int, size: int) -> Array | None:
    """An axis in pieces of `size`, which lead: [..., length, ...] to [pieces, ..., size, ...]; zeros fill the last."""
    if x is None:
        return None
    count = -(-x.shape[axis] // size)
    wide = [(0, 0)] * x.ndim
    wide[axis] = (0, count * size - x.shape[axis])
    padded = jnp.pad(x, wide)
    return jnp.moveaxis(padded.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)


def _chunked(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    segments: Segments | None = None,
) -> Array:
    """With the logits l of one block of keys after another, from m = -inf, s = 0 and o = 0:

    m' = max(m, max l),   s' = s exp(m - m') + sum exp(l - m'),   o' = o exp(m - m') + exp(l - m') V,   result o / s
    """
    batch, length, heads, dim = query.shape
    keys, kind = key.shape[1], value.dtype
    wide = jnp.promote_types(query.dtype, jnp.float32)
    rows, columns = _block_sides(batch * heads, length, keys)
    if keys % columns:  # the zeros that fill the last block do not count
        there = jnp.arange(-(-keys // columns) * columns) < keys
        mask = jnp.broadcast_to(there, (batch, len(there))) & jnp.pad(
            jnp.ones((batch, keys), bool) if mask is None else mask, ((0, 0), (0, len(there) - keys))
        )
    query = query * np.asarray(1.0 / math.sqrt(dim), query.dtype)
    query, key, value = (jnp.moveaxis(x, 1, 2) for x in (query, key, value))  # [batch, heads, tokens, dim]
    of_queries, of_keys = (None, None) if segments is None else segments
    blocks = (_cut(key, 2, columns), _cut(value, 2, columns), _cut(mask, 1, columns), _cut(of_keys, 1, columns))

    # The backward pass computes the logits of a block again: stored, they would be the whole matrix.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def row(given: tuple[Array, Array | None, Array | None]) -> Array:
        query, bias, of_queries = given

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def add(state: tuple[Array, Array, Array], block: tuple[Array | None, ...]) -> tuple[Any, None]:
            highest, total, found = state
            (key, value, mask, of_keys), bias = block
            logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide)
            pair = None if of_keys is None else (of_queries, of_keys)
            logits = _masked(logits, mask, bias, pair)
            higher = jax.lax.stop_gradient(jnp.maximum(highest, logits.max(axis=-1, keepdims=True)))
            weights, kept = jnp.exp(logits - higher), jnp.exp(highest - higher)
            total = total * kept + weights.sum(axis=-1, keepdims=True)
            new = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(kind), value, preferred_element_type=wide)
            return (higher, total, found * kept + new), None

        edge = (*query.shape[:3], 1)
        none = (jnp.full(edge, -jnp.inf, wide), jnp.zeros(edge, wide), jnp.zeros((*edge[:3], value.shape[-1]), wide))
        (_, total, found), _ = jax.lax.scan(add, none, (blocks, _cut(bias, 2, columns)))
        return (found / total).astype(kind)

    found = jax.lax.map(row, (_cut(query, 2, rows), _cut(bias, 1, rows), _cut(of_queries, 1, rows)))
    found = jnp.moveaxis(found, 0, 2).reshape(batch, heads, -1, value.shape[-1])
    return jnp.moveaxis(found, 1, 2)[:, :length]


def _splash_kernel(queries: int, keys: int, heads: int, *, interpret: bool) -> Callable[[Array, Array, Array], Array]:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((queries, keys))] * heads)
    return splash_attention_kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)


def _fits_splash(query: Array, key: Array) -> bool:
    return query.shape[1] % _SPLASH_BLOCK == 0 and key.shape[1] % _SPLASH_BLOCK == 0


def _run_splash(query: Array, key: Array, value: Array, *, interpret: bool) -> Array:
    kernel = _splash_kernel(query.shape[1], key.shape[1], query.shape[2], interpret=interpret)
    query = query * np.asarray(1.0 / math.sqrt(query.shape[-1]), query.dtype)
    found = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (query, key, value)))
    return found.swapaxes(1, 2).astype(value.dtype)


def _with_chunked_tangent(primal: Callable[[Array, Array, Array], Array]) -> Callable[[Array, Array, Array], Array]:
    """The function with the tangent of the chunked form."""
    function = jax.custom_jvp(primal)
    function.defjvp(lambda primals, tangents: jax.jvp(_chunked, primals, tangents))
    return function


@_with_chunked_tangent
def _long(query: Array, key: Array, value: Array) -> Array:
    if not _fits_splash(query, key):
        return _chunked(query, key, value)
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        tpu=lambda *qkv: _run_splash(*qkv, interpret=False),
        default=_chunked,
    )


@_with_chunked_tangent
def _splash(query: Array, key: Array, value: Array) -> Array:
    if not _fits_splash(query, key):
        raise UserError(
            f"splash attention takes lengths divisible by {_SPLASH_BLOCK}, got {query.shape[1]} queries and "
            f"{key.shape[1]} keys; chunked takes any"
        )
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        tpu=lambda *qkv: _run_splash(*qkv, interpret=False),
        default=lambda *qkv: _run_splash(*qkv, interpret=True),
    )


_IMPLEMENTATIONS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "einsum": _einsum,
    "xla": jax.nn.dot_product_attention,
    "chunked": _chunked,
    "splash": _splash,
}


def split_heads(
    qkv: Sequence[Float[Array, "batch tokens dim"]], num_heads: int
) -> tuple[Float[Array, "batch tokens heads channels"], ...]:
    """Query, key and value by heads; the last axis of each is head x channel.

    Raises:
      UserError: the channels do not divide by num_heads.
    """
    batch, tokens, width = qkv[0].shape
    if width % num_heads:
        raise UserError(f"{width} channels do not divide into num_heads={num_heads}")
    return tuple(part.reshape(batch, tokens, num_heads, width // num_heads) for part in qkv)


def self_attention(
    qkv: Sequence[Float[Array, "batch tokens dim"]],
    num_heads: int,
    *,
    mask: Bool[Array, "batch tokens"] | None = None,
    bias: Float[Array, "heads_or_1 tokens tokens"] | None = None,
) -> Float[Array, "batch tokens dim"]:
    """Attention of tokens to each other: query, key and value as in `split_heads`, the rest as in `attention`."""
    query, key, value = split_heads(qkv, num_heads)
    return attention(query, key, value, mask=mask, bias=bias).reshape(qkv[0].shape)
