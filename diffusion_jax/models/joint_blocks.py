"""Blocks of joint attention: image tokens and a text attend to both, as two streams or as one.

Two streams (MM-DiT, Esser et al. 2024, arXiv:2403.03206, figure 2b): each has its own modulation, projections and MLP,
and attention runs over the tokens of both. One stream (the single blocks of FLUX.1, as in Dehghani et al. 2023,
arXiv:2302.05442, section 2): all tokens share the projections, and attention and MLP run in parallel

    x <- x + gate(c) * (attention(h) W_1 + gelu(h W_2) W_3 + b),    h = (1 + scale(c)) * norm(x) + shift(c)
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from diffusion_jax.models.attention import Implementation, attention, split_heads
from diffusion_jax.models.dit_blocks import Mask, Tokens, Vector, modulated_norm
from diffusion_jax.models.layers import QKV, Dense, recomputed
from diffusion_jax.models.rotary import Turns, turn_pairs

Heads = tuple[Float[Array, "batch tokens heads channels"], ...]
Streams = tuple[Tokens, Tokens]
"""Image tokens, and the text's tokens."""

_xavier = nn.initializers.xavier_uniform()
_zeros = nn.initializers.zeros


def _normalised(qkv: Heads, norms: tuple[nn.Module, nn.Module] | None) -> Heads:
    """Query and key after their norms, and the value."""
    query, key, value = qkv
    return qkv if norms is None else (norms[0](query), norms[1](key), value)


def _attended(
    heads: Heads, mask: Mask | None, turns: Turns | None, implementation: Implementation | None = None
) -> Tokens:
    """The result of attention with its heads side by side; queries and keys are rotated by their positions."""
    query, key, value = heads
    if turns is not None:
        query, key = turn_pairs(query, turns), turn_pairs(key, turns)
    h = attention(query, key, value, mask=mask, implementation=implementation)
    return h.reshape(*h.shape[:2], -1)


class Stream(nn.Module, kw_only=True):
    """The part of a two-stream block for one kind of tokens: everything but the attention.

    Attributes:
      dim: channels of a token.
      num_heads: attention heads.
      mlp_ratio: hidden units of the MLP, in units of dim.
      norm_eps: added to the variance of layer norms.
      qk_norm: whether queries and keys are divided by their root mean square in each head.
      dual: whether the tokens also attend to themselves, with second projections.
      ends: whether nothing follows the attention.
      dtype: type of the computation.
    """

    dim: int
    num_heads: int
    mlp_ratio: float
    norm_eps: float
    qk_norm: bool = False
    dual: bool = False
    ends: bool = False
    dtype: DTypeLike

    def setup(self) -> None:
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        projection = functools.partial(QKV, features=self.dim, dtype=self.dtype, kernel_init=_xavier)
        norm = functools.partial(nn.RMSNorm, epsilon=1e-6, dtype=self.dtype)
        self.modulation = dense((2 if self.ends else 9 if self.dual else 6) * self.dim, kernel_init=_zeros)
        self.qkv = projection()
        if self.qk_norm:
            self.query_norm, self.key_norm = norm(), norm()
        if self.dual:
            self.dual_qkv = projection()
            self.dual_attention_out = dense(self.dim)
            if self.qk_norm:
                self.dual_query_norm, self.dual_key_norm = norm(), norm()
        if not self.ends:
            self.attention_out = dense(self.dim)
            self.mlp_in = dense(round(self.mlp_ratio * self.dim))
            self.mlp_out = dense(self.dim)
        self.normed = recomputed(functools.partial(modulated_norm, epsilon=self.norm_eps))
        self.gelu = recomputed(functools.partial(nn.gelu, approximate=True))

    def modulations(self, vector: Vector) -> list[Vector]:
        """Shift, scale and gate of the attention, of the MLP, and of the second attention, as far as they exist."""
        vectors = self.modulation(nn.silu(vector))
        return jnp.split(vectors, vectors.shape[-1] // self.dim, axis=-1)

    def projected(self, x: Tokens, modulations: list[Vector]) -> Heads:
        """Query, key and value."""
        norms = (self.query_norm, self.key_norm) if self.qk_norm else None
        return _normalised(split_heads(self.qkv(self.normed(x, *modulations[:2])), self.num_heads), norms)

    def finished(self, x: Tokens, attended: Tokens, modulations: list[Vector], turns: Turns | None = None) -> Tokens:
        """The tokens after all branches."""
        _, _, gate_1, shift_2, scale_2, gate_2, *dual = modulations
        before = x
        x += gate_1[:, None] * self.attention_out(attended)
        if self.dual:
            x += self._attended_to_itself(before, dual, turns)
        return x + gate_2[:, None] * self.mlp_out(self.gelu(self.mlp_in(self.normed(x, shift_2, scale_2))))

    def _attended_to_itself(self, x: Tokens, modulations: list[Vector], turns: Turns | None) -> Tokens:
        shift, scale, gate = modulations
        norms = (self.dual_query_norm, self.dual_key_norm) if self.qk_norm else None
        heads = _normalised(split_heads(self.dual_qkv(self.normed(x, shift, scale)), self.num_heads), norms)
        return gate[:, None] * self.dual_attention_out(_attended(heads, None, turns))


class JointBlock(nn.Module, kw_only=True):
    """Image tokens and a text, each a stream with its own parameters, that attend to both.

    In the form that scan wants. Fields are those of `Stream`, and

    Attributes:
      dual: whether image tokens also attend to themselves (SD3.5 medium).
      text_ends: whether the block only reads the text, so that no text leaves it.
      attention: the way to attend; None goes by the length.
    """

    num_heads: int
    mlp_ratio: float
    norm_eps: float
    qk_norm: bool = False
    dual: bool = False
    text_ends: bool = False
    attention: Implementation | None = None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        streams: Streams,
        vector: Vector,
        mask: Mask | None = None,
        turns: Turns | None = None,
        keep: Bool[Array, ""] | None = None,
    ) -> tuple[Streams, None]:
        """The streams after the block.

        Args:
          streams: image tokens, and the text's.
          vector: the conditioning vector.
          mask: which tokens of the text count; None: all do.
          turns: rotations for the positions of the text, followed by those of the image.
          keep: whether the block has an effect; None: it has.
        """
        x, context = streams
        fields = {
            "dim": x.shape[-1],
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "norm_eps": self.norm_eps,
            "qk_norm": self.qk_norm,
            "dtype": self.dtype,
        }
        image = Stream(**fields, dual=self.dual, name="image")
        text = Stream(**fields, ends=self.text_ends, name="text")
        of_image, of_text = image.modulations(vector), text.modulations(vector)
        pairs = zip(text.projected(context, of_text), image.projected(x, of_image), strict=True)
        heads = tuple(jnp.concatenate(pair, axis=1) for pair in pairs)
        h = _attended(heads, whole_mask(mask, x.shape[1]), turns, self.attention)
        length = context.shape[1]
        of_own = None if turns is None else tuple(part[..., length:, :] for part in turns)
        after = image.finished(x, h[:, length:], of_image, of_own)
        after = (after, context if self.text_ends else text.finished(context, h[:, :length], of_text))
        return kept(after, streams, keep), None


class SingleBlock(nn.Module, kw_only=True):
    """Text and image as one sequence, with attention and MLP in parallel; the arguments are those of `JointBlock`."""

    num_heads: int
    mlp_ratio: float
    norm_eps: float
    qk_norm: bool = False
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        vector: Vector,
        mask: Mask | None = None,
        turns: Turns | None = None,
        keep: Bool[Array, ""] | None = None,
    ) -> tuple[Tokens, None]:
        """The tokens after the block; `mask` covers all of them."""
        dim = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        norm = functools.partial(nn.RMSNorm, epsilon=1e-6, dtype=self.dtype)
        gelu = recomputed(functools.partial(nn.gelu, approximate=True))
        modulation = dense(3 * dim, kernel_init=_zeros, name="modulation")(nn.silu(vector))
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        h = recomputed(functools.partial(modulated_norm, epsilon=self.norm_eps))(x, shift, scale)

        qkv = QKV(features=dim, dtype=self.dtype, kernel_init=_xavier, name="qkv")(h)
        norms = (norm(name="query_norm"), norm(name="key_norm")) if self.qk_norm else None
        attended = _attended(_normalised(split_heads(qkv, self.num_heads), norms), mask, turns)
        hidden = gelu(dense(round(self.mlp_ratio * dim), name="mlp_in")(h))
        h = dense(dim, use_bias=False, name="attention_out")(attended) + dense(dim, name="mlp_out")(hidden)
        return kept(x + gate[:, None] * h, x, keep), None


def whole_mask(mask: Mask | None, image_tokens: int) -> Mask | None:
    """The mask for a text followed by an image, from the mask of the text."""
    if mask is None:
        return None
    return jnp.concatenate([mask, jnp.ones((mask.shape[0], image_tokens), bool)], axis=1)


def kept(after: Streams | Tokens, before: Streams | Tokens, keep: Bool[Array, ""] | None) -> Streams | Tokens:
    """The output of a block, or its input if the block is skipped."""
    return after if keep is None else jax.tree.map(functools.partial(jnp.where, keep), after, before)
