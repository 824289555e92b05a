"""Losses: pure functions of (denoiser, batch, key)."""

from diffusion_jax.objectives.denoising import Denoising
from diffusion_jax.objectives.objective import OBJECTIVES, Objective
from diffusion_jax.objectives.weighting import WEIGHTINGS, Weighting

__all__ = ["OBJECTIVES", "WEIGHTINGS", "Denoising", "Objective", "Weighting"]
