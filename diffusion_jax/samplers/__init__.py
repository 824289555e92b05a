"""The way back: samplers that walk a time grid from noise to data, and guidance."""

from diffusion_jax.samplers import (  # noqa: F401  (fill SAMPLERS)
    adams,
    ddim,
    ddpm,
    dpm_solver,
    euler,
    few_step,
    flow_euler,
    flow_heun,
    heun,
    predictor_corrector,
    restart,
    rk45,
    sde_multistep,
    sit_sde,
    two_stage,
    unipc,
)
from diffusion_jax.samplers.guidance import (
    AdaptiveProjected,
    Extrapolate,
    Rescaled,
    autoguidance,
    classifier_free,
    classifier_guided,
    dynamic_threshold,
    in_interval,
    interval,
)
from diffusion_jax.samplers.inverse import posterior, repaint, replacement, sdedit
from diffusion_jax.samplers.inversion import Inversion, invert
from diffusion_jax.samplers.sampler import (
    SAMPLERS,
    Sampler,
    SampleResult,
    State,
    Transition,
    evaluation_times,
    sample,
    transitions,
)
from diffusion_jax.samplers.tokens import DISCRETE_SAMPLERS, TokenSampler, TokenSamples, sample_tokens

__all__ = [
    "DISCRETE_SAMPLERS",
    "SAMPLERS",
    "AdaptiveProjected",
    "Extrapolate",
    "Inversion",
    "Rescaled",
    "SampleResult",
    "Sampler",
    "State",
    "TokenSampler",
    "TokenSamples",
    "Transition",
    "autoguidance",
    "classifier_free",
    "classifier_guided",
    "dynamic_threshold",
    "evaluation_times",
    "in_interval",
    "interval",
    "invert",
    "posterior",
    "repaint",
    "replacement",
    "sample",
    "sample_tokens",
    "sdedit",
    "transitions",
]
