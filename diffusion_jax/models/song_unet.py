"""DDPM++ and NCSN++, the U-Nets of score SDE (Song et al. 2021, appendix H), in the form that EDM gave them.

They differ from DDPM's in three ways: resolution changes inside residual blocks (as in BigGAN), every sum is scaled by
1/sqrt(2), and on the upward path attention follows only the last block of a level. NCSN++ also embeds the noise level
with random Fourier features and resamples through the filter (1, 3, 3, 1). It feeds the image into the downward path at
every resolution ("residual" or "skip"), or reads one off the upward path at every resolution ("skip").

EDM (Karras et al. 2022, appendix F) adds class labels, and labels of the augmentations applied to the image.
"""

import functools
import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers import Conv, Dense, GroupNorm, at_least_float32, resample, sinusoidal_embedding
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.unet_blocks import AttentionBlock, Image, ResBlock, require_halvings
from diffusion_jax.specs import ConditionSpec

_glorot = nn.initializers.xavier_uniform()
# 1e-5 times Glorot, almost zero, as in the papers' code.
_small = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")
# For query, key and value: three kernels side by side have twice the mean fan of one.
_attention = nn.initializers.variance_scaling(0.4, "fan_avg", "uniform")


class FourierEmbedding(nn.Module, kw_only=True):
    """[sin, cos] of the input at random frequencies, which are drawn once: the constant `frozen_frequencies`."""

    dim: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, time: Float[Array, " batch"]) -> Float[Array, "batch dim"]:
        draw = nn.initializers.normal(self.scale)
        frequencies = self.param("frozen_frequencies", draw, (self.dim // 2,), jnp.float32)
        angles = 2 * math.pi * time.astype(at_least_float32(time.dtype))[:, None] * jax.lax.stop_gradient(frequencies)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FusedDownsample(nn.Module, kw_only=True):
    """3x3 convolution over a wider border, then the filter at every second pixel, as one linear map."""

    features: int
    taps: tuple[float, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        pad = 1 + (len(self.taps) - 1) // 2
        x = Conv(self.features, (3, 3), padding=pad, use_bias=False, dtype=self.dtype, kernel_init=_glorot)(x)
        x = resample(x, "down", self.taps, padding=0)
        return x + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(x.dtype)


class SongUNet(Network, kw_only=True):
    """Score SDE's U-Net; the defaults are EDM's DDPM++ for CIFAR-10 (55,732,739 parameters).

    Attributes:
      base_channels, channel_multipliers: channels of the levels.
      num_res_blocks: residual blocks of each level on the downward path; one more on the upward path.
      attention_resolutions: feature map sizes with self-attention.
      modulation: how time enters residual blocks, "add" or "double_norm", see `ResBlock`.
      dropout: rate inside residual blocks; active if dropout keys are given.
      augment_channels: length of conditions["augment"], the augmentation's parameters (zeros: none); 0 for no such
        slot.
      embedding: form of the time embedding, "positional" or "fourier".
      noise_channel_multiplier: width of the time embedding, in units of base_channels.
      encoder: "standard"; "residual" or "skip" also feed the image in at every resolution.
      decoder: "standard", or "skip" to sum images read off at every resolution.
      taps: the resampling filter, (1, 1) or (1, 3, 3, 1).
      out_channels: channels of the output; None means image_channels.
    """

    is_convolutional: ClassVar[bool] = True

    zero_at_init: ClassVar[bool] = False

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    modulation: Literal["add", "double_norm"] = "add"
    dropout: float = 0.0
    augment_channels: int = 0
    embedding: Literal["positional", "fourier"] = "positional"
    noise_channel_multiplier: int = 1
    encoder: Literal["standard", "residual", "skip"] = "standard"
    decoder: Literal["standard", "skip"] = "standard"
    taps: tuple[float, ...] = (1, 1)
    out_channels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require_halvings(self, len(self.channel_multipliers))
        for field, known in (
            ("modulation", ("add", "double_norm")),
            ("embedding", ("positional", "fourier")),
            ("encoder", ("standard", "residual", "skip")),
            ("decoder", ("standard", "skip")),
        ):
            if getattr(self, field) not in known:
                raise UserError(f"{field} is one of {', '.join(known)}, got {getattr(self, field)!r}")

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        slots = super().takes
        if self.augment_channels:
            slots["augment"] = ConditionSpec(shape=(self.augment_channels,), role="told")
        return slots

    @nn.compact
    def __call__(
        self,
        x: Image,
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Image:
        """See `Network`."""
        self.check_inputs(x, time, conditions)
        embedding = self._embed(time, conditions)
        levels = len(self.channel_multipliers)
        out_channels = self.out_channels or self.image_channels
        norm = functools.partial(GroupNorm, epsilon=1e-6, dtype=self.dtype)
        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype, kernel_init=_glorot)

        def stage(x, features, name, *, attend=False, direction=None):
            x = ResBlock(
                features=features,
                dropout=self.dropout,
                norm=norm,
                dtype=self.dtype,
                modulation=self.modulation,
                direction=direction,
                taps=self.taps,
                project=True,
                residual_scale=math.sqrt(0.5),
                init=_glorot,
                last_init=_small,
                name=name,
            )(x, embedding, dropout_keys)
            if not attend:
                return x
            return AttentionBlock(
                num_heads=1,
                norm=norm,
                dtype=self.dtype,
                residual_scale=math.sqrt(0.5),
                init=_attention,
                last_init=_small,
                name=f"{name}_attention",
            )(x)

        width = [self.base_channels * multiplier for multiplier in self.channel_multipliers]
        attends = [self.image_size // 2**level in self.attention_resolutions for level in range(levels)]
        image = x
        h = conv(self.base_channels, name="conv_in")(x)
        kept = [h]
        for level in range(levels):
            if level > 0:
                h = stage(h, h.shape[-1], f"down_{level}_downsample", direction="down")
                if self.encoder == "skip":
                    image = resample(image, "down", self.taps)
                    h += Dense(h.shape[-1], dtype=self.dtype, kernel_init=_glorot, name=f"down_{level}_image")(image)
                elif self.encoder == "residual":
                    down = FusedDownsample(
                        features=h.shape[-1], taps=self.taps, dtype=self.dtype, name=f"down_{level}_image"
                    )
                    h = image = (h + down(image)) * jnp.asarray(math.sqrt(0.5), h.dtype)
                kept.append(h)
            for block in range(self.num_res_blocks):
                h = stage(h, width[level], f"down_{level}_{block}", attend=attends[level])
                kept.append(h)

        total = None
        for level in reversed(range(levels)):
            if level == levels - 1:
                h = stage(h, h.shape[-1], "middle_0", attend=True)
                h = stage(h, h.shape[-1], "middle_1")
            else:
                h = stage(h, h.shape[-1], f"up_{level}_upsample", direction="up")
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, kept.pop()], axis=-1)
                attend = attends[level] and block == self.num_res_blocks
                h = stage(h, width[level], f"up_{level}_{block}", attend=attend)
            if self.decoder == "skip" or level == 0:
                if total is not None:
                    total = resample(total, "up", self.taps)
                read = nn.silu(norm(name=f"up_{level}_image_norm")(h))
                read = conv(out_channels, kernel_init=_small, name=f"up_{level}_image")(read)
                total = read if total is None else total + read
        return total.astype(at_least_float32(total.dtype))

    def _embed(self, time, conditions):
        """Time, label and augmentation as one vector of 4 * base_channels."""
        dim = self.base_channels * self.noise_channel_multiplier
        dense = functools.partial(Dense, kernel_init=_glorot)

        def waves(value, name):
            if self.embedding == "positional":
                return sinusoidal_embedding(value, dim)
            return FourierEmbedding(dim=dim, name=name)(value)

        vector = waves(time, "time")
        if self.num_times == 2:
            interval = waves(time - conditions["second_time"], "interval")
            vector = jnp.concatenate([vector, interval], axis=-1)
        width = vector.shape[-1]
        if self.num_classes:
            # The null class is no class: a row of zeros.
            one_hot = jax.nn.one_hot(conditions["label"], self.num_classes, dtype=vector.dtype)
            vector += dense(width, name="label")(one_hot * math.sqrt(self.num_classes))
        if self.augment_channels:
            augment = conditions["augment"].astype(vector.dtype)
            vector += dense(width, use_bias=False, name="augment")(augment)
        vector = nn.silu(dense(4 * self.base_channels, name="dense_0")(vector))
        return nn.silu(dense(4 * self.base_channels, name="dense_1")(vector))


_EXAMPLE = {
    "image_size": 8,
    "image_channels": 2,
    "num_classes": 3,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "dropout": 0.5,
    "augment_channels": 2,
}


@MODELS.register("ddpmpp", example=_EXAMPLE)
def ddpmpp(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    base_channels: int = 128,
    channel_multipliers: tuple[int, ...] = (2, 2, 2),
    num_res_blocks: int = 4,
    attention_resolutions: tuple[int, ...] = (16,),
    modulation: Literal["add", "double_norm"] = "add",
    dropout: float = 0.0,
    augment_channels: int = 0,
    noise_channel_multiplier: int = 1,
    out_channels: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> SongUNet:
    """DDPM++; the defaults are EDM's for CIFAR-10. Score SDE has channel_multipliers (1, 2, 2, 2); deep: 8 blocks."""
    return SongUNet(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        base_channels=base_channels,
        channel_multipliers=tuple(channel_multipliers),
        num_res_blocks=num_res_blocks,
        attention_resolutions=tuple(attention_resolutions),
        modulation=modulation,
        dropout=dropout,
        augment_channels=augment_channels,
        noise_channel_multiplier=noise_channel_multiplier,
        out_channels=out_channels,
        dtype=dtype,
    )


@MODELS.register("ncsnpp", example=_EXAMPLE)
def ncsnpp(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    base_channels: int = 128,
    channel_multipliers: tuple[int, ...] = (2, 2, 2),
    num_res_blocks: int = 4,
    attention_resolutions: tuple[int, ...] = (16,),
    dropout: float = 0.0,
    augment_channels: int = 0,
    embedding: Literal["positional", "fourier"] = "fourier",
    encoder: Literal["standard", "residual", "skip"] = "residual",
    decoder: Literal["standard", "skip"] = "standard",
    out_channels: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> SongUNet:
    """NCSN++; the defaults are EDM's for CIFAR-10. At 256 pixels and more score SDE has encoder and decoder "skip"."""
    return SongUNet(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        base_channels=base_channels,
        channel_multipliers=tuple(channel_multipliers),
        num_res_blocks=num_res_blocks,
        attention_resolutions=tuple(attention_resolutions),
        dropout=dropout,
        augment_channels=augment_channels,
        embedding=embedding,
        noise_channel_multiplier=2 if embedding == "fourier" else 1,
        encoder=encoder,
        decoder=decoder,
        taps=(1, 3, 3, 1),
        out_channels=out_channels,
        dtype=dtype,
    )
