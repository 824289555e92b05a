"""The table of networks. A config says {"name": "dit", "size": "XL/2", ...}; the data adds image_size and the like."""

from diffusion_jax.models.network import Network
from diffusion_jax.registry import Registry

MODELS: Registry[Network] = Registry("model")
