"""Networks: Flax modules that map (x, time, conditioning) to an image-shaped output; they know nothing of noise."""

from diffusion_jax.models.dit import DIT_SIZES, DiT
from diffusion_jax.models.layers import attention, sinusoidal_embedding
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.network import Network, count_parameters, example_inputs, init_params
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.unet import UNet

__all__ = [
    "DIT_SIZES",
    "MLP",
    "MODELS",
    "DiT",
    "Network",
    "UNet",
    "attention",
    "count_parameters",
    "example_inputs",
    "init_params",
    "sinusoidal_embedding",
]
