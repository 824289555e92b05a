"""JiT, "just image transformers" (Li & He 2025): a plain transformer on large patches that predicts the image.

The blocks are DiT's with newer parts: root-mean-square norms with a scale, queries and keys normalised likewise, rotary
position embeddings of row and column, SwiGLU. The patch embedding goes through a bottleneck, since images lie near a
low-dimensional manifold. From block `context_start` on, tokens that carry the class precede the patches.

The module has nothing to do with `jax.jit`.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import attention, split_heads
from diffusion_jax.models.dit import checkpointed, named_size, patchify, unpatchify
from diffusion_jax.models.dit_blocks import TIME_WAVES, Tokens, Vector, modulate
from diffusion_jax.models.layers import (
    QKV,
    Dense,
    Dropout,
    LabelEmbedding,
    TimeMLP,
    at_least_float32,
    recomputed,
    sinusoidal_embedding,
)
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.positions import position_embedding
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.rotary import Turns, axial_turns, grid_positions, turn_pairs


class JiTSize(NamedTuple):
    """A row of the paper's table 9."""

    depth: int
    hidden_size: int
    num_heads: int
    bottleneck: int
    context_start: int
    dropout: float


JIT_SIZES: dict[str, JiTSize] = {
    "B": JiTSize(12, 768, 12, 128, 4, 0.0),
    "L": JiTSize(24, 1024, 16, 128, 8, 0.0),
    "H": JiTSize(32, 1280, 16, 256, 10, 0.2),
    "G": JiTSize(40, 1664, 16, 256, 10, 0.2),
}

_xavier = nn.initializers.xavier_uniform()
_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros


def rotary_turns(grid: int, dim: int, prefix: int, dtype: DTypeLike) -> Turns:
    """Rotations for heads of `dim` channels: by the row in the first half, by the column in the second.

    The `prefix` tokens before the patches are not rotated.
    """
    patches = grid_positions(grid, grid)[:, 1:]
    positions = np.concatenate([np.zeros((prefix, 2)), patches])
    return axial_turns(positions, (dim // 2, dim // 2), 10_000.0, at_least_float32(dtype))


class JiTBlock(nn.Module, kw_only=True):
    """One block, in the form that scan wants: (carry, number of the block and its dropout rate; the rest broadcast)."""

    num_heads: int
    mlp_ratio: float
    prefix: int
    has_dropout: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        layer: tuple[Int[Array, ""], Float[Array, ""]],
        vector: Vector,
        dropout_keys: Key[Array, " batch"] | None,
    ) -> tuple[Tokens, None]:
        tokens, dim = x.shape[1:]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        norm = functools.partial(nn.RMSNorm, epsilon=1e-6, dtype=self.dtype)

        def drop(h, name):
            if not self.has_dropout:
                return h
            return Dropout(rate=layer[1], name=name)(h, dropout_keys, layer[0])

        modulation = dense(6 * dim, kernel_init=_zeros, name="modulation")(nn.silu(vector))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        qkv = QKV(features=dim, dtype=self.dtype, kernel_init=_xavier, name="qkv")
        query, key, value = split_heads(qkv(modulate(norm(name="norm_0")(x), shift_1, scale_1)), self.num_heads)
        turns = rotary_turns(round((tokens - self.prefix) ** 0.5), dim // self.num_heads, self.prefix, query.dtype)
        query = turn_pairs(norm(name="query_norm")(query), turns)
        key = turn_pairs(norm(name="key_norm")(key), turns)
        h = dense(dim, name="attention_out")(attention(query, key, value).reshape(x.shape))
        x += gate_1[:, None] * drop(h, "dropout_0")

        width = int(int(self.mlp_ratio * dim) * 2 / 3)
        h = dense(2 * width, name="mlp_in")(modulate(norm(name="norm_1")(x), shift_2, scale_2))
        gated = recomputed(lambda gate, h: nn.silu(gate) * h)
        h = gated(*jnp.split(h, 2, axis=-1))
        x += gate_2[:, None] * dense(dim, name="mlp_out")(drop(h, "dropout_1"))
        return x, None


class JiT(Network, kw_only=True):
    """JiT; built by size through the factory `jit`, or field by field.

    Attributes:
      patch_size: side of a patch, in pixels.
      hidden_size: channels of a token.
      depth: transformer blocks.
      num_heads: attention heads of a block.
      bottleneck: width of the first of the two layers that embed a patch.
      context_tokens: tokens that carry the class; 0 for none. Without classes there are none.
      context_start: the block before which they are inserted.
      mlp_ratio: 3/2 of the hidden units of the SwiGLU, in units of hidden_size.
      dropout: rate in the blocks of the second and third quarter; active if dropout keys are given.
      remat: what the backward pass keeps: all ("none"), block inputs ("full") or results of dense layers ("dots").
      out_channels: channels of the output; None means image_channels.
    """

    patch_size: int = 16
    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    bottleneck: int = 128
    context_tokens: int = 32
    context_start: int = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    remat: str = "none"
    out_channels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise UserError(f"JiT: image_size={self.image_size} is not divisible by patch_size={self.patch_size}")
        if self.hidden_size % (4 * self.num_heads):
            raise UserError(
                f"JiT: hidden_size={self.hidden_size} must be divisible by 4 num_heads = {4 * self.num_heads} "
                "(pairs of channels for row and column)"
            )
        if not 0 < self.context_start < self.depth:
            raise UserError(f"JiT: context_start={self.context_start} must lie between 0 and depth={self.depth}")
        checkpointed(JiTBlock, self.remat)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """See `Network`. UserError for other image sizes."""
        self.check_inputs(x, time, conditions)
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise UserError(f"JiT is built for {self.image_size} x {self.image_size} images, got {x.shape[1:3]}")
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)

        vector = self._time(time, "time")
        if self.num_times == 2:
            vector += self._time(time - conditions["second_time"], "interval")
        label = None
        if self.num_classes:
            table = LabelEmbedding(
                num_classes=self.num_classes, features=self.hidden_size, init=_normal, dtype=self.dtype, name="label"
            )
            label = table(conditions["label"])
            vector += label

        h = dense(self.bottleneck, use_bias=False, name="patch_bottleneck")(patchify(x, self.patch_size))
        h = dense(self.hidden_size, name="patch_embedding")(h)
        h += jnp.asarray(position_embedding(self.image_size // self.patch_size, self.hidden_size), h.dtype)

        prefix = self.context_tokens if self.num_classes else 0
        h = self._blocks(h, vector, dropout_keys, name="before", start=0, stop=self.context_start, prefix=0)
        if prefix:
            position = self.param("context_position", _normal, (prefix, self.hidden_size), jnp.float32)
            context = label[:, None] + position.astype(h.dtype)
            h = jnp.concatenate([context.astype(h.dtype), h], axis=1)
        h = self._blocks(
            h, vector, dropout_keys, name="after", start=self.context_start, stop=self.depth, prefix=prefix
        )

        shift, scale = jnp.split(
            dense(2 * self.hidden_size, kernel_init=_zeros, name="modulation")(nn.silu(vector)), 2, axis=-1
        )
        h = nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name="norm_out")(h[:, prefix:])
        out_channels = self.out_channels or self.image_channels
        h = dense(self.patch_size**2 * out_channels, kernel_init=_zeros, name="linear_out")(modulate(h, shift, scale))
        h = unpatchify(h, self.patch_size, self.image_size)
        return h.astype(at_least_float32(h.dtype))

    def _time(self, time, name):
        """A time as a vector."""
        waves = sinusoidal_embedding(time, TIME_WAVES, flip_sin_to_cos=True, frequency_shift=0)
        return TimeMLP(features=self.hidden_size, kernel_init=_normal, name=name)(waves)

    def _blocks(self, h, vector, dropout_keys, *, name, start, stop, prefix):
        """Blocks start ... stop - 1 as one scan."""
        numbers = np.arange(start, stop)
        middle = (numbers >= self.depth // 4) & (numbers < self.depth // 4 * 3)
        stack = nn.scan(
            checkpointed(JiTBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=stop - start,
        )(
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            prefix=prefix,
            has_dropout=self.dropout > 0 and dropout_keys is not None,
            dtype=self.dtype,
            name=name,
        )
        layers = (jnp.asarray(numbers, jnp.int32), jnp.asarray(middle * self.dropout, jnp.float32))
        return stack(h, layers, vector, dropout_keys)[0]


@MODELS.register(
    "jit",
    example={
        "image_size": 4,
        "image_channels": 2,
        "num_classes": 3,
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 4,
        "num_heads": 2,
        "bottleneck": 6,
        "context_tokens": 3,
        "context_start": 1,
        "dropout": 0.5,
    },
)
def jit(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    size: str = "B/16",
    patch_size: int | None = None,
    hidden_size: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    bottleneck: int | None = None,
    context_tokens: int = 32,
    context_start: int | None = None,
    dropout: float | None = None,
    remat: str = "none",
    out_channels: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> JiT:
    """A JiT of a named size: B, L, H or G, a slash, and the patch size, as in "B/16"; other arguments override it."""
    named, patch = named_size("JiT", size, JIT_SIZES, patches=(16, 32))
    return JiT(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        patch_size=patch_size or patch,
        hidden_size=hidden_size or named.hidden_size,
        depth=depth or named.depth,
        num_heads=num_heads or named.num_heads,
        bottleneck=bottleneck or named.bottleneck,
        context_tokens=context_tokens,
        context_start=context_start or named.context_start,
        dropout=named.dropout if dropout is None else dropout,
        remat=remat,
        out_channels=out_channels,
        dtype=dtype,
    )
