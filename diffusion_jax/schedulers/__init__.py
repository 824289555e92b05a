"""Noise schedules, predictions, parameterisations, and the times that training and sampling visit."""

from diffusion_jax.schedulers import (  # noqa: F401  (fill SCHEDULES)
    continuous,
    edm,
    rectified_flow,
    tables,
    variance_preserving,
)
from diffusion_jax.schedulers.conversion import on_schedule
from diffusion_jax.schedulers.gaussian_chain import ReverseSteps
from diffusion_jax.schedulers.learned import LearnedSchedule, MonotoneGamma
from diffusion_jax.schedulers.parameterization import INPUT_SCALES, TIME_INPUTS, Parameterization, built
from diffusion_jax.schedulers.prediction import PREDICTIONS, Denoiser, Prediction, PredictionKind, corrupt
from diffusion_jax.schedulers.process import PROCESSES, Process, with_process
from diffusion_jax.schedulers.schedule import SCHEDULES, NoiseSchedule
from diffusion_jax.schedulers.tables import space_timesteps
from diffusion_jax.schedulers.time_grids import GRIDS, GridRule, TimeGrid, shift_of_size, shifted
from diffusion_jax.schedulers.time_samplers import TIME_SAMPLERS, TimeSampler
from diffusion_jax.schedulers.token_chains import TokenChain
from diffusion_jax.schedulers.tokens import (
    TOKEN_SCHEDULES,
    TokenDenoiser,
    TokenProcess,
)

__all__ = [
    "GRIDS",
    "INPUT_SCALES",
    "PREDICTIONS",
    "PROCESSES",
    "SCHEDULES",
    "TIME_INPUTS",
    "TIME_SAMPLERS",
    "TOKEN_SCHEDULES",
    "Denoiser",
    "GridRule",
    "LearnedSchedule",
    "MonotoneGamma",
    "NoiseSchedule",
    "Parameterization",
    "Prediction",
    "PredictionKind",
    "Process",
    "ReverseSteps",
    "TimeGrid",
    "TimeSampler",
    "TokenChain",
    "TokenDenoiser",
    "TokenProcess",
    "built",
    "corrupt",
    "on_schedule",
    "shift_of_size",
    "shifted",
    "space_timesteps",
    "with_process",
]
