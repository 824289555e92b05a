"""The convolutional encoder and decoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, appendix G).

    encoder: conv, [residual blocks, halving] per level, residual, attention, residual, norm, SiLU, conv, 1x1 conv
    decoder: 1x1 conv, conv, residual, attention, residual, [residual blocks, doubling] per level, norm, SiLU, conv

Each level has half the resolution of the level before it. There is no time and no condition; norms have the epsilon
1e-6. Attention, with one head, is at the lowest resolution. Some published models also have it in levels, others have
none, and some have no 1x1 convolutions.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    at_least_float32,
    depth_to_space,
    space_to_depth,
    upsample_nearest,
)
from diffusion_jax.models.unet_blocks import AttentionBlock, Image

_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def group_norm(groups: int, dtype: DTypeLike) -> functools.partial:
    """Makes group norms with this number of groups; 0: the number that `GroupNorm` chooses."""
    fields = {"max_groups": groups, "min_channels": 1} if groups else {}
    return functools.partial(GroupNorm, dtype=dtype, **fields)


class ResidualBlock(nn.Module, kw_only=True):
    """norm, SiLU, conv, norm, SiLU, conv; + shortcut, which is a 1x1 convolution where the channels change."""

    features: int
    norm_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        conv = functools.partial(Conv, self.features, (3, 3), padding=1, dtype=self.dtype)
        norm = group_norm(self.norm_groups, self.dtype)
        h = conv(kernel_init=_init, name="conv_0")(nn.silu(norm(name="norm_0")(x)))
        h = conv(kernel_init=nn.initializers.zeros, name="conv_1")(nn.silu(norm(name="norm_1")(h)))
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, kernel_init=_init, name="shortcut")(x)
        return x + h


class Middle(nn.Module, kw_only=True):
    """Residual block, optional attention over all positions, residual block."""

    features: int
    norm_groups: int
    attention: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        fields = {"norm_groups": self.norm_groups, "dtype": self.dtype}
        x = ResidualBlock(features=self.features, **fields, name="block_0")(x)
        if self.attention:
            norm = group_norm(self.norm_groups, self.dtype)
            x = AttentionBlock(num_heads=1, norm=norm, dtype=self.dtype, name="attention")(x)
        return ResidualBlock(features=self.features, **fields, name="block_1")(x)


class Encoder(nn.Module, kw_only=True):
    """Pictures to maps of `out_channels`.

    Attributes:
      channels: channels of the levels.
      num_res_blocks: residual blocks of each level.
      out_channels: channels of the result.
      norm_groups: groups of every norm; 0: the number that `GroupNorm` chooses.
      attention_levels: levels with attention behind each residual block.
      middle_attention: whether there is attention between the last two residual blocks.
      quant: whether the encoder ends with a 1x1 convolution.
      patch_size: squares with this side in pixels become one position of the first level.
      dtype: type in which activations are computed; the result is at least float32.
    """

    channels: tuple[int, ...]
    num_res_blocks: int
    out_channels: int
    norm_groups: int = 0
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    quant: bool = True
    patch_size: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "batch rows columns out"]:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=_init)
        norm = group_norm(self.norm_groups, self.dtype)
        fields = {"norm_groups": self.norm_groups, "dtype": self.dtype}
        h = conv(self.channels[0], (3, 3), padding=1, name="conv_in")(space_to_depth(x, self.patch_size))
        for level, features in enumerate(self.channels):
            for index in range(self.num_res_blocks):
                h = ResidualBlock(features=features, **fields, name=f"down_{level}_{index}")(h)
                if level in self.attention_levels:
                    name = f"down_{level}_{index}_attention"
                    h = AttentionBlock(num_heads=1, norm=norm, dtype=self.dtype, name=name)(h)
            if level < len(self.channels) - 1:  # one row and column of zeros below and at the right
                halve = conv(features, (3, 3), strides=2, padding=((0, 1), (0, 1)), name=f"down_{level}_downsample")
                h = halve(h)
        h = Middle(features=self.channels[-1], attention=self.middle_attention, **fields, name="middle")(h)
        h = nn.silu(norm(name="norm_out")(h))
        h = conv(self.out_channels, (3, 3), padding=1, name="conv_out")(h)
        if self.quant:
            h = Dense(self.out_channels, dtype=self.dtype, kernel_init=_init, name="quant")(h)
        return h.astype(at_least_float32(h.dtype))


class Decoder(nn.Module, kw_only=True):
    """Latents to pictures, in one stage per level: the first at the latents' resolution, each later one at twice that
    of the one before.

    Attributes:
      channels: channels of the levels, in the order of the encoder's.
      num_res_blocks: residual blocks of an encoder's level; each level has one more here.
      out_channels: channels of the pictures.
      norm_groups, attention_levels, middle_attention: as in `Encoder`.
      quant: whether the decoder begins with a 1x1 convolution.
      patch_size: a position of the last level becomes a square with this side in pixels.
      dtype: type in which activations are computed; the result is at least float32.
    """

    channels: tuple[int, ...]
    num_res_blocks: int
    out_channels: int
    norm_groups: int = 0
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    quant: bool = True
    patch_size: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Image, stages: tuple[int, ...] | None = None) -> tuple[Image, Image]:
        """The pictures, and the input of the last convolution.

        Args:
          h: latents, or the output of the stage before the first of `stages`.
          stages: the stages to run, by default all; a stage that is not the last returns its output twice.
        """
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=_init)
        for stage in range(len(self.channels)) if stages is None else stages:
            level = len(self.channels) - 1 - stage
            if stage == 0:
                h = self._entered(h, conv)
            else:
                features, name = self.channels[level + 1], f"up_{level + 1}_upsample"
                h = conv(features, (3, 3), padding=1, name=name)(upsample_nearest(h))
            h = self._level(h, level)
            if level == 0:
                h = nn.silu(group_norm(self.norm_groups, self.dtype)(name="norm_out")(h))
                x = conv(self.out_channels * self.patch_size**2, (3, 3), padding=1, name="conv_out")(h)
                return depth_to_space(x, self.patch_size).astype(at_least_float32(x.dtype)), h
        return h, h

    def _entered(self, z: Image, conv: functools.partial) -> Image:
        if self.quant:
            z = Dense(z.shape[-1], dtype=self.dtype, kernel_init=_init, name="quant")(z)
        h = conv(self.channels[-1], (3, 3), padding=1, name="conv_in")(z)
        fields = {"features": self.channels[-1], "norm_groups": self.norm_groups, "dtype": self.dtype}
        return Middle(**fields, attention=self.middle_attention, name="middle")(h)

    def _level(self, h: Image, level: int) -> Image:
        fields = {"features": self.channels[level], "norm_groups": self.norm_groups, "dtype": self.dtype}
        for index in range(self.num_res_blocks + 1):
            h = ResidualBlock(**fields, name=f"up_{level}_{index}")(h)
            if level in self.attention_levels:
                norm, name = group_norm(self.norm_groups, self.dtype), f"up_{level}_{index}_attention"
                h = AttentionBlock(num_heads=1, norm=norm, dtype=self.dtype, name=name)(h)
        return h

    def stage_norms(self, stage: int) -> tuple[str, ...]:
        """The norms of a stage after the first, in order."""
        level = len(self.channels) - 1 - stage
        names = [f"up_{level}_{i}/norm_{j}" for i in range(self.num_res_blocks + 1) for j in range(2)]
        return (*names, "norm_out") if level == 0 else tuple(names)

    def stage_reach(self, stage: int) -> int:
        """How many pixels away an input can be that an output of a stage after the first depends on."""
        return 1 + 2 * (self.num_res_blocks + 1) + (stage == len(self.channels) - 1)


class Discriminator(nn.Module, kw_only=True):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004): a logit for every patch, positive for real ones.

    Group norm replaces batch norm, so that an example's logits depend on no other example.

    Attributes:
      base_channels: channels of the first convolution, doubled at every halving, up to eight times as many.
      depth: how often the resolution is halved; 3 in the paper.
      dtype: type in which activations are computed; logits are at least float32.
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
