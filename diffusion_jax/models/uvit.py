"""U-ViT (Bao et al. 2023): a vision transformer over tokens of time, label, text and patches, with long skips.

Block i of the first half passes its tokens to block depth - 1 - i of the second half, where a dense layer merges the
two; each half is one scan over stacked parameters. A 3x3 convolution after the last layer smooths the seams between
patches.
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
from diffusion_jax.models.layers import (
    QKV,
    Conv,
    Dense,
    LabelEmbedding,
    at_least_float32,
    recomputed,
    sinusoidal_embedding,
)
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.specs import ConditionSpec

# Table 1 of the paper: name -> (depth, hidden size, heads); depth counts all blocks except the middle one.
UVIT_SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 512, 8),
    "S-deep": (16, 512, 8),
    "M": (16, 768, 12),
    "L": (20, 1024, 16),
    "H": (28, 1152, 16),
    "S-text": (12, 512, 8),  # MS-COCO
    "S-deep-text": (16, 512, 8),
}
# Channels and tokens of the text before the patches: CLIP ViT-L/14's (the authors' libs/uvit_t2i.py).
UVIT_CONTEXTS: dict[str, tuple[int, int]] = {"S-text": (768, 77), "S-deep-text": (768, 77)}

_init = nn.initializers.truncated_normal(0.02)


class UViTBlock(nn.Module, kw_only=True):
    """Merge with the skip, if there is one; attention and MLP, each on a residual branch after a layer norm."""

    num_heads: int
    mlp_ratio: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, skip: Tokens | None) -> tuple[Tokens, Tokens]:
        dim = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_init)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        if skip is not None:
            x = dense(dim, name="skip")(jnp.concatenate([x, skip], axis=-1))
        qkv = QKV(features=dim, use_bias=False, dtype=self.dtype, kernel_init=_init, name="qkv")
        h = self_attention(qkv(norm(name="norm_0")(x)), self.num_heads)
        x += dense(dim, name="attention_out")(h)
        h = dense(round(self.mlp_ratio * dim), name="mlp_in")(norm(name="norm_1")(x))
        x += dense(dim, name="mlp_out")(recomputed(functools.partial(nn.gelu, approximate=False))(h))
        return x, x


class UViT(Network, kw_only=True):
    """U-ViT; built by size through the factory `uvit`, or field by field.

    Attributes:
      patch_size: side of a patch, in pixels.
      hidden_size: channels of a token.
      depth: transformer blocks, an even number that does not count the middle one.
      num_heads: attention heads of a block.
      mlp_ratio: hidden units of the MLP, in units of hidden_size.
      time_mlp: whether the time embedding goes through two dense layers.
      last_convolution: whether a 3x3 convolution follows the patches; the paper has none on latents for size H.
      null_row: whether the null class has a row in the table of labels.
      context_channels: channels of the slot "context", [batch, context_tokens, context_channels]; every vector
        becomes a token; 0: none. The null context is zeros.
      context_tokens: vectors of the slot "context".
      remat: what the backward pass keeps: all ("none"), block inputs ("full") or results of dense layers ("dots").
      out_channels: channels of the output; None means image_channels.
    """

    is_convolutional: ClassVar[bool] = True

    zero_at_init: ClassVar[bool] = False

    patch_size: int = 2
    hidden_size: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    time_mlp: bool = False
    last_convolution: bool = True
    null_row: bool = True
    context_channels: int = 0
    context_tokens: int = 77
    remat: str = "none"
    out_channels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        checkpointed(UViTBlock, self.remat)
        if self.image_size % self.patch_size:
            raise UserError(f"UViT: image_size={self.image_size} is not divisible by patch_size={self.patch_size}")
        if self.depth % 2 or self.hidden_size % self.num_heads:
            raise UserError(
                f"UViT: depth={self.depth} must be even and hidden_size={self.hidden_size} divide by "
                f"num_heads={self.num_heads}"
            )

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        slots = super().takes
        if self.context_channels:
            slots["context"] = ConditionSpec(shape=(self.context_tokens, self.context_channels))
        return slots

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
            raise UserError(f"UViT is built for {self.image_size} x {self.image_size} images, got {x.shape[1:3]}")
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_init)

        extra = [self._time_token(time, "time")]
        if self.num_times == 2:
            extra.insert(0, self._time_token(time - conditions["second_time"], "interval"))
        if self.num_classes:
            table = LabelEmbedding(
                num_classes=self.num_classes,
                features=self.hidden_size,
                null="row" if self.null_row else "zero",
                dtype=self.dtype,
                name="label",
            )
            extra.insert(0, table(conditions["label"])[:, None])
        if self.context_channels:
            extra.append(dense(self.hidden_size, name="context")(conditions["context"].astype(self.dtype)))
        others = sum(token.shape[1] for token in extra)
        patches = dense(self.hidden_size, name="patch_embedding")(patchify(x, self.patch_size))
        h = jnp.concatenate([*(token.astype(patches.dtype) for token in extra), patches], axis=1)
        h += self.param("position", _init, h.shape[1:], jnp.float32).astype(h.dtype)

        block = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "dtype": self.dtype}

        def half(name, skips):
            stack = nn.scan(
                checkpointed(UViTBlock, self.remat),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast if skips is None else 0,
                length=self.depth // 2,
            )
            return stack(**block, name=name)(h, skips)

        h, skips = half("down", None)
        h, _ = UViTBlock(**block, name="middle")(h, None)
        h, _ = half("up", skips[::-1])

        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm_out")(h)
        out_channels = self.out_channels or self.image_channels
        h = dense(self.patch_size**2 * out_channels, name="linear_out")(h)[:, others:]
        h = unpatchify(h, self.patch_size, self.image_size)
        if self.last_convolution:
            h = Conv(out_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(h)
        return h.astype(at_least_float32(h.dtype))

    def _time_token(self, time, name):
        """The time as a token."""
        waves = sinusoidal_embedding(time, self.hidden_size, flip_sin_to_cos=True, frequency_shift=0)
        if self.time_mlp:
            hidden = nn.silu(Dense(4 * self.hidden_size, kernel_init=_init, name=f"{name}_0")(waves))
            waves = Dense(self.hidden_size, kernel_init=_init, name=f"{name}_1")(hidden)
        return waves[:, None]


@MODELS.register(
    "uvit",
    example={
        "image_size": 4,
        "image_channels": 2,
        "num_classes": 3,
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 4,
        "num_heads": 2,
        "time_mlp": True,
    },
)
def uvit(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    size: str = "S/2",
    patch_size: int | None = None,
    hidden_size: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    time_mlp: bool = False,
    last_convolution: bool = True,
    null_row: bool = True,
    context_channels: int | None = None,
    context_tokens: int | None = None,
    remat: str = "none",
    out_channels: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> UViT:
    """A U-ViT of a named size: S, S-deep, M, L, H, S-text or S-deep-text, a slash, and the patch size, as in "H/2"."""
    (named_depth, named_hidden_size, named_num_heads), patch = named_size("UViT", size, UVIT_SIZES, patches=(2, 4))
    named_channels, named_tokens = UVIT_CONTEXTS.get(size.partition("/")[0], (0, 77))
    return UViT(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        patch_size=patch_size or patch,
        hidden_size=hidden_size or named_hidden_size,
        depth=depth or named_depth,
        num_heads=num_heads or named_num_heads,
        time_mlp=time_mlp,
        last_convolution=last_convolution,
        null_row=null_row,
        context_channels=named_channels if context_channels is None else context_channels,
        context_tokens=context_tokens or named_tokens,
        remat=remat,
        out_channels=out_channels,
        dtype=dtype,
    )
