"""Losses: pure functions of (denoiser, batch, key)."""

from diffusion_jax.objectives.denoising import Denoising
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Context, Objective
from diffusion_jax.objectives.weighting import WEIGHTINGS, Weighting

__all__ = ["NO_CONTEXT", "OBJECTIVES", "WEIGHTINGS", "Context", "Denoising", "Objective", "Weighting"]
