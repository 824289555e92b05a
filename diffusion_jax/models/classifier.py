"""The classifier of noisy images that guides ADM (Dhariwal & Nichol 2021, sec. 4 and appendix G).

It is the downward path and the middle of ADM's U-Net, with attention that pools all positions into one vector (as in
CLIP).
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.layers import (
    QKV,
    Conv,
    Dense,
    GroupNorm,
    TimeMLP,
    at_least_float32,
    sinusoidal_embedding,
)
from diffusion_jax.models.unet_blocks import AttentionBlock, Image, ResBlock
from diffusion_jax.models.unet_sizes import ADM_MULTIPLIERS

_init = nn.initializers.xavier_uniform()


class AttentionPool(nn.Module, kw_only=True):
    """Positions and their mean attend to each other; the result at the mean goes through a dense layer."""

    head_channels: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "batch features"]:
        batch, height, width, channels = x.shape
        tokens = x.reshape(batch, height * width, channels)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
        draw = nn.initializers.normal(channels**-0.5)
        tokens += self.param("position", draw, tokens.shape[1:], jnp.float32).astype(tokens.dtype)
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_init)
        qkv = QKV(features=channels, dtype=self.dtype, kernel_init=_init, name="qkv")(tokens)
        h = self_attention(qkv, channels // self.head_channels)
        return dense(self.features, name="out")(h[:, 0])


class NoisyClassifier(nn.Module, kw_only=True):
    """log p(label | x_t) up to a constant; the defaults are ADM's for ImageNet 64 (65,438,568 parameters).

    Attributes:
      image_size, image_channels: of the images.
      num_classes: number of logits.
      base_channels: channels of the first level, and the width of the sinusoidal time embedding.
      channel_multipliers: channels of the levels; None means ADM's for this image size.
      num_res_blocks: residual blocks of each level ("depth" in the paper's code).
      attention_resolutions: feature map sizes with self-attention.
      head_channels: channels of a head.
      dropout: rate inside residual blocks; active if dropout keys are given.
      dtype: type in which activations are computed; parameters are float32 always.
    """

    image_size: int
    image_channels: int = 3
    num_classes: int = 1000
    base_channels: int = 128
    channel_multipliers: tuple[float, ...] | None = None
    num_res_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @property
    def multipliers(self) -> tuple[float, ...]:
        """Channels of the levels, in units of base_channels."""
        if self.channel_multipliers is None and self.image_size not in ADM_MULTIPLIERS:
            known = sorted(ADM_MULTIPLIERS)
            raise UserError(f"ADM has image_size {known}; for {self.image_size} give channel_multipliers")
        return self.channel_multipliers or ADM_MULTIPLIERS[self.image_size]

    @nn.compact
    def __call__(
        self, x: Image, time: Float[Array, " batch"], dropout_keys: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch classes"]:
        """Logits, float32; `time` is the step of DDPM's chain, from 0 to 999."""
        size, channels = self.image_size, self.image_channels
        if x.shape[1:] != (size, size, channels) or time.shape != x.shape[:1]:
            raise UserError(
                f"NoisyClassifier takes images [batch, {size}, {size}, {channels}] and one time each, got {x.shape} "
                f"and {time.shape}"
            )
        norm = functools.partial(GroupNorm, epsilon=1e-5, dtype=self.dtype)
        waves = sinusoidal_embedding(time, self.base_channels, flip_sin_to_cos=True, frequency_shift=0)
        embedding = nn.silu(TimeMLP(features=4 * self.base_channels, kernel_init=_init, name="time")(waves))

        def block(h, features, name, direction=None):
            return ResBlock(
                features=features,
                dropout=self.dropout,
                norm=norm,
                dtype=self.dtype,
                modulation="scale_shift",
                direction=direction,
                name=name,
            )(h, embedding, dropout_keys)

        def attend(h, name):
            heads = h.shape[-1] // self.head_channels
            return AttentionBlock(num_heads=heads, norm=norm, dtype=self.dtype, name=f"{name}_attention")(h)

        width = [round(self.base_channels * multiplier) for multiplier in self.multipliers]
        h = Conv(width[0], (3, 3), padding=1, dtype=self.dtype, kernel_init=_init, name="conv_in")(x)
        for level, features in enumerate(width):
            for index in range(self.num_res_blocks):
                h = block(h, features, f"down_{level}_{index}")
                if self.image_size // 2**level in self.attention_resolutions:
                    h = attend(h, f"down_{level}_{index}")
            if level < len(width) - 1:
                h = block(h, features, f"down_{level}_downsample", "down")
        h = block(attend(block(h, width[-1], "middle_0"), "middle"), width[-1], "middle_1")
        h = nn.silu(norm(name="norm_out")(h))
        pool = AttentionPool(head_channels=self.head_channels, features=self.num_classes, dtype=self.dtype, name="pool")
        logits = pool(h)
        return logits.astype(at_least_float32(logits.dtype))
