"""The tiny autoencoder (TAESD, Bohan 2023, github.com/madebyollin/taesd): only convolutions and rectifiers.

    encoder: (x + 1) / 2, conv, [blocks, halving] per level, conv;  decoder: 3 tanh(z / 3), conv, [blocks, doubling] per
    level, conv, 2 y - 1;  a block is relu(conv relu conv relu conv x + x)

Its latents are the diffused latents of the model that it was distilled from: nothing shifts or scales them.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from diffusion_jax.models.autoencoders.autoencoder import Autoencoder, Latents
from diffusion_jax.models.autoencoders.tiling import Stage
from diffusion_jax.models.layers import Conv, at_least_float32, upsample_nearest
from diffusion_jax.models.unet_blocks import Image

_MAGNITUDE = 3.0  # bound of the latents


class TinyBlock(nn.Module, kw_only=True):
    """Three convolutions with rectifiers between them, added to the input, and a rectifier."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        conv = functools.partial(Conv, self.features, (3, 3), padding=1, dtype=self.dtype)
        h = nn.relu(conv(name="conv_0")(x))
        h = nn.relu(conv(name="conv_1")(h))
        return nn.relu(conv(name="conv_2")(h) + x)


class TinyEncoder(nn.Module, kw_only=True):
    """Pictures to latents.

    Attributes:
      channels: channels of all levels.
      blocks: blocks of each level; every level but the first begins with a halving.
      out_channels: channels of the latents.
      dtype: type in which activations are computed; the result is float32 at least.
    """

    channels: int
    blocks: tuple[int, ...]
    out_channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Image) -> Latents:
        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        h = conv(self.channels, name="conv_in")((x + 1.0) / 2.0)
        for level, count in enumerate(self.blocks):
            if level:
                h = conv(self.channels, strides=2, use_bias=False, name=f"down_{level}")(h)
            for index in range(count):
                h = TinyBlock(features=self.channels, dtype=self.dtype, name=f"block_{level}_{index}")(h)
        h = conv(self.out_channels, name="conv_out")(h)
        return h.astype(at_least_float32(h.dtype))


class TinyDecoder(nn.Module, kw_only=True):
    """Latents to pictures; `blocks` lists the levels from the lowest resolution on."""

    channels: int
    blocks: tuple[int, ...]
    out_channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Latents) -> tuple[Image, Image]:
        """The pictures, and the input of the last convolution."""
        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        h = nn.relu(conv(self.channels, name="conv_in")(jnp.tanh(z / _MAGNITUDE) * _MAGNITUDE))
        for level, count in enumerate(self.blocks):
            for index in range(count):
                h = TinyBlock(features=self.channels, dtype=self.dtype, name=f"block_{level}_{index}")(h)
            if level < len(self.blocks) - 1:
                h = conv(self.channels, use_bias=False, name=f"up_{level}")(upsample_nearest(h))
        x = conv(self.out_channels, name="conv_out")(h) * 2.0 - 1.0
        return x.astype(at_least_float32(x.dtype)), h

    @property
    def reach(self) -> int:
        """The distance in pixels of a picture up to which it can depend on a latent."""
        sides = [2 ** (len(self.blocks) - 1 - level) for level in range(len(self.blocks))]
        convolutions = [3 * count + (level > 0) for level, count in enumerate(self.blocks)]
        return sides[0] + sum(side * count for side, count in zip(sides, convolutions, strict=True)) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyCodec(Autoencoder):
    """Latents without a standard deviation: AutoencoderTiny of diffusers.

    Attributes:
      latent_channels: channels of the latents.
      encoder_channels, decoder_channels: channels of all levels.
      encoder_blocks, decoder_blocks: blocks of each level, in the order in which they run.
      shift, scale: constants of the latents.
    """

    latent_channels: int = 4
    encoder_channels: int = 64
    decoder_channels: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    shift: float = 0.0
    scale: float = 1.0

    @property
    def factor(self) -> int:
        return 2 ** (len(self.encoder_blocks) - 1)

    @property
    def diffused_channels(self) -> int:
        return self.latent_channels

    @property
    def constants(self) -> tuple[float, float]:
        return self.shift, self.scale

    @property
    def encoder(self) -> TinyEncoder:
        return TinyEncoder(
            channels=self.encoder_channels,
            blocks=self.encoder_blocks,
            out_channels=self.latent_channels,
            dtype=self.dtype,
        )

    @property
    def decoder(self) -> TinyDecoder:
        return TinyDecoder(
            channels=self.decoder_channels,
            blocks=self.decoder_blocks,
            out_channels=self.data_channels,
            dtype=self.dtype,
        )

    @property
    def has_stages(self) -> bool:
        return True

    def stages(self, params: PyTree) -> tuple[Stage, ...]:
        decoder, variables = self.decoder, {"params": params["decoder"]}
        run = lambda _, z: (decoder.apply(variables, z)[0], {})  # noqa: E731
        return (Stage(run=run, factor=2 ** (len(self.decoder_blocks) - 1), reach=decoder.reach),)
