"""Attention behind one function, computed in one of several ways that depends on shapes and platform.

    einsum      two products with the whole matrix of logits between them, for short sequences. On CPU the heads come
                first, and the softmax's sum divides the second product, which saves a pass over the matrix
    xla         jax.nn.dot_product_attention
    chunked     some queries at a time against all keys: memory grows with the length, not with its square
    splash      the TPU's kernel, which never writes logits to memory; lengths that divide by 128

All four differentiate forward and backward (jvp and grad): the kernel has rules for neither, so it takes the tangent of
the chunked form.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.activations import attention_by_example, for_cpu
from diffusion_jax.registry import unknown_name

Implementation = Literal["einsum", "xla", "chunked", "splash"]

_WHOLE = 2048**2  # most logits of a head that are computed at once
_CHUNK = 2**20  # logits of a head in one chunk
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
        program is compiled for TPU and the lengths allow it, else chunks.

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


def _chunked(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    segments: Segments | None = None,
) -> Array:
    length = query.shape[1]
    size = max(1, min(length, _CHUNK // key.shape[1]))
    count = -(-length // size)

    def cut(x: Array) -> Array:
        """Reshape [n, queries, ...] to [chunk, n, queries of one, ...]."""
        padded = jnp.pad(x, ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2)))
        return padded.reshape(x.shape[0], count, size, *x.shape[2:]).swapaxes(0, 1)

    # The backward pass computes a chunk's logits again: stored, they would be the whole matrix.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(chunk: tuple[Array, Array | None, Array | None]) -> Array:
        query, bias, of_queries = chunk
        return _einsum(query, key, value, mask, bias, None if segments is None else (of_queries, segments[1]))

    of_queries = None if segments is None else cut(segments[0])
    found = jax.lax.map(one, (cut(query), None if bias is None else cut(bias), of_queries))
    return found.swapaxes(0, 1).reshape(query.shape[0], count * size, *query.shape[2:-1], value.shape[-1])[:, :length]


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
            f"splash attention takes lengths that divide by {_SPLASH_BLOCK}, got {query.shape[1]} queries and "
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
