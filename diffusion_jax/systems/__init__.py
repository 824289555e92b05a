"""Whole models: what is trained, sampled, adapted, saved and loaded."""

from diffusion_jax.systems.first_stage import FirstStageFolder, load_first_stage, save_first_stage
from diffusion_jax.systems.groups import Params, fingerprint, split_groups, under, within
from diffusion_jax.systems.model import CODEC, CONDITIONING, NETWORK, Model

__all__ = [
    "CODEC",
    "CONDITIONING",
    "NETWORK",
    "FirstStageFolder",
    "Model",
    "Params",
    "fingerprint",
    "load_first_stage",
    "save_first_stage",
    "split_groups",
    "under",
    "within",
]
