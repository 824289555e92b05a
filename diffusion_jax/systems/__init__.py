"""Whole models: what is trained, sampled, adapted, saved and loaded."""

from diffusion_jax.systems.groups import Params, fingerprint, split_groups, under, within
from diffusion_jax.systems.model import CODEC, CONDITIONING, NETWORK, Model

__all__ = ["CODEC", "CONDITIONING", "NETWORK", "Model", "Params", "fingerprint", "split_groups", "under", "within"]
