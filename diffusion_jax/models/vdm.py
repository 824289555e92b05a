"""The U-Net of variational diffusion models (Kingma et al. 2021, appendix B): it never changes the resolution.

Fourier features of the noisy image, sin and cos of 2^n 2 pi x for n = 6 and 7, are concatenated to it, because fine
details decide the likelihood. The noisy image is added to the output, so a new network predicts the image as the noise.
"""

import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.layers import Conv, Dense, Dropout, GroupNorm, at_least_float32, sinusoidal_embedding
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.unet_blocks import Image

_lecun = nn.initializers.lecun_normal()
_zeros = nn.initializers.zeros


class VDMBlock(nn.Module, kw_only=True):
    """norm, SiLU, conv, + conditioning; norm, SiLU, dropout, conv; + shortcut."""

    features: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Image, embedding: Float[Array, "batch dim"], dropout_keys: Key[Array, " batch"] | None
    ) -> Image:
        norm = functools.partial(GroupNorm, dtype=self.dtype)
        conv = functools.partial(Conv, self.features, (3, 3), padding=1, dtype=self.dtype)
        dense = functools.partial(Dense, self.features, dtype=self.dtype)
        h = conv(kernel_init=_lecun, name="conv_0")(nn.silu(norm(name="norm_0")(x)))
        h += dense(use_bias=False, kernel_init=_zeros, name="time")(embedding)[:, None, None]
        h = nn.silu(norm(name="norm_1")(h))
        h = Dropout(rate=self.dropout, name="dropout")(h, dropout_keys)
        h = conv(kernel_init=_zeros, name="conv_1")(h)
        if x.shape[-1] != self.features:
            x = dense(kernel_init=_lecun, name="shortcut")(x)
        return x + h


class VDMAttention(nn.Module, kw_only=True):
    """Self-attention of one head over all positions, on a residual branch."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Image:
        batch, height, width, channels = x.shape
        h = GroupNorm(dtype=self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        dense = functools.partial(Dense, channels, dtype=self.dtype, kernel_init=_lecun)
        h = self_attention([dense(name=name)(h) for name in ("query", "key", "value")], 1)
        return x + dense(kernel_init=_zeros, name="out")(h).reshape(x.shape)


@MODELS.register(
    "vdm",
    example={
        "image_size": 4,
        "image_channels": 2,
        "num_classes": 3,
        "features": 8,
        "depth": 2,
        "attention": True,
        "dropout": 0.5,
    },
)
class VDMUNet(Network, kw_only=True):
    """The score network of VDM; the defaults are the paper's for CIFAR-10, as released.

    With the noise schedule's own parameters (2 if it is linear and learned, 3,074 for the monotone network) it has
    30,578,181 parameters, and 122,140,677 with features=256. A label enters as a number beside the time embedding, as
    in the paper's code; without classes that number is 0.

    Attributes:
      features: channels everywhere.
      depth: residual blocks on the downward path; one more on the upward path.
      attention: self-attention after every block, not only in the middle.
      fourier_features: whether sines and cosines are concatenated to the input.
      dropout: rate inside blocks; active if dropout keys are given.
      out_channels: channels of the output; None means image_channels.
    """

    is_convolutional: ClassVar[bool] = True

    zero_at_init: ClassVar[bool] = False

    features: int = 128
    depth: int = 32
    attention: bool = False
    fourier_features: bool = True
    dropout: float = 0.0
    out_channels: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Image,
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Image:
        """See `Network`; the paper's `time` is 1000 (gamma - gamma_min) / (gamma_max - gamma_min)."""
        self.check_inputs(x, time, conditions)
        waves = [sinusoidal_embedding(time, self.features)]
        if self.num_times == 2:
            waves.append(sinusoidal_embedding(time - conditions["second_time"], self.features))
        label = conditions["label"] if self.num_classes else jnp.zeros_like(time)
        vector = jnp.concatenate([*waves, label.astype(waves[0].dtype)[:, None]], axis=-1)
        for name in ("dense_0", "dense_1"):
            vector = nn.silu(Dense(4 * self.features, kernel_init=_lecun, name=name)(vector))

        def block(h, name, attend=self.attention):
            h = VDMBlock(features=self.features, dropout=self.dropout, dtype=self.dtype, name=name)(
                h, vector, dropout_keys
            )
            return VDMAttention(dtype=self.dtype, name=f"{name}_attention")(h) if attend else h

        h = Conv(self.features, (3, 3), padding=1, dtype=self.dtype, kernel_init=_lecun, name="conv_in")(
            jnp.concatenate([x, self._fourier(x)], axis=-1) if self.fourier_features else x
        )
        kept = [h]
        for index in range(self.depth):
            h = block(h, f"down_{index}")
            kept.append(h)
        h = block(h, "middle_0", attend=True)
        h = block(h, "middle_1", attend=False)
        for index in range(self.depth + 1):
            h = block(jnp.concatenate([h, kept.pop()], axis=-1), f"up_{index}")
        h = nn.silu(GroupNorm(dtype=self.dtype, name="norm_out")(h))
        out_channels = self.out_channels or self.image_channels
        h = Conv(out_channels, (3, 3), padding=1, dtype=self.dtype, kernel_init=_zeros, name="conv_out")(h)
        h = h.astype(at_least_float32(h.dtype))
        return h + x if out_channels == x.shape[-1] else h

    def _fourier(self, x):
        """Sines, then cosines, of every channel at 2^6 and 2^7 periods, in float32, where the angles are accurate
        enough."""
        angles = jnp.repeat(x.astype(at_least_float32(x.dtype)), 2, axis=-1)
        angles *= jnp.tile(jnp.asarray([2 * math.pi * 2**n for n in (6, 7)], angles.dtype), x.shape[-1])
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
