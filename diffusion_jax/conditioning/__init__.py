"""From the raw fields of a batch to what a network is told: labels, numbers, and what more is registered."""

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Conditioner, Conditioning, Conditions
from diffusion_jax.conditioning.label import Label
from diffusion_jax.conditioning.numbers import Numbers

__all__ = ["CONDITIONERS", "Conditioner", "Conditioning", "Conditions", "Label", "Numbers"]
