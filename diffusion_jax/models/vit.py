"""The plain vision transformer of Min-SNR (Hang et al. 2023): time, label and patches are tokens, without long skips.

Pre-norm blocks have biases for query and value, and none for key. The time selects a row of a table with one row for
each of `num_steps` discrete times, and so does the label; no norm follows the last block. A time between two rows is
interpolated smoothly, so that the network has a derivative in time; the authors round it.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.dit import checkpointed, named_size, patchify, unpatchify
from diffusion_jax.models.dit_blocks import Tokens
from diffusion_jax.models.layers import QKV, Dense, LabelEmbedding, at_least_float32, recomputed
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS

# The authors' code: name -> (depth, hidden size, heads).
VIT_SIZES: dict[str, tuple[int, int, int]] = {"B": (12, 768, 12), "L": (21, 1024, 16), "XL": (28, 1152, 16)}

_init = nn.initializers.truncated_normal(0.02)


class ViTBlock(nn.Module, kw_only=True):
    """Attention and MLP, each on a residual branch behind a layer norm."""

    num_heads: int
    mlp_ratio: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens) -> tuple[Tokens, None]:
        dim = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_init)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        qkv = QKV(features=dim, use_bias=False, dtype=self.dtype, kernel_init=_init, name="qkv")
        query, key, value = qkv(norm(name="norm_0")(x))
        query += self.param("query_bias", nn.initializers.zeros, (dim,)).astype(query.dtype)
        value += self.param("value_bias", nn.initializers.zeros, (dim,)).astype(value.dtype)
        x += dense(dim, name="attention_out")(self_attention((query, key, value), self.num_heads))
        h = dense(round(self.mlp_ratio * dim), name="mlp_in")(norm(name="norm_1")(x))
        x += dense(dim, name="mlp_out")(recomputed(functools.partial(nn.gelu, approximate=False))(h))
        return x, None


class ViT(Network, kw_only=True):
    """Min-SNR's transformer; built by size through the factory `vit`, or field by field.

    Attributes:
      patch_size: side of a patch, in pixels.
      hidden_size: channels of a token.
      depth: transformer blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden units of the MLP, in units of hidden_size.
      num_steps: rows of the table of times (time_input discrete_index).
      remat: what the backward pass keeps: all ("none"), block inputs ("full") or results of dense layers ("dots").
      out_channels: channels of the output; None means image_channels.
    """

    zero_at_init: ClassVar[bool] = False

    patch_size: int = 2
    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_steps: int = 4000
    remat: str = "none"
    out_channels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        checkpointed(ViTBlock, self.remat)
        if self.image_size % self.patch_size or self.hidden_size % self.num_heads:
            raise UserError(
                f"ViT: image_size={self.image_size} must be divisible by patch_size={self.patch_size}, and "
                f"hidden_size={self.hidden_size} by num_heads={self.num_heads}"
            )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """See `Network`. There is no dropout: `dropout_keys` changes nothing. UserError for other image sizes."""
        del dropout_keys
        self.check_inputs(x, time, conditions)
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise UserError(f"ViT is built for {self.image_size} x {self.image_size} images, got {x.shape[1:3]}")
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_init)

        extra = [self._time_token(time, "time")]
        if self.num_times == 2:
            extra.append(self._time_token(time - conditions["second_time"], "interval"))
        if self.num_classes:
            wide = at_least_float32(self.dtype)
            table = LabelEmbedding(num_classes=self.num_classes, features=self.hidden_size, dtype=wide, name="label")
            extra.append(table(conditions["label"])[:, None])
        patches = dense(self.hidden_size, name="patch_embedding")(patchify(x, self.patch_size))
        h = jnp.concatenate([*(token.astype(patches.dtype) for token in extra), patches], axis=1)
        h += self.param("position", _init, h.shape[1:], jnp.float32).astype(h.dtype)

        stack = nn.scan(
            checkpointed(ViTBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        h, _ = stack(num_heads=self.num_heads, mlp_ratio=self.mlp_ratio, dtype=self.dtype, name="blocks")(h)
        out_channels = self.out_channels or self.image_channels
        h = h[:, len(extra) :].astype(at_least_float32(h.dtype))
        h = Dense(self.patch_size**2 * out_channels, kernel_init=nn.initializers.truncated_normal(2e-5), name="out")(h)
        return unpatchify(h, self.patch_size, self.image_size)

    def _time_token(self, time: Float[Array, " batch"], name: str) -> Float[Array, "batch 1 hidden_size"]:
        """The rows of a table around a time, weighted by their distance."""
        table = self.param(name, nn.initializers.normal(1.0), (self.num_steps, self.hidden_size), jnp.float32)
        table, place = jnp.asarray(table), jnp.clip(time, 0, self.num_steps - 1)
        below = jnp.minimum(jnp.floor(place).astype(jnp.int32), self.num_steps - 2)
        share = (place - below)[:, None]
        share = share**2 * (3 - 2 * share)  # no kink at a row
        return ((1 - share) * table[below] + share * table[below + 1])[:, None]


@MODELS.register(
    "vit",
    example={
        "image_size": 4,
        "image_channels": 2,
        "num_classes": 3,
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 2,
        "num_heads": 2,
        "num_steps": 1000,
    },
)
def vit(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    size: str = "B/2",
    patch_size: int | None = None,
    hidden_size: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    num_steps: int = 4000,
    remat: str = "none",
    out_channels: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> ViT:
    """A ViT of a named size: B, L or XL, a slash, and the patch size, as in "XL/2"."""
    (named_depth, named_hidden_size, named_num_heads), patch = named_size("ViT", size, VIT_SIZES, patches=(2, 4))
    return ViT(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        patch_size=patch_size or patch,
        hidden_size=hidden_size or named_hidden_size,
        depth=depth or named_depth,
        num_heads=num_heads or named_num_heads,
        num_steps=num_steps,
        remat=remat,
        out_channels=out_channels,
        dtype=dtype,
    )
