"""The single-stream transformer on packed sequences: text and image tokens are one sequence from the first block on.

This is the network of Ideogram 4. All tokens share all parameters; an embedding of two rows marks text and image. Norms
are root mean squares with a scale, before and after each branch, and the gates are bounded

    x <- x + tanh(gate_1(c)) * norm(attention((1 + scale_1(c)) * norm(x)))
    x <- x + tanh(gate_2(c)) * norm(swiglu   ((1 + scale_2(c)) * norm(x)))

Positions have three axes (time, row, column) that rotate interleaved pairs of channels (Wang et al. 2024, Qwen2-VL,
arXiv:2409.12191, section 2.1). A text has 0, 1, 2 ... on all three axes, an image begins at 65,536, so positions are
always at least float32. Several examples may be packed into one sequence, each with its own time: tokens attend within
their segment.
"""

import functools
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import attention, split_heads
from diffusion_jax.models.dit import checkpointed, patchify
from diffusion_jax.models.dit_blocks import Mask, Tokens
from diffusion_jax.models.joint_blocks import whole_mask
from diffusion_jax.models.layers import (
    QKV,
    Dense,
    LabelEmbedding,
    TimeMLP,
    at_least_float32,
    depth_to_space,
    layer_norm,
    recomputed,
    sinusoidal_embedding,
)
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.rotary import Turns, grid_positions, rotary_frequencies, turn_halves
from diffusion_jax.specs import ConditionSpec

IMAGE_POSITIONS = 65_536
"""The position, on every axis, of the first token of an image."""
TEXT, IMAGE = 0, 1  # rows of the embedding that marks text and image
_HEAD_EPS = 1e-5  # of the norms of queries and keys
_FINAL_EPS = _TEXT_EPS = 1e-6

_xavier = nn.initializers.xavier_uniform()
_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros

Vectors = Float[Array, "batch one_or_tokens dim"]
"""Conditioning vectors: one for all tokens of a sequence, or one for each token."""


class Packing(NamedTuple):
    """How sequences are packed.

    Attributes:
      order: for every place of the sequence, the number of its token among the text's tokens followed by the image's.
      positions: (time, row, column) of every token.
      segments: tokens with equal numbers belong together.
    """

    order: Int[Array, "batch tokens"]
    positions: Int[Array, "batch tokens 3"]
    segments: Int[Array, "batch tokens"]


class PackedBlock(nn.Module, kw_only=True):
    """One block, in the form that a scan needs; the fields are those of `PackedTransformer`."""

    num_heads: int
    mlp_size: int
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        vectors: Vectors,
        turns: Turns,
        mask: Mask | None,
        segments: Int[Array, "batch tokens"] | None,
    ) -> tuple[Tokens, None]:
        dim = x.shape[-1]
        dense = functools.partial(Dense, use_bias=False, dtype=self.dtype, kernel_init=_xavier)
        norm = functools.partial(nn.RMSNorm, epsilon=self.norm_eps, dtype=self.dtype)
        head_norm = functools.partial(nn.RMSNorm, epsilon=_HEAD_EPS, dtype=self.dtype)
        modulation = Dense(4 * dim, dtype=self.dtype, kernel_init=_zeros, name="modulation")(vectors)
        scale_1, gate_1, scale_2, gate_2 = jnp.split(modulation, 4, axis=-1)

        qkv = QKV(features=dim, use_bias=False, dtype=self.dtype, kernel_init=_xavier, name="qkv")
        query, key, value = split_heads(qkv(norm(name="norm_0")(x) * (1 + scale_1)), self.num_heads)
        query = turn_halves(head_norm(name="query_norm")(query), turns)
        key = turn_halves(head_norm(name="key_norm")(key), turns)
        h = attention(query, key, value, mask=mask, segments=segments).reshape(x.shape)
        x += jnp.tanh(gate_1) * norm(name="norm_1")(dense(dim, name="attention_out")(h))

        h = dense(2 * self.mlp_size, name="mlp_in")(norm(name="norm_2")(x) * (1 + scale_2))
        gated = recomputed(lambda gate, h: nn.silu(gate) * h)
        h = dense(dim, name="mlp_out")(gated(*jnp.split(h, 2, axis=-1)))
        return x + jnp.tanh(gate_2) * norm(name="norm_3")(h), None


class PackedTransformer(Network, kw_only=True):
    """The single-stream transformer on packed sequences.

    Further conditions: "context" [batch, length, context_channels], a language model's states of a text, possibly of
      length
    0, and optionally "context_mask". Masked tokens may be anywhere; positions count only the unmasked ones.

    Attributes:
      image_size: nominal; x may have any height and width that divide by the patch.
      patch_size: side of a patch.
      hidden_size: channels of a token.
      depth: transformer blocks.
      num_heads: attention heads of a block.
      mlp_size: hidden units of the SwiGLU.
      modulation_size: width of the conditioning vector.
      context_channels: width of a token of the text.
      time_scale: factor on the time before its embedding.
      rotary_sections: pairs of channels rotated by time, row and column; time rotates the remaining pairs of a head.
      rotary_theta: the base of the frequencies.
      norm_eps: added to the mean square of the blocks' norms.
      remat: what the backward pass keeps: all ("none"), block inputs ("full") or results of dense layers ("dots").
    """

    patch_size: int = 1
    hidden_size: int = 4608
    depth: int = 34
    num_heads: int = 18
    mlp_size: int = 12_288
    modulation_size: int = 512
    context_channels: int = 53_248
    time_scale: float = 10_000.0
    rotary_sections: tuple[int, ...] = (24, 20, 20)
    rotary_theta: float = 5_000_000.0
    norm_eps: float = 1e-5
    remat: Literal["none", "full", "dots"] = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"PackedTransformer: hidden_size={self.hidden_size} must be divisible by 2 num_heads = "
                f"{2 * self.num_heads} (pairs of channels turn together)"
            )
        pairs = self.hidden_size // self.num_heads // 2
        if len(self.rotary_sections) != 3 or 3 * max(self.rotary_sections[1:]) > pairs + 2:
            raise UserError(
                f"PackedTransformer: rotary_sections={self.rotary_sections} must be three numbers, of which row and "
                f"column take every third of the {pairs} pairs of a head"
            )
        checkpointed(PackedBlock, self.remat)

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        return {**super().takes, "context": ConditionSpec(shape=(None, self.context_channels))}

    def setup(self) -> None:
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        self.time = TimeMLP(features=self.hidden_size, kernel_init=_normal)
        if self.num_times == 2:
            self.interval = TimeMLP(features=self.hidden_size, kernel_init=_normal)
        if self.num_classes:
            wide = at_least_float32(self.dtype)
            self.label = LabelEmbedding(
                num_classes=self.num_classes, features=self.hidden_size, init=_normal, dtype=wide
            )
        self.vector = Dense(self.modulation_size, kernel_init=_xavier)
        self.patch_embedding = dense(self.hidden_size)
        self.context_norm = nn.RMSNorm(epsilon=_TEXT_EPS, dtype=self.dtype)
        self.context_embedding = dense(self.hidden_size)
        self.role = nn.Embed(2, self.hidden_size, dtype=self.dtype, embedding_init=_normal)
        stack = nn.scan(
            checkpointed(PackedBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * 4,
            length=self.depth,
        )
        self.blocks = stack(num_heads=self.num_heads, mlp_size=self.mlp_size, norm_eps=self.norm_eps, dtype=self.dtype)
        self.final_modulation = dense(self.hidden_size, kernel_init=_zeros)
        self.final_linear = dense(self.patch_size**2 * self.image_channels, kernel_init=_zeros)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """See `Network`. There is no dropout: `dropout_keys` changes nothing. UserError where a size does not fit."""
        del dropout_keys
        self.check_inputs(x, time, conditions)
        if any(side % self.patch_size or not side for side in x.shape[1:3]):
            raise UserError(
                f"PackedTransformer: the sides of x, {x.shape[1]} x {x.shape[2]}, must be divisible by "
                f"patch_size={self.patch_size}"
            )
        context, mask = conditions["context"], conditions.get("context_mask")
        rows, columns = (side // self.patch_size for side in x.shape[1:3])
        h = self._embedded(patchify(x, self.patch_size), context, mask)
        turns = self._turns(_positions(context.shape[:2], mask, rows, columns), h.dtype)
        vectors = self._vectors(time[:, None], conditions)
        h, _ = self.blocks(h, vectors, turns, whole_mask(mask, rows * columns), None)
        h = self._final(h[:, context.shape[1] :], vectors).reshape(x.shape[0], rows, columns, -1)
        h = depth_to_space(h, self.patch_size)
        return h.astype(at_least_float32(h.dtype))

    def packed(
        self,
        tokens: Float[Array, "batch image_tokens patch_channels"],
        time: Float[Array, "batch tokens"],
        context: Float[Array, "batch text_tokens context_channels"],
        packing: Packing,
    ) -> Float[Array, "batch tokens patch_channels"]:
        """The output for sequences into which several examples are packed; at the places of texts it has no meaning.

        Args:
          tokens: the patches of all images of a sequence, one image after the other.
          time: time of every place of the sequence.
          context: the tokens of all texts of a sequence.
          packing: the place and the segment of each token.
        """
        h = jnp.take_along_axis(self._embedded(tokens, context, None), packing.order[..., None], axis=1)
        vectors = self._vectors(time, {})
        h, _ = self.blocks(h, vectors, self._turns(packing.positions, h.dtype), None, packing.segments)
        h = self._final(h, vectors)
        return h.astype(at_least_float32(h.dtype))

    def _embedded(self, patches: Tokens, context: Tokens, mask: Mask | None) -> Tokens:
        """The tokens of the text, followed by those of the image."""
        text = self.context_embedding(self.context_norm(context))
        if mask is not None:
            text = jnp.where(mask[..., None], text, 0)
        roles = self.role(jnp.array([TEXT, IMAGE]))
        return jnp.concatenate([text + roles[TEXT], self.patch_embedding(patches) + roles[IMAGE]], axis=1)

    def _vectors(self, time: Float[Array, "batch one_or_tokens"], conditions: Conditions) -> Vectors:
        """The conditioning vectors."""
        vectors = self.time(self._waves(time))
        if self.num_times == 2:
            vectors += self.interval(self._waves(time - conditions["second_time"][:, None]))
        if self.num_classes:
            vectors += self.label(conditions["label"])[:, None]
        return nn.silu(self.vector(vectors))

    def _waves(self, time: Float[Array, "batch one_or_tokens"]) -> Vectors:
        waves = sinusoidal_embedding(self.time_scale * time.reshape(-1), self.hidden_size)
        return waves.reshape(*time.shape, -1)

    def _turns(self, positions: Int[Array, "batch tokens 3"], dtype: DTypeLike) -> Turns:
        """Pair i is rotated by row where i = 1, by column where i = 2 modulo 3, within the sections, and else by
        time."""
        wide = at_least_float32(dtype)
        head = self.hidden_size // self.num_heads
        axes = np.zeros(head // 2, np.int32)
        for axis in (1, 2):
            axes[axis : 3 * self.rotary_sections[axis] : 3] = axis
        angles = positions.astype(wide)[..., axes] * jnp.asarray(rotary_frequencies(head, self.rotary_theta), wide)
        return jnp.cos(angles), jnp.sin(angles)

    def _final(self, h: Tokens, vectors: Vectors) -> Tokens:
        scale = 1 + self.final_modulation(nn.silu(vectors))
        return self.final_linear(layer_norm(h, _FINAL_EPS) * scale)


def _positions(
    text: tuple[int, int], mask: Bool[Array, "batch length"] | None, rows: int, columns: int
) -> Int[Array, "batch tokens 3"]:
    """Positions of a text with the shape [batch, length], counted over its mask, followed by those of an image."""
    mask = jnp.ones(text, bool) if mask is None else mask
    of_text = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0).astype(jnp.int32)
    of_image = IMAGE_POSITIONS + grid_positions(rows, columns).astype(np.int32)
    of_image = jnp.broadcast_to(of_image, (text[0], *of_image.shape))
    return jnp.concatenate([jnp.repeat(of_text[..., None], 3, axis=-1), of_image], axis=1)


MODELS.register(
    "packed_transformer",
    example={
        "image_size": 4,
        "image_channels": 2,
        "num_classes": 3,
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_size": 12,
        "modulation_size": 8,
        "context_channels": 6,
        "time_scale": 1.0,
        "rotary_sections": (2, 1, 1),
    },
)(PackedTransformer)
