"""The way back: samplers that walk a time grid from noise to data, and guidance."""

from diffusion_jax.samplers import (  # noqa: F401  (fill SAMPLERS)
    adams,
    ddim,
    ddpm,
    dpm2,
    dpm_solver,
    euler,
    flow_euler,
    flow_heun,
    heun,
    unipc,
)
from diffusion_jax.samplers.guidance import classifier_free
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, SampleResult, State, Transition, sample, transitions

__all__ = [
    "SAMPLERS",
    "SampleResult",
    "Sampler",
    "State",
    "Transition",
    "classifier_free",
    "sample",
    "transitions",
]
