"""The way in: noise schedules, predictions, parameterisations, and the times that training and sampling visit."""

from diffusion_jax.schedulers import edm, rectified_flow, variance_preserving  # noqa: F401  (fill SCHEDULES)
from diffusion_jax.schedulers.parameterization import INPUT_SCALES, TIME_INPUTS, Parameterization, built
from diffusion_jax.schedulers.prediction import PREDICTIONS, Denoiser, Prediction, PredictionKind, corrupt
from diffusion_jax.schedulers.schedule import SCHEDULES, NoiseSchedule
from diffusion_jax.schedulers.time_grids import GRIDS, GridRule, TimeGrid
from diffusion_jax.schedulers.time_samplers import TIME_SAMPLERS, TimeSampler

__all__ = [
    "GRIDS",
    "INPUT_SCALES",
    "PREDICTIONS",
    "SCHEDULES",
    "TIME_INPUTS",
    "TIME_SAMPLERS",
    "Denoiser",
    "GridRule",
    "NoiseSchedule",
    "Parameterization",
    "Prediction",
    "PredictionKind",
    "TimeGrid",
    "TimeSampler",
    "built",
    "corrupt",
]
