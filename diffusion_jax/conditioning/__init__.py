"""From the raw fields of a batch to a network's conditions: labels, numbers, texts and other registered kinds."""

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Conditioner, Conditioning, Conditions, with_masks
from diffusion_jax.conditioning.guidance import GuidanceScale
from diffusion_jax.conditioning.label import Label
from diffusion_jax.conditioning.numbers import Numbers
from diffusion_jax.conditioning.pictures import PICTURES, BesidePicture, Hole, Source
from diffusion_jax.conditioning.published import PublishedText
from diffusion_jax.conditioning.steering import ControlPicture, ReferencePicture
from diffusion_jax.conditioning.text import Text
from diffusion_jax.conditioning.told import Sizes

__all__ = [
    "CONDITIONERS",
    "PICTURES",
    "BesidePicture",
    "Conditioner",
    "Conditioning",
    "Conditions",
    "ControlPicture",
    "GuidanceScale",
    "Hole",
    "Label",
    "Numbers",
    "PublishedText",
    "ReferencePicture",
    "Sizes",
    "Source",
    "Text",
    "with_masks",
]
