"""U-Nets by the names of their papers: ADM, consistency models and EDM on ImageNet 64, and latent diffusion."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.unet import UNet
from diffusion_jax.registry import unknown_name

# Guided diffusion's multipliers by image size (ADM, Dhariwal & Nichol 2021, tables 11-14; iDDPM at 32).
ADM_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}


@MODELS.register(
    "adm",
    example={
        "image_size": 8,
        "image_channels": 2,
        "num_classes": 3,
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "head_channels": 4,
        "augment_channels": 2,
        "dropout": 0.5,
    },
)
def adm(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    base_channels: int = 192,
    channel_multipliers: tuple[float, ...] | None = None,
    num_res_blocks: int = 3,
    attention_resolutions: tuple[int, ...] = (32, 16, 8),
    num_heads: int = 4,
    head_channels: int | None = 64,
    resampling: Literal["conv", "residual", "pool"] = "residual",
    scale_shift: bool = True,
    null_label: Literal["row", "zero"] = "zero",
    low_resolution_channels: int = 0,
    augment_channels: int = 0,
    dropout: float = 0.0,
    learn_sigma: bool = False,
    out_channels: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> UNet:
    """ADM (Dhariwal & Nichol 2021); the defaults are the ImageNet 64 network, which consistency models and EDM use too.

    iDDPM's networks (Nichol & Dhariwal 2021) are those with resampling="conv", head_channels=None, num_heads=4 and
    attention_resolutions=(16, 8). `channel_multipliers` default to those for the image size; `learn_sigma` doubles the
    output's channels.
    """
    if channel_multipliers is None:
        if image_size not in ADM_MULTIPLIERS:
            raise UserError(
                f"adm knows image_size {sorted(ADM_MULTIPLIERS)}; for {image_size} give channel_multipliers"
            )
        channel_multipliers = ADM_MULTIPLIERS[image_size]
    return UNet(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        base_channels=base_channels,
        channel_multipliers=tuple(channel_multipliers),
        num_res_blocks=num_res_blocks,
        attention_resolutions=tuple(attention_resolutions),
        num_heads=num_heads,
        head_channels=head_channels,
        resampling=resampling,
        scale_shift=scale_shift,
        null_label=null_label,
        low_resolution_channels=low_resolution_channels,
        augment_channels=augment_channels,
        dropout=dropout,
        out_channels=2 * image_channels if learn_sigma else out_channels,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        frequency_shift=0,
        downsample_padding="symmetric",
        dtype=dtype,
    )


@dataclasses.dataclass(frozen=True)
class LDMSize:
    """The differences between the U-Nets of Rombach et al. 2022 (appendix D, tables 12-15)."""

    base_channels: int
    channel_multipliers: tuple[int, ...]
    attention_at: tuple[int, ...]  # factors of downsampling
    num_heads: int = 1
    head_channels: int | None = None
    context_channels: int = 0
    label_context: bool = False
    scale_shift: bool = False
    resampling: Literal["conv", "residual", "pool"] = "conv"


LDM_SIZES: dict[str, LDMSize] = {
    "imagenet256": LDMSize(192, (1, 2, 3, 5), (2, 4, 8), context_channels=512, label_context=True),
    "unconditional": LDMSize(224, (1, 2, 3, 4), (2, 4, 8), head_channels=32),  # CelebA-HQ, FFHQ, LSUN bedrooms
    "churches": LDMSize(192, (1, 2, 2, 4, 4), (1, 2, 4, 8), num_heads=8, scale_shift=True, resampling="residual"),
    "text": LDMSize(320, (1, 2, 4, 4), (1, 2, 4), num_heads=8, context_channels=1280),
    "tiny": LDMSize(8, (1, 2), (2,), head_channels=4, context_channels=6),
}


@MODELS.register("ldm_unet", example={"image_size": 8, "image_channels": 2, "num_classes": 0, "size": "tiny"})
def ldm_unet(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    size: str = "unconditional",
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> UNet:
    """A U-Net of latent diffusion models (Rombach et al. 2022), by name; it works on latents of `image_size`."""
    if size not in LDM_SIZES:
        raise UserError(unknown_name("LDM size", size, list(LDM_SIZES)))
    named = LDM_SIZES[size]
    if named.label_context and not num_classes:
        raise UserError(f"ldm_unet size {size} attends to the label: it needs num_classes > 0")
    return UNet(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        base_channels=named.base_channels,
        channel_multipliers=named.channel_multipliers,
        num_res_blocks=2,
        attention_resolutions=tuple(image_size // factor for factor in named.attention_at),
        num_heads=named.num_heads,
        head_channels=named.head_channels,
        context_channels=named.context_channels,
        label_context=named.label_context,
        scale_shift=named.scale_shift,
        resampling=named.resampling,
        dropout=dropout,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        frequency_shift=0,
        downsample_padding="symmetric",
        dtype=dtype,
    )
