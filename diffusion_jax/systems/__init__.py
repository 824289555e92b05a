"""Whole models: what is trained, sampled, adapted, saved and loaded."""

from diffusion_jax.systems.description import describe, rebuild
from diffusion_jax.systems.folder import read_description, read_model, save_model, write_description
from diffusion_jax.systems.groups import Params, fingerprint, split_groups, under, within
from diffusion_jax.systems.model import CODEC, CONDITIONING, NETWORK, Model

__all__ = [
    "CODEC",
    "CONDITIONING",
    "NETWORK",
    "Model",
    "Params",
    "describe",
    "fingerprint",
    "read_description",
    "read_model",
    "rebuild",
    "save_model",
    "split_groups",
    "under",
    "within",
    "write_description",
]
