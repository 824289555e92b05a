"""Euler steps of the probability-flow ODE in t, as flow matching samples.

Along the marginal flow (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003)

    (1)   dx / dt = E[alpha'(t) x0 + sigma'(t) noise | xt] = velocity(xt, t),
    (2)   x_s = x_t + (s - t) velocity(x_t, t).

On rectified_flow alpha' = -1 and sigma' = 1, so velocity = noise - x0 and (2) coincides with DDIM. Other schedules may
be walked too, as long as t = 0 is clean data: the jump of edm from t = 0 to clean data takes no time.
"""

import dataclasses

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("flow_euler")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowEuler(Sampler):
    """Eq. (2)."""

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        step_size = np.diff(grid.times)
        if np.any(step_size == 0):
            raise UserError(
                f"sampler flow_euler steps in t, and {type(grid.schedule).__name__} still has noise at t = 0; "
                "use euler, ddim or dpmpp_2m"
            )
        times = grid.times[:-1]
        return {
            "step_x0": step_size * grid.schedule.alpha_derivative(times),
            "step_noise": step_size * grid.schedule.sigma_derivative(times),
        }

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        prediction = denoise(state.x, transition.t)
        return State(x=state.x + c["step_x0"] * prediction.x0 + c["step_noise"] * prediction.noise)
