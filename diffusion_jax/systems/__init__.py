"""Whole models, which are trained, sampled, adapted, saved and loaded."""

from diffusion_jax.systems.description import describe, rebuild
from diffusion_jax.systems.first_stage import FirstStageFolder, load_first_stage, save_first_stage
from diffusion_jax.systems.folder import read_description, read_model, save_model, write_description
from diffusion_jax.systems.groups import Params, fingerprint, split_groups, under, within
from diffusion_jax.systems.model import ADAPTERS, CODEC, CONDITIONING, NETWORK, Model
from diffusion_jax.systems.recipe import Recipe

__all__ = [
    "ADAPTERS",
    "CODEC",
    "CONDITIONING",
    "NETWORK",
    "FirstStageFolder",
    "Model",
    "Params",
    "Recipe",
    "describe",
    "fingerprint",
    "load_first_stage",
    "read_description",
    "read_model",
    "rebuild",
    "save_first_stage",
    "save_model",
    "split_groups",
    "under",
    "within",
    "write_description",
]
