"""Losses: pure functions of (denoiser, batch, key, context)."""

from diffusion_jax.objectives import (  # noqa: F401  (fill OBJECTIVES)
    consistency,
    distribution_matching,
    flow_map,
    imitation,
    progressive,
    reflow,
    scm,
    skipping,
    tokens,
    vdm,
    vlb,
)
from diffusion_jax.objectives.asking import Asking
from diffusion_jax.objectives.denoising import Denoising, data_of
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Context, Objective, of_process, with_copies
from diffusion_jax.objectives.reconstruction import RECONSTRUCTIONS, ReconstructionLoss
from diffusion_jax.objectives.weighting import WEIGHTINGS, Weighting

__all__ = [
    "NO_CONTEXT",
    "OBJECTIVES",
    "RECONSTRUCTIONS",
    "WEIGHTINGS",
    "Asking",
    "Context",
    "Denoising",
    "Objective",
    "ReconstructionLoss",
    "Weighting",
    "data_of",
    "of_process",
    "with_copies",
]
