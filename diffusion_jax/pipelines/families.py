"""Families of published text-to-image models: their classes of pipelines, and the defaults of a call."""

import dataclasses
from collections.abc import Callable, Mapping

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import prompts
from diffusion_jax.pipelines.prompts import Asked, Reader, Told
from diffusion_jax.registry import unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
      encode: from prompts to the network's conditions.
      reading: from tokens to conditions, by name in `conditioning.published.READINGS`; None if prompts are packed with
        the picture.
      encoders: number of text encoders.
      steps, guidance, strength: defaults of a call; `strength` for image-to-image and inpainting.
      side: side of a picture in pixels.
      length: tokens of the long text encoder.
      patch: latents along a side that the network takes together.
      rounds_kept: whether image-to-image rounds down the number of steps that it takes, instead of the number that it
        leaves out.
      embeds_guidance: whether guidance_scale is an input of the network (Flux); guidance is then `true_cfg_scale`.
      edits: what `image` is for, "start" or "reference" (Kontext).
      has_sizes: whether the network takes sizes and crops.
      gives_zero_negative: whether zeros replace a missing negative prompt.
      pixels_first: whether the network packs 2 x 2 latents as channels (row, column, channel), while the autoencoder
        packs them as (channel, row, column).
      latent_scale: the factor of latents if it differs from the autoencoder's config; 0: the config's factor.
      inpaints_unshifted: whether inpainted latents are decoded without their shift, as in the reference library.
    """

    encode: Callable[[Reader, Asked], Told]
    reading: str | None = None
    encoders: int = 1
    steps: int = 50
    guidance: float = 7.5
    strength: tuple[float, float] = (0.8, 1.0)
    side: int = 512
    length: int = 77
    patch: int = 1
    rounds_kept: bool = True
    embeds_guidance: bool = False
    edits: str = "start"
    has_sizes: bool = False
    gives_zero_negative: bool = False
    inpaints_unshifted: bool = False
    pixels_first: bool = False
    latent_scale: float = 0.0


_SD = Family(encode=prompts.of_sd, reading="sd")
_XL = Family(
    encode=prompts.of_xl,
    reading="xl", encoders=2, guidance=5.0, strength=(0.3, 0.9999), side=1024, has_sizes=True,
    gives_zero_negative=True,
)  # fmt: skip
_SD3 = Family(
    encode=prompts.of_sd3,
    reading="sd3", encoders=3, steps=28, guidance=7.0, strength=(0.6, 0.6), side=1024, length=256, patch=2,
    rounds_kept=False, inpaints_unshifted=True,
)  # fmt: skip
_FLUX = Family(
    encode=prompts.of_flux,
    reading="flux", encoders=2, steps=28, guidance=3.5, strength=(0.6, 0.6), side=1024, length=512, patch=2,
    rounds_kept=False, embeds_guidance=True,
)  # fmt: skip


def _but(family: Family, **fields) -> Family:
    return dataclasses.replace(family, **fields)


FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionControlNetPipeline": _SD,
    "StableDiffusionInstructPix2PixPipeline": _but(_SD, steps=100),
    "StableDiffusionUpscalePipeline": _but(_SD, steps=75, guidance=9.0, latent_scale=0.08333),
    "LatentConsistencyModelPipeline": _but(_SD, steps=4, guidance=8.5),
    "LatentConsistencyModelImg2ImgPipeline": _but(_SD, steps=4, guidance=8.5),
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLImg2ImgPipeline": _XL,
    "StableDiffusionXLInpaintPipeline": _but(_XL, guidance=7.5),
    "StableDiffusionXLControlNetPipeline": _XL,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _but(_SD3, steps=50),
    "StableDiffusion3InpaintPipeline": _but(_SD3, steps=50),
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _but(_FLUX, guidance=7.0),
    "FluxInpaintPipeline": _but(_FLUX, guidance=7.0),
    "FluxKontextPipeline": _but(_FLUX, edits="reference"),
    "FluxFillPipeline": _but(_FLUX, steps=50, guidance=30.0, strength=(1.0, 1.0)),
    "Ideogram4Pipeline": Family(
        encode=prompts.of_ideogram,
        steps=48,
        guidance=7.0,
        side=2048,
        length=2048,
        patch=1,
        rounds_kept=False,
        pixels_first=True,
    ),
}


def family_of(name: str) -> Family:
    """The family of diffusers' class of pipelines.

    Raises:
      UserError: the class is unknown.
    """
    if name not in FAMILIES:
        raise UserError(unknown_name("class of pipelines", name, list(FAMILIES)))
    return FAMILIES[name]
