"""Euler steps of the probability-flow ODE in t, as flow matching samples.

Along the marginal flow (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003)

    (1)   dx / dt = E[alpha'(t) x0 + sigma'(t) noise | xt] = velocity(xt, t),
    (2)   x_s = x_t + (s - t) velocity(x_t, t).

On rectified_flow alpha' = -1 and sigma' = 1, so velocity = noise - x0 and (2) coincides with DDIM.

A transition to clean data returns the predicted x0. On rectified_flow (2) gives the same. On other schedules (2)
cannot, because sigma' is unbounded at t = 0 (tables of betas) or because the jump to clean data takes no time (edm).
"""

import dataclasses
from typing import ClassVar

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("flow_euler")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowEuler(Sampler):
    """Eq. (2)."""

    order: ClassVar[int] = 1

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        times, step_size, to_clean = grid.times[:-1], np.diff(grid.times), grid.sigmas[1:] == 0
        if not np.isfinite(grid.schedule.alpha_derivative(times[~to_clean])).all():
            raise UserError(
                f"sampler {type(self).__name__} steps in t, and alpha' is infinite at t = 1 of "
                f"{type(grid.schedule).__name__}; use ddim or dpmpp_2m"
            )
        return {
            "keep": np.where(to_clean, 0.0, 1.0),
            "step_x0": np.where(to_clean, 1.0, step_size * _finite(grid.schedule.alpha_derivative(times), to_clean)),
            "step_noise": np.where(to_clean, 0.0, step_size * _finite(grid.schedule.sigma_derivative(times), to_clean)),
        }

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        prediction = denoise(state.x, transition.t)
        return State(x=c["keep"] * state.x + c["step_x0"] * prediction.x0 + c["step_noise"] * prediction.noise)


def _finite(slopes: np.ndarray, unused: np.ndarray) -> np.ndarray:
    """The slopes, with zeros where they are not used and may be infinite."""
    return np.where(unused, 0.0, slopes)
