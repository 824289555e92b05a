"""The convolutional encoder and decoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, appendix G).

    encoder: conv, [residual blocks, halving] per level, residual, attention, residual, norm, SiLU, conv, 1x1 conv
    decoder: 1x1 conv, conv, residual, attention, residual, [residual blocks, doubling] per level, norm, SiLU, conv

A level below the first has half the resolution of the one before. There is no time and no condition; norms have the
epsilon 1e-6, and the only attention is at the lowest resolution, with one head.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax.models.layers import Conv, Dense, GroupNorm, at_least_float32, upsample_nearest
from diffusion_jax.models.unet_blocks import AttentionBlock, Image

_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class ResidualBlock(nn.Module, kw_only=True):
    """norm, SiLU, conv, norm, SiLU, conv; + shortcut, which is a 1x1 convolution where the channels change."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        conv = functools.partial(Conv, self.features, (3, 3), padding=1, dtype=self.dtype)
        norm = functools.partial(GroupNorm, dtype=self.dtype)
        h = conv(kernel_init=_init, name="conv_0")(nn.silu(norm(name="norm_0")(x)))
        h = conv(kernel_init=nn.initializers.zeros, name="conv_1")(nn.silu(norm(name="norm_1")(h)))
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, kernel_init=_init, name="shortcut")(x)
        return x + h


class Middle(nn.Module, kw_only=True):
    """Residual block, attention over all positions, residual block."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        block = functools.partial(ResidualBlock, features=self.features, dtype=self.dtype)
        norm = functools.partial(GroupNorm, dtype=self.dtype)
        x = block(name="block_0")(x)
        x = AttentionBlock(num_heads=1, norm=norm, dtype=self.dtype, name="attention")(x)
        return block(name="block_1")(x)


class Encoder(nn.Module, kw_only=True):
    """Pictures to maps of `out_channels`.

    Attributes:
      channels: of the levels.
      num_res_blocks: residual blocks of each level.
      out_channels: of the result.
      dtype: what activations are computed in; the result is float32 at least.
    """

    channels: tuple[int, ...]
    num_res_blocks: int
    out_channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "batch rows columns out"]:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=_init)
        h = conv(self.channels[0], (3, 3), padding=1, name="conv_in")(x)
        for level, features in enumerate(self.channels):
            for index in range(self.num_res_blocks):
                h = ResidualBlock(features=features, dtype=self.dtype, name=f"down_{level}_{index}")(h)
            if level < len(self.channels) - 1:  # a row and a column of zeros below and at the right
                halve = conv(features, (3, 3), strides=2, padding=((0, 1), (0, 1)), name=f"down_{level}_downsample")
                h = halve(h)
        h = Middle(features=self.channels[-1], dtype=self.dtype, name="middle")(h)
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm_out")(h))
        h = conv(self.out_channels, (3, 3), padding=1, name="conv_out")(h)
        h = Dense(self.out_channels, dtype=self.dtype, kernel_init=_init, name="quant")(h)
        return h.astype(at_least_float32(h.dtype))


class Decoder(nn.Module, kw_only=True):
    """Latents to pictures.

    Attributes:
      channels: of the levels, in the order of the encoder's.
      num_res_blocks: of the encoder; each level has one more here.
      out_channels: of the pictures.
      dtype: what activations are computed in; the result is float32 at least.
    """

    channels: tuple[int, ...]
    num_res_blocks: int
    out_channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "batch rows columns latent"]) -> tuple[Image, Image]:
        """The pictures, and the input of the last convolution."""
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=_init)
        z = Dense(z.shape[-1], dtype=self.dtype, kernel_init=_init, name="quant")(z)
        h = conv(self.channels[-1], (3, 3), padding=1, name="conv_in")(z)
        h = Middle(features=self.channels[-1], dtype=self.dtype, name="middle")(h)
        for level, features in reversed(tuple(enumerate(self.channels))):
            for index in range(self.num_res_blocks + 1):
                h = ResidualBlock(features=features, dtype=self.dtype, name=f"up_{level}_{index}")(h)
            if level:
                h = conv(features, (3, 3), padding=1, name=f"up_{level}_upsample")(upsample_nearest(h))
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm_out")(h))
        x = conv(self.out_channels, (3, 3), padding=1, name="conv_out")(h)
        return x.astype(at_least_float32(x.dtype)), h


class Discriminator(nn.Module, kw_only=True):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004): a logit for every patch, positive for real ones.

    Group norm stands in the place of batch norm, so that an example's logits depend on no other example.

    Attributes:
      base_channels: of the first convolution; doubled at every halving, up to eight times as many.
      depth: how often the resolution is halved; 3 in the paper.
      dtype: what activations are computed in; logits are float32 at least.
    """

    base_channels: int = 64
    depth: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "batch rows columns 1"]:
        draw = nn.initializers.normal(0.02)
        conv = functools.partial(Conv, padding=1, dtype=self.dtype, kernel_init=draw)
        h = nn.leaky_relu(conv(self.base_channels, (4, 4), strides=2, name="conv_0")(x), 0.2)
        for layer in range(1, self.depth + 1):
            features, stride = self.base_channels * min(2**layer, 8), 2 if layer < self.depth else 1
            h = conv(features, (4, 4), strides=stride, use_bias=False, name=f"conv_{layer}")(h)
            h = nn.leaky_relu(GroupNorm(dtype=self.dtype, name=f"norm_{layer}")(h), 0.2)
        logits = conv(1, (4, 4), name="conv_out")(h)
        return logits.astype(at_least_float32(logits.dtype))
