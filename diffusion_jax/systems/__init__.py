"""Whole models: what is trained, sampled, adapted, saved and loaded."""

from diffusion_jax.systems.first_stage import FirstStageFolder, load_first_stage, save_first_stage
from diffusion_jax.systems.model import CODEC, CONDITIONING, NETWORK, Model, Params

__all__ = [
    "CODEC",
    "CONDITIONING",
    "NETWORK",
    "FirstStageFolder",
    "Model",
    "Params",
    "load_first_stage",
    "save_first_stage",
]
