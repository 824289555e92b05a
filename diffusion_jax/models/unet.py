"""The U-Net of DDPM (Ho et al. 2020, appendix B) and its descendants: iDDPM, ADM, latent diffusion, consistency models.

Levels l = 0 ... L-1 work at 1 / 2^l of the resolution with `base_channels * channel_multipliers[l]` channels. On the
downward path each level has `num_res_blocks` residual blocks and keeps every result; on the upward path it has one
block more, and each takes one kept result. At the resolutions of `attention_resolutions` self-attention follows every
residual block on both paths; the middle has block, attention, block. The time embedding enters every residual block by
addition, or by scale and shift after the second norm (iDDPM, "adaptive group normalisation").

The last layer of every residual branch, and of the network, starts at zero (DDPM's code scales it by 1e-10): a fresh
network outputs zero.

`UNet` has a field for every choice; `unet_sizes.py` has the papers' networks by name.
"""

import functools
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    LabelEmbedding,
    TimeMLP,
    at_least_float32,
    depth_to_space,
    guidance_waves,
    resample,
    sinusoidal_embedding,
    space_to_depth,
)
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.unet_blocks import AttentionBlock, Image, ResBlock, SpatialTransformer, require_halvings
from diffusion_jax.specs import GUIDANCE, ConditionSpec

_glorot = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # DDPM's, for what is not zero
_zeros = nn.initializers.zeros


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
    """A U-Net; the defaults are DDPM's CIFAR-10 network (35,746,307 parameters at 32x32x3).

    Takes images whose height and width divide by 2^(levels - 1), not only those of `image_size`; attention stays at the
    levels that `image_size` determines. With classes, an embedding of the label is added to the time embedding.

    Attributes:
      base_channels: the unit of channel_multipliers; also the width of the sinusoidal time embedding.
      channel_multipliers: channels of each level, in units of base_channels.
      num_res_blocks: residual blocks of each level on the downward path.
      attention_resolutions: feature map sizes, in pixels of an image of `image_size`, that get self-attention.
      up_attention: on the upward path, after "every" residual block of a level or only the "last", as in score SDE.
      middle_attention_norm: whether the attention in the middle has a norm; diffusers' UNet2DModel with scale_shift has
        none.
      num_heads: attention heads.
      head_channels: channels of a head, instead of `num_heads`.
      scale_shift: time scales and shifts inside residual blocks, instead of being added.
      resampling: "conv" changes resolution by a convolution, "residual" by a residual block (ADM, from BigGAN), "pool"
        by averages and repetition alone.
      null_label: whether the null class has a "row" in the table of labels, or is "zero".
      patch_size: the network takes squares with this side in pixels as one position, and returns such squares (Luhman &
        Luhman 2022, arXiv:2207.04316): the levels count from there, and each costs 1 / patch_size^2 as much.
      context_channels: width of conditions["context"], [batch, tokens, width]; if not 0, transformers that attend to
        the unmasked tokens of the context replace self-attention (latent diffusion).
      pooled_channels: width of conditions["pooled"], one vector for a whole text, which an MLP adds to the time
        embedding (SDXL, Podell et al. 2023, arXiv:2307.01952); 0 for none.
      label_context: the context is one token, the embedding of the label (LDM on ImageNet), instead of an input.
      transformer_depth: blocks of each transformer.
      low_resolution_channels: channels of conditions["low_resolution"], images of `image_size` concatenated to the
        input (the upsampled image of a super-resolution model); 0 for none.
      canvas_channels: channels of conditions["canvas"], a picture of letters of `image_size`, concatenated to the
        input; 0 for none.
      extra_channels: channels of conditions["image"], concatenated to the input: a picture to be edited, or a mask and
        the rest of a picture with a hole; 0 for none.
      image_role: whether that image is "told", or "asked" for and null for guidance (InstructPix2Pix).
      augment_channels: length of conditions["augment"], the augmentation's parameters (EDM; zeros: none); 0 for no
        slot.
      guidance_channels: waves of conditions["guidance"], the guidance scale less 1, for a network with this input (Meng
        et al. 2022, arXiv:2210.03142); 0 for none. Their layer starts at zero.
      dropout: rate inside residual blocks; active if dropout keys are given.
      out_channels: channels of the output; None means image_channels.
      norm_groups: largest number of groups of a group norm.
      norm_channels: least number of channels of a group; 4 in DDPM's and EDM's code, 1 in diffusers', which has
        `norm_groups` groups everywhere.
      norm_eps: added to its variance.
      flip_sin_to_cos, frequency_shift: convention of the time embedding, see `sinusoidal_embedding`.
      downsample_padding: padding of stride-2 convolutions: "same" pads below and right as in DDPM and TensorFlow,
        "symmetric" pads one pixel all round as in ADM.
    """

    is_convolutional: ClassVar[bool] = True

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    up_attention: Literal["every", "last"] = "every"
    middle_attention_norm: bool = True
    num_heads: int = 1
    head_channels: int | None = None
    scale_shift: bool = False
    resampling: Literal["conv", "residual", "pool"] = "conv"
    null_label: Literal["row", "zero"] = "row"
    patch_size: int = 1
    context_channels: int = 0
    pooled_channels: int = 0
    label_context: bool = False
    transformer_depth: int = 1
    low_resolution_channels: int = 0
    canvas_channels: int = 0
    extra_channels: int = 0
    image_role: Literal["asked", "told"] = "told"
    augment_channels: int = 0
    guidance_channels: int = 0
    dropout: float = 0.0
    out_channels: int | None = None
    norm_groups: int = 32
    norm_channels: int = 4
    norm_eps: float = 1e-6
    flip_sin_to_cos: bool = False
    frequency_shift: int = 1
    downsample_padding: Literal["same", "symmetric"] = "same"

    def __post_init__(self):
        super().__post_init__()
        if self.patch_size < 1:
            raise UserError(f"patch_size is a number of pixels, at least 1, got {self.patch_size}")
        halvings = require_halvings(self, len(self.channel_multipliers), self.patch_size)
        resolutions = {self.image_size // (self.patch_size * 2**level) for level in range(halvings + 1)}
        if not set(self.attention_resolutions) <= resolutions:
            raise UserError(
                f"attention_resolutions={self.attention_resolutions}: this UNet has resolutions {sorted(resolutions)}"
            )
        if self.norm_channels < 1:
            raise UserError(f"norm_channels is a number of channels, at least 1, got {self.norm_channels}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout is a rate in [0, 1), got {self.dropout}")
        for field, known in (
            ("downsample_padding", ("same", "symmetric")),
            ("up_attention", ("every", "last")),
            ("resampling", ("conv", "residual", "pool")),
            ("null_label", ("row", "zero")),
            ("image_role", ("asked", "told")),
        ):
            if getattr(self, field) not in known:
                raise UserError(f"{field} is {' or '.join(map(repr, known))}, got {getattr(self, field)!r}")

    @property
    def side_unit(self) -> int:
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        slots = super().takes
        if self.context_channels and not self.label_context:
            slots["context"] = ConditionSpec(shape=(None, self.context_channels))  # with any number of tokens
        if self.pooled_channels:
            slots["pooled"] = ConditionSpec(shape=(self.pooled_channels,))
        if self.low_resolution_channels:
            shape = (self.image_size, self.image_size, self.low_resolution_channels)
            slots["low_resolution"] = ConditionSpec(shape=shape)
        if self.canvas_channels:
            slots["canvas"] = ConditionSpec(shape=(self.image_size, self.image_size, self.canvas_channels))
        if self.extra_channels:
            shape = (None, None, self.extra_channels)
            slots["image"] = ConditionSpec(shape=shape, role=self.image_role, is_aligned=True)
        if self.augment_channels:
            slots["augment"] = ConditionSpec(shape=(self.augment_channels,), role="told")
        if self.guidance_channels:
            slots[GUIDANCE] = ConditionSpec(role="told")
        return slots

    @nn.compact
    def __call__(
        self,
        x: Image,
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Image:
        """See `Network`. Raises UserError for sizes that cannot be halved often enough."""
        self.check_inputs(x, time, conditions)
        levels, divisor = len(self.channel_multipliers), self.side_unit
        if x.shape[1] % divisor or x.shape[2] % divisor:
            raise UserError(f"UNet with {levels} levels: {x.shape[1:3]} is not divisible by {divisor}")

        norm = functools.partial(
            GroupNorm,
            max_groups=self.norm_groups,
            min_channels=self.norm_channels,
            epsilon=self.norm_eps,
            dtype=self.dtype,
        )
        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype, kernel_init=_glorot)
        embedding = nn.silu(self._embed(time, conditions))

        context, mask = None, conditions.get("context_mask")
        if self.context_channels:
            context = self._label_context(conditions) if self.label_context else conditions["context"]
        if self.low_resolution_channels:
            x = jnp.concatenate([x, conditions["low_resolution"].astype(x.dtype)], axis=-1)
        if self.canvas_channels:
            x = jnp.concatenate([x, conditions["canvas"].astype(x.dtype)], axis=-1)
        if self.extra_channels:
            x = jnp.concatenate([x, conditions["image"].astype(x.dtype)], axis=-1)

        def stage(x, level, name, attend=True, direction=None):
            features = x.shape[-1] if direction else round(self.base_channels * self.channel_multipliers[level])
            block = ResBlock(
                features=features,
                dropout=self.dropout,
                norm=norm,
                dtype=self.dtype,
                modulation="scale_shift" if self.scale_shift else "add",
                direction=direction,
                name=name,
            )
            x = block(x, embedding, dropout_keys)
            return attend_to(x, f"{name}_attention") if attend and self.has_attention(level) else x

        def attend_to(x, name):
            heads = x.shape[-1] // self.head_channels if self.head_channels else self.num_heads
            if context is None:
                own = norm if self.middle_attention_norm or name != "middle_attention" else None
                return AttentionBlock(num_heads=heads, norm=own, dtype=self.dtype, name=name)(x)
            inner = functools.partial(norm, epsilon=1e-6)
            transformer = SpatialTransformer(
                num_heads=heads, depth=self.transformer_depth, norm=inner, dtype=self.dtype, name=name
            )
            return transformer(x, context, mask)

        features = round(self.base_channels * self.channel_multipliers[0])
        h = conv(features, name="conv_in")(space_to_depth(x, self.patch_size))
        kept = [h]
        for level in range(levels):
            for block in range(self.num_res_blocks):
                h = stage(h, level, f"down_{level}_{block}")
                kept.append(h)
            if level < levels - 1:
                name = f"down_{level}_downsample"
                if self.resampling == "residual":
                    h = stage(h, level, name, attend=False, direction="down")
                elif self.resampling == "pool":
                    h = resample(h, "down")
                else:
                    padding = ((0, 1), (0, 1)) if self.downsample_padding == "same" else 1
                    h = conv(h.shape[-1], strides=2, padding=padding, name=name)(h)
                kept.append(h)

        h = stage(h, levels - 1, "middle_0", attend=False)
        h = attend_to(h, "middle_attention")
        h = stage(h, levels - 1, "middle_1", attend=False)

        for level in reversed(range(levels)):
            for block in range(self.num_res_blocks + 1):
                attend = self.up_attention == "every" or block == self.num_res_blocks
                h = stage(jnp.concatenate([h, kept.pop()], axis=-1), level, f"up_{level}_{block}", attend=attend)
            if level > 0:
                name = f"up_{level}_upsample"
                if self.resampling == "residual":
                    h = stage(h, level, name, attend=False, direction="up")
                elif self.resampling == "pool":
                    h = resample(h, "up")
                else:
                    h = conv(h.shape[-1], name=name)(resample(h, "up"))

        h = nn.silu(norm(name="norm_out")(h))
        out_channels = (self.out_channels or self.image_channels) * self.patch_size**2
        h = conv(out_channels, kernel_init=_zeros, name="conv_out")(h)
        return depth_to_space(h, self.patch_size).astype(at_least_float32(h.dtype))

    def _embed(self, time, conditions):
        """Time and class as one vector of 4 * base_channels."""
        features = 4 * self.base_channels
        waves = sinusoidal_embedding(
            time, self.base_channels, flip_sin_to_cos=self.flip_sin_to_cos, frequency_shift=self.frequency_shift
        )
        if self.augment_channels:
            dense = Dense(self.base_channels, use_bias=False, kernel_init=_zeros, name="augment")
            waves += dense(conditions["augment"].astype(waves.dtype))
        if self.guidance_channels:
            waves += guidance_waves(conditions[GUIDANCE], self.guidance_channels, self.base_channels, waves.dtype)
        embedding = TimeMLP(features=features, kernel_init=_glorot, name="time")(waves)
        if self.num_times == 2:
            interval = sinusoidal_embedding(
                time - conditions["second_time"],
                self.base_channels,
                flip_sin_to_cos=self.flip_sin_to_cos,
                frequency_shift=self.frequency_shift,
            )
            embedding += TimeMLP(features=features, kernel_init=_glorot, name="interval")(interval)
        if self.pooled_channels:
            mlp = TimeMLP(features=features, kernel_init=_glorot, name="pooled")
            embedding += mlp(conditions["pooled"].astype(embedding.dtype))
        if self.num_classes and not self.label_context:
            table = LabelEmbedding(
                num_classes=self.num_classes,
                features=features,
                null=self.null_label,
                dtype=self.dtype,
                name="label",
            )
            embedding += table(conditions["label"])
        return embedding

    def _label_context(self, conditions):
        """The label's embedding as the only token to attend to."""
        table = LabelEmbedding(
            num_classes=self.num_classes, features=self.context_channels, dtype=self.dtype, name="label"
        )
        return table(conditions["label"])[:, None]

    @nn.nowrap
    def has_attention(self, level: int) -> bool:
        """Whether this level has self-attention."""
        return self.image_size // (self.patch_size * 2**level) in self.attention_resolutions
