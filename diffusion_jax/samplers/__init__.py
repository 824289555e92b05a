"""From noise to data: samplers that walk a time grid, guidance, projections, inversion and editing."""

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
from diffusion_jax.samplers.editing import INVERSIONS, Inversion, edit, sdedit, up_to
from diffusion_jax.samplers.guidance import GUIDANCE, NoGuidance, Rule, guided
from diffusion_jax.samplers.projections import PROJECTIONS, Measurement, Projection, Region, sample_given
from diffusion_jax.samplers.sampler import (
    SAMPLERS,
    Sampler,
    SampleResult,
    State,
    Transition,
    Walk,
    evaluation_times,
    sample,
    samplers_of,
    transitions,
)
from diffusion_jax.samplers.tokens import TokenSampler, TokenSamples, sample_tokens

__all__ = [
    "GUIDANCE",
    "INVERSIONS",
    "PROJECTIONS",
    "SAMPLERS",
    "Inversion",
    "Measurement",
    "NoGuidance",
    "Projection",
    "Region",
    "Rule",
    "SampleResult",
    "Sampler",
    "State",
    "TokenSampler",
    "TokenSamples",
    "Transition",
    "Walk",
    "edit",
    "evaluation_times",
    "guided",
    "sample",
    "sample_given",
    "sample_tokens",
    "samplers_of",
    "sdedit",
    "transitions",
    "up_to",
]
