"""Whole models: what is trained, sampled, adapted, saved and loaded."""

from diffusion_jax.systems.model import CODEC, CONDITIONING, NETWORK, Model, Params

__all__ = ["CODEC", "CONDITIONING", "NETWORK", "Model", "Params"]
