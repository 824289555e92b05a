"""Published first stages: the convolutional ones of latent diffusion, with the options in which models differ.

Stable Diffusion's has 4 channels and 1x1 convolutions around the latents. SD3's and Flux's have 16 channels, a shift,
and no such convolutions. Flux.2's has 32 channels; its squares of 2 x 2 are diffused as 128 channels, standardised by
the running statistics of a batch norm. LDM-4's has a table of 8192 rows.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from diffusion_jax.models.autoencoders.autoencoder import Latents
from diffusion_jax.models.autoencoders.coder import Decoder, Encoder
from diffusion_jax.models.autoencoders.kl import KL
from diffusion_jax.models.autoencoders.learned import LearnedCodec
from diffusion_jax.models.autoencoders.vq import VQ
from diffusion_jax.models.layers import channels_to_square, square_to_channels

MEAN, VARIANCE, COUNT = "frozen_mean", "frozen_variance", "frozen_count"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedCodec(LearnedCodec):
    """Options of published autoencoders.

    Attributes:
      decoder_channels: channels of the decoder's levels; None: the encoder's.
      norm_groups: groups of every norm.
      encoder_attention, decoder_attention: levels with attention behind each residual block.
      middle_attention: whether there is attention at the lowest resolution.
      quant, post_quant: whether there is a 1x1 convolution after the encoder, and one before the decoder.
      shift, scale: constants of the latents: (h - shift) * scale is diffused.
    """

    decoder_channels: tuple[int, ...] | None = None
    norm_groups: int = 32
    encoder_attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    middle_attention: bool = True
    quant: bool = True
    post_quant: bool = True
    shift: float = 0.0
    scale: float = 1.0

    @property
    def constants(self) -> tuple[float, float]:
        return self.shift, self.scale

    @property
    def encoder(self) -> Encoder:
        return Encoder(
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
            out_channels=self.encoded_channels,
            norm_groups=self.norm_groups,
            attention_levels=self.encoder_attention,
            middle_attention=self.middle_attention,
            quant=self.quant,
            dtype=self.dtype,
        )

    @property
    def decoder(self) -> Decoder:
        return Decoder(
            channels=self.decoder_channels or self.channels,
            num_res_blocks=self.num_res_blocks,
            out_channels=self.data_channels,
            norm_groups=self.norm_groups,
            attention_levels=self.decoder_attention,
            middle_attention=self.middle_attention,
            quant=self.post_quant,
            dtype=self.dtype,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedKL(PublishedCodec, KL):
    """Gaussian latents: AutoencoderKL of diffusers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedVQ(PublishedCodec, VQ):
    """Latents that are rows of a table: VQModel of diffusers. The encoding before the table is diffused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNormKL(PublishedKL):
    """Gaussian latents whose squares become channels, standardised by a batch norm: AutoencoderKLFlux2.

        z = (square_to_channels(h) - mean) / sqrt(variance + epsilon),    order (channel, row, column)

    Attributes:
      patch: side of a square.
      norm_eps: epsilon of the batch norm.
    """

    patch: int = 2
    norm_eps: float = 1e-4

    @property
    def factor(self) -> int:
        return super().factor * self.patch

    @property
    def diffused_channels(self) -> int:
        return self.latent_channels * self.patch**2

    @property
    def decoded_channels(self) -> int:
        return self.latent_channels

    def deviation(self, params: PyTree) -> Array:
        """The standard deviation of each diffused channel."""
        return jnp.sqrt(params[VARIANCE] + self.norm_eps)

    def _init_constants(self) -> dict[str, Array]:
        shape = (self.diffused_channels,)
        return {MEAN: jnp.zeros(shape), VARIANCE: jnp.ones(shape), COUNT: jnp.zeros(())}

    def _scaled(self, params: PyTree, h: Latents) -> Latents:
        return (square_to_channels(h, self.patch) - params[MEAN]) / self.deviation(params)

    def _spread(self, params: PyTree, std: Latents) -> Latents:
        return square_to_channels(std, self.patch) / self.deviation(params)

    def _unscaled(self, params: PyTree, z: Latents) -> Latents:
        return channels_to_square(z * self.deviation(params) + params[MEAN], self.patch)
