"""The deep compression autoencoder (DC-AE, Chen et al. 2024, arXiv:2410.10733), as published for SANA.

    encoder: conv, [blocks, halving] per level, conv + averaged channels
    decoder: conv + repeated channels, [doubling, blocks] per level, norm, ReLU, conv

A halving adds to its convolution the squares of 2 x 2 pixels as channels, averaged in groups; a doubling adds repeated
channels as squares. Levels of high resolution have residual blocks. Those of low resolution have attention with a
rectifier as kernel, whose cost grows linearly with the number of positions:

    o_i = sum_j relu(q_i).relu(k_j) v_j / (sum_j relu(q_i).relu(k_j) + 1e-15)

over heads of query, key and value, and again over convolutions of each of them. Norms are RMS norms of the channels of
one position, with a scale and an offset.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from diffusion_jax.models.autoencoders.autoencoder import Autoencoder, Latents
from diffusion_jax.models.autoencoders.tiling import Stage
from diffusion_jax.models.layers import (
    Conv,
    Dense,
    at_least_float32,
    channels_to_square,
    square_to_channels,
    upsample_nearest,
)
from diffusion_jax.models.unet_blocks import Image

BlockKind = Literal["residual", "attention"]
_NORM_EPS = 1e-5
_ATTENTION_EPS = 1e-15


class ChannelNorm(nn.Module, kw_only=True):
    """RMS norm of each position with a scale and an offset; computed in at least float32."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        x = nn.RMSNorm(epsilon=_NORM_EPS, dtype=at_least_float32(self.dtype), name="norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return (x + bias).astype(self.dtype)


class ResidualUnit(nn.Module, kw_only=True):
    """conv, activation, conv, norm; + the input."""

    activation: Callable[[Array], Array]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        conv = functools.partial(Conv, x.shape[-1], (3, 3), padding=1, dtype=self.dtype)
        h = conv(use_bias=False, name="conv_1")(self.activation(conv(name="conv_0")(x)))
        return x + ChannelNorm(dtype=self.dtype, name="norm")(h)


class LinearAttention(nn.Module, kw_only=True):
    """Attention with a rectifier as kernel, at one or more scales; + the input.

    Query, key and value of all heads lie side by side, and are split into heads of 3 * head_channels channels.

    Attributes:
      head_channels: channels of a head.
      scales: kernel sizes of the convolutions of the further scales.
      dtype: type of the computation; sums over positions are at least float32.
    """

    head_channels: int
    scales: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        batch, height, width, channels = x.shape
        heads = channels // self.head_channels
        inner = heads * self.head_channels
        qkv = Dense(3 * inner, use_bias=False, dtype=self.dtype, name="qkv")(x)
        conv = functools.partial(Conv, 3 * inner, use_bias=False, dtype=self.dtype)
        parts = [qkv]
        for index, side in enumerate(self.scales):
            h = conv((side, side), padding=side // 2, feature_group_count=3 * inner, name=f"scale_{index}_in")(qkv)
            parts.append(conv((1, 1), feature_group_count=3 * heads, name=f"scale_{index}_out")(h))
        h = jnp.concatenate(parts, axis=-1).astype(at_least_float32(self.dtype))
        h = h.reshape(batch, height * width, -1, 3 * self.head_channels)
        query, key, value = jnp.split(h, 3, axis=-1)
        h = linear_attention(nn.relu(query), nn.relu(key), value).reshape(batch, height, width, -1)
        h = Dense(channels, use_bias=False, dtype=self.dtype, name="out")(h.astype(self.dtype))
        return x + ChannelNorm(dtype=self.dtype, name="norm")(h)


def linear_attention(
    query: Float[Array, "batch tokens heads channels"],
    key: Float[Array, "batch tokens heads channels"],
    value: Float[Array, "batch tokens heads channels"],
) -> Float[Array, "batch tokens heads channels"]:
    """sum_j (q_i . k_j) v_j / sum_j (q_i . k_j), computed from sums over j only."""
    with jax.default_matmul_precision("highest"):
        product = jnp.einsum("bnhk,bnhv->bhkv", key, value)
        found = jnp.einsum("bnhk,bhkv->bnhv", query, product)
        total = jnp.einsum("bnhk,bhk->bnh", query, key.sum(1))
    return found / (total[..., None] + _ATTENTION_EPS)


class GatedConv(nn.Module, kw_only=True):
    """1x1 conv, SiLU, a 3x3 conv per channel, one half times SiLU of the other, 1x1 conv, norm; + the input."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        channels = x.shape[-1]
        hidden = 4 * channels
        h = nn.silu(Dense(2 * hidden, dtype=self.dtype, name="expand")(x))
        depth = Conv(2 * hidden, (3, 3), padding=1, feature_group_count=2 * hidden, dtype=self.dtype, name="depth")
        h, gate = jnp.split(depth(h), 2, axis=-1)
        h = Dense(channels, use_bias=False, dtype=self.dtype, name="shrink")(h * nn.silu(gate))
        return x + ChannelNorm(dtype=self.dtype, name="norm")(h)


class Halving(nn.Module, kw_only=True):
    """Half the resolution: a convolution with stride 2, or one whose squares become channels; + the shortcut."""

    features: int
    strided: bool
    shortcut: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        features = self.features if self.strided else self.features // 4
        conv = Conv(features, (3, 3), strides=2 if self.strided else 1, padding=1, dtype=self.dtype, name="conv")
        h = conv(x) if self.strided else square_to_channels(conv(x), 2)
        return h + averaged(square_to_channels(x, 2), self.features) if self.shortcut else h


class Doubling(nn.Module, kw_only=True):
    """Twice the resolution: a convolution of repeated pixels, or one whose channels become squares; + the shortcut."""

    features: int
    repeated: bool
    shortcut: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        features = self.features if self.repeated else 4 * self.features
        conv = Conv(features, (3, 3), padding=1, dtype=self.dtype, name="conv")
        h = conv(upsample_nearest(x)) if self.repeated else channels_to_square(conv(x), 2)
        return h + channels_to_square(repeated(x, 4 * self.features), 2) if self.shortcut else h


def averaged(x: Image, features: int) -> Image:
    """The means of groups of adjacent channels, so that `features` remain."""
    return x.reshape(*x.shape[:-1], features, -1).mean(-1)


def repeated(x: Image, features: int) -> Image:
    """Every channel repeated side by side, so that there are `features` channels."""
    return jnp.repeat(x, features // x.shape[-1], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepLevel:
    """The blocks of one resolution.

    Attributes:
      channels: channels of the maps.
      blocks: number of blocks; a first level without blocks has only its halving or doubling, at the network's end.
      kind: kind of the blocks.
      scales: kernel sizes of the convolutions of attention's further scales.
    """

    channels: int
    blocks: int
    kind: BlockKind = "residual"
    scales: tuple[int, ...] = ()


class _Coder(nn.Module, kw_only=True):
    """Base of encoder and decoder.

    Attributes:
      levels: the levels, from the highest resolution on.
      out_channels: channels of the result.
      head_channels: channels of a head of attention.
      strided: whether stride-2 convolutions halve and repeated pixels double; otherwise squares become channels.
      shortcut: whether averaged (repeated) channels of the lowest level are added to the convolution there.
      dtype: type in which activations are computed; the result is at least float32.
    """

    levels: tuple[DeepLevel, ...]
    out_channels: int
    head_channels: int = 32
    strided: bool = False
    shortcut: bool = True
    dtype: DTypeLike = jnp.float32

    def _blocks(self, h: Image, number: int) -> Image:
        level = self.levels[number]
        for index in range(level.blocks):
            name = f"level_{number}_{index}"
            if level.kind == "residual":
                h = ResidualUnit(activation=nn.silu, dtype=self.dtype, name=name)(h)
            else:
                fields = {"head_channels": self.head_channels, "scales": level.scales, "dtype": self.dtype}
                h = LinearAttention(**fields, name=f"{name}_attention")(h)
                h = GatedConv(dtype=self.dtype, name=f"{name}_gated")(h)
        return h

    @property
    def first(self) -> int:
        """The first level that has blocks."""
        return 0 if self.levels[0].blocks else 1


class DeepEncoder(_Coder):
    """Pictures to latents."""

    @nn.compact
    def __call__(self, x: Image) -> Latents:
        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        halve = functools.partial(Halving, strided=self.strided, dtype=self.dtype)
        features = self.levels[self.first].channels
        if self.first:
            h = halve(features=features, shortcut=False, name="conv_in")(x)
        else:
            h = conv(features, name="conv_in")(x)
        for number in range(self.first, len(self.levels)):
            h = self._blocks(h, number)
            if number < len(self.levels) - 1:
                h = halve(features=self.levels[number + 1].channels, shortcut=True, name=f"down_{number}")(h)
        z = conv(self.out_channels, name="conv_out")(h)
        z = z + averaged(h, self.out_channels) if self.shortcut else z
        return z.astype(at_least_float32(z.dtype))


class DeepDecoder(_Coder):
    """Latents to pictures, in one stage per level with blocks, from the lowest resolution on."""

    @nn.compact
    def __call__(self, h: Latents, stages: tuple[int, ...] | None = None) -> tuple[Image, Image]:
        """The pictures, and the input of the last convolution; the arguments are those of `coder.Decoder`."""
        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype)
        double = functools.partial(Doubling, repeated=self.strided, dtype=self.dtype)
        for stage in range(self.num_stages) if stages is None else stages:
            number = len(self.levels) - 1 - stage
            features = self.levels[number].channels
            if stage == 0:
                y = conv(features, name="conv_in")(h)
                h = y + repeated(h, features) if self.shortcut else y
            else:
                h = double(features=features, shortcut=True, name=f"up_{number}")(h)
            h = self._blocks(h, number)
            if number == self.first:
                h = nn.relu(ChannelNorm(dtype=self.dtype, name="norm_out")(h))
                if self.first:
                    x = double(features=self.out_channels, shortcut=False, name="conv_out")(h)
                else:
                    x = conv(self.out_channels, name="conv_out")(h)
                return x.astype(at_least_float32(x.dtype)), h
        return h, h

    @property
    def num_stages(self) -> int:
        """The number of stages."""
        return len(self.levels) - self.first


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepCodec(Autoencoder):
    """Latents without a standard deviation, with sides 32 times shorter: AutoencoderDC of diffusers.

    Attributes:
      latent_channels: channels of the latents.
      encoder_levels, decoder_levels: the levels, from the highest resolution on.
      head_channels: channels of a head of attention.
      encoder_strided, decoder_repeated: how resolutions are halved and doubled, see `Halving` and `Doubling`.
      encoder_shortcut, decoder_shortcut: whether the latents' convolutions have shortcuts.
      scale: scale of the latents.
    """

    latent_channels: int
    encoder_levels: tuple[DeepLevel, ...]
    decoder_levels: tuple[DeepLevel, ...]
    head_channels: int = 32
    encoder_strided: bool = False
    decoder_repeated: bool = False
    encoder_shortcut: bool = True
    decoder_shortcut: bool = True
    scale: float = 1.0

    @property
    def factor(self) -> int:
        return 2 ** (len(self.encoder_levels) - 1)

    @property
    def diffused_channels(self) -> int:
        return self.latent_channels

    @property
    def constants(self) -> tuple[float, float]:
        return 0.0, self.scale

    @property
    def encoder(self) -> DeepEncoder:
        return DeepEncoder(
            levels=self.encoder_levels,
            out_channels=self.latent_channels,
            head_channels=self.head_channels,
            strided=self.encoder_strided,
            shortcut=self.encoder_shortcut,
            dtype=self.dtype,
        )

    @property
    def decoder(self) -> DeepDecoder:
        return DeepDecoder(
            levels=self.decoder_levels,
            out_channels=self.data_channels,
            head_channels=self.head_channels,
            strided=self.decoder_repeated,
            shortcut=self.decoder_shortcut,
            dtype=self.dtype,
        )

    @property
    def has_stages(self) -> bool:
        return True

    def stages(self, params: PyTree) -> tuple[Stage, ...]:
        decoder, variables = self.decoder, {"params": params["decoder"]}

        def made(stage: int) -> Stage:
            number = len(decoder.levels) - 1 - stage
            level, last = decoder.levels[number], number == decoder.first
            doublings = (stage > 0) + (last and decoder.first > 0)
            # Pixels of this level: the doubling, two for each block and, doubled, those of the network's end.
            reach = 2 + 2 * level.blocks + last
            return Stage(
                run=lambda _, h: (decoder.apply(variables, h, (stage,))[0], {}),
                factor=2**doublings,
                reach=reach * (2 if last and decoder.first else 1),
                whole=level.kind == "attention",
            )

        return tuple(made(stage) for stage in range(decoder.num_stages))
