"""The U-Net of DDPM (Ho et al. 2020, appendix B).

Levels l = 0 ... L-1 work at 1 / 2^l of the resolution with `base_channels * channel_multipliers[l]` channels. On the
way down each level has `num_res_blocks` residual blocks and keeps every result; on the way up it has one block more,
each taking one kept result along. At the resolutions of `attention_resolutions` self-attention follows every residual
block, down and up; the middle has block, attention, block. The time embedding enters every residual block by
addition.

The last layer of every residual branch, and of the network, starts at zero (the paper's code scales it by 1e-10): a
fresh network outputs zero.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers import Dropout, GroupNorm, TimeMLP, at_least_float32, attention, sinusoidal_embedding
from diffusion_jax.models.network import Conditioning, Network
from diffusion_jax.models.registry import MODELS

Image = Float[Array, "batch height width channels"]

# Glorot's rule, uniform: the paper's initialisation of everything that is not zero.
_glorot = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
# Three [C, C] kernels side by side have twice the mean fan of one: scale 2 gives each the variance of its own.
_glorot_qkv = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
_zeros = nn.initializers.zeros


class ResBlock(nn.Module, kw_only=True):
    """norm, SiLU, conv, + time; norm, SiLU, dropout, conv; + shortcut."""

    features: int
    dropout: float
    norm: functools.partial
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Image, embedding: Float[Array, "batch dim"], dropout_keys: Key[Array, " batch"] | None
    ) -> Image:
        conv = functools.partial(nn.Conv, self.features, (3, 3), padding=1, dtype=self.dtype)
        dense = functools.partial(nn.Dense, self.features, dtype=self.dtype, kernel_init=_glorot)

        h = conv(kernel_init=_glorot, name="conv_0")(nn.silu(self.norm(name="norm_0")(x)))
        h += dense(name="time")(embedding)[:, None, None]
        h = nn.silu(self.norm(name="norm_1")(h))
        h = Dropout(rate=self.dropout, name="dropout")(h, dropout_keys)
        h = conv(kernel_init=_zeros, name="conv_1")(h)
        if x.shape[-1] != self.features:
            x = dense(name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module, kw_only=True):
    """Self-attention over all positions, on a residual branch."""

    num_heads: int
    norm: functools.partial
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        batch, height, width, channels = x.shape
        if channels % self.num_heads:
            raise UserError(f"{channels} channels do not divide into num_heads={self.num_heads}")
        h = self.norm(name="norm")(x).reshape(batch, height * width, channels)
        h = nn.Dense(3 * channels, dtype=self.dtype, kernel_init=_glorot_qkv, name="qkv")(h)
        h = h.reshape(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        h = attention(h[:, :, 0], h[:, :, 1], h[:, :, 2]).reshape(x.shape)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=_zeros, name="out")(h)


def upsample_nearest(x: Image) -> Image:
    """Every pixel twice in height and in width."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


@MODELS.register(
    "unet",
    example={
        "image_size": 8,
        "image_channels": 2,
        "num_classes": 3,
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "dropout": 0.5,
    },
)
class UNet(Network, kw_only=True):
    """The DDPM U-Net; the defaults are the paper's CIFAR-10 network (35,746,307 parameters at 32x32x3).

    Takes images whose height and width divide by 2^(levels - 1), not only of `image_size`; attention stays at the
    levels where `image_size` puts it. With classes, an embedding of num_classes + 1 rows adds to the time embedding.

    Attributes:
      base_channels: channels of the first level; also the width of the sinusoidal time embedding.
      channel_multipliers: channels of each level, in units of base_channels.
      num_res_blocks: residual blocks of each level on the way down.
      attention_resolutions: feature map sizes, in pixels of an image of `image_size`, that get self-attention.
      num_heads: attention heads.
      dropout: rate inside residual blocks; on when dropout keys are given.
      out_channels: channels of the output; None means image_channels.
      norm_groups: most groups of a group norm.
      norm_eps: added to its variance.
      flip_sin_to_cos, frequency_shift: convention of the time embedding, see `sinusoidal_embedding`.
      downsample_padding: of the stride-2 convolutions; "same" pads below and right as DDPM and TensorFlow do,
        "symmetric" pads one pixel all round as ADM does.
    """

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    dropout: float = 0.0
    out_channels: int | None = None
    norm_groups: int = 32
    norm_eps: float = 1e-6
    flip_sin_to_cos: bool = False
    frequency_shift: int = 1
    downsample_padding: Literal["same", "symmetric"] = "same"

    def __post_init__(self):
        super().__post_init__()
        halvings = len(self.channel_multipliers) - 1
        if self.image_size % 2**halvings:
            raise UserError(
                f"UNet halves images {halvings} times: image_size={self.image_size} does not divide by {2**halvings}; "
                "pad the images or give fewer channel_multipliers"
            )
        resolutions = {self.image_size // 2**level for level in range(halvings + 1)}
        if not set(self.attention_resolutions) <= resolutions:
            raise UserError(
                f"attention_resolutions={self.attention_resolutions}: this UNet has resolutions {sorted(resolutions)}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout is a rate in [0, 1), got {self.dropout}")
        if self.downsample_padding not in ("same", "symmetric"):
            raise UserError(f"downsample_padding is 'same' or 'symmetric', got {self.downsample_padding!r}")

    @nn.compact
    def __call__(
        self,
        x: Image,
        time: Float[Array, " batch"],
        conditioning: Conditioning,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Image:
        """See `Network`. Raises UserError for sizes that cannot be halved often enough."""
        self.check_inputs(x, time, conditioning)
        levels = len(self.channel_multipliers)
        if x.shape[1] % 2 ** (levels - 1) or x.shape[2] % 2 ** (levels - 1):
            raise UserError(f"UNet with {levels} levels: {x.shape[1:3]} does not divide by {2 ** (levels - 1)}")

        norm = functools.partial(GroupNorm, max_groups=self.norm_groups, epsilon=self.norm_eps, dtype=self.dtype)
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype, kernel_init=_glorot)
        embedding = nn.silu(self._embed(time, conditioning))

        def stage(x, level, name, attend=True):
            features = self.base_channels * self.channel_multipliers[level]
            block = ResBlock(features=features, dropout=self.dropout, norm=norm, dtype=self.dtype, name=name)
            x = block(x, embedding, dropout_keys)
            return attend_to(x, f"{name}_attention") if attend and self._has_attention(level) else x

        def attend_to(x, name):
            return AttentionBlock(num_heads=self.num_heads, norm=norm, dtype=self.dtype, name=name)(x)

        h = conv(self.base_channels, name="conv_in")(x)
        kept = [h]
        for level in range(levels):
            for block in range(self.num_res_blocks):
                h = stage(h, level, f"down_{level}_{block}")
                kept.append(h)
            if level < levels - 1:
                padding = ((0, 1), (0, 1)) if self.downsample_padding == "same" else 1
                h = conv(h.shape[-1], strides=2, padding=padding, name=f"down_{level}_downsample")(h)
                kept.append(h)

        h = stage(h, levels - 1, "middle_0", attend=False)
        h = attend_to(h, "middle_attention")
        h = stage(h, levels - 1, "middle_1", attend=False)

        for level in reversed(range(levels)):
            for block in range(self.num_res_blocks + 1):
                h = stage(jnp.concatenate([h, kept.pop()], axis=-1), level, f"up_{level}_{block}")
            if level > 0:
                h = conv(h.shape[-1], name=f"up_{level}_upsample")(upsample_nearest(h))

        h = nn.silu(norm(name="norm_out")(h))
        h = conv(self.out_channels or self.image_channels, kernel_init=_zeros, name="conv_out")(h)
        return h.astype(at_least_float32(h.dtype))

    def _embed(self, time, conditioning):
        """Time and class as one vector of 4 * base_channels."""
        features = 4 * self.base_channels
        waves = sinusoidal_embedding(
            time, self.base_channels, flip_sin_to_cos=self.flip_sin_to_cos, frequency_shift=self.frequency_shift
        )
        embedding = TimeMLP(features=features, kernel_init=_glorot, name="time")(waves)
        if self.num_times == 2:
            interval = sinusoidal_embedding(
                time - conditioning["second_time"],
                self.base_channels,
                flip_sin_to_cos=self.flip_sin_to_cos,
                frequency_shift=self.frequency_shift,
            )
            embedding += TimeMLP(features=features, kernel_init=_glorot, name="interval")(interval)
        if self.num_classes:
            rows = self.num_classes + 1
            table = nn.Embed(rows, features, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0), name="label")
            embedding += table(conditioning["label"])
        return embedding

    def _has_attention(self, level: int) -> bool:
        return self.image_size // 2**level in self.attention_resolutions
