"""The table of networks. A config says {"name": "dit", "size": "XL/2", ...}; the data adds image_size and the like."""

import inspect

from diffusion_jax.models.network import Network
from diffusion_jax.registry import Registry

MODELS: Registry[Network] = Registry("model")


def reading_tokens() -> list[str]:
    """The names of the networks that read tokens as numbers if they get the sequence's length, `length`."""
    return [name for name in MODELS if "length" in inspect.signature(MODELS[name]).parameters]
