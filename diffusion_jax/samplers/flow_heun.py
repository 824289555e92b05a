"""Heun steps of the probability-flow ODE in t, for flow matching.

With the velocity v of `flow_euler.py`, eq. (1), one transition t -> s is

    (1)   x' = x + (s - t) v(x, t),        x_s = x + (s - t) (v(x, t) + v(x', s)) / 2.

A transition to clean data has no velocity at its end and is an Euler step, as JiT (Li & He 2025, arXiv 2511.13720) and
SD3's samplers end: 2 N - 1 evaluations.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.flow_euler import FlowEuler
from diffusion_jax.samplers.sampler import SAMPLERS, State, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("flow_heun")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowHeun(FlowEuler):
    """Eq. (1)."""

    order: ClassVar[int] = 2

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        return 2 * num_steps - (1 if ends_clean else 0)

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        ends, step_size, to_clean = grid.times[1:], np.diff(grid.times), grid.sigmas[1:] == 0
        alpha_slope, sigma_slope = np.zeros_like(ends), np.zeros_like(ends)
        alpha_slope[~to_clean] = grid.schedule.alpha_derivative(ends[~to_clean])
        sigma_slope[~to_clean] = grid.schedule.sigma_derivative(ends[~to_clean])
        return {
            **super().constants(grid),
            "end_x0": step_size * alpha_slope,
            "end_noise": step_size * sigma_slope,
        }

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        first = denoise(state.x, transition.t)
        euler = c["keep"] * state.x + c["step_x0"] * first.x0 + c["step_noise"] * first.noise

        def trapezoid() -> jax.Array:
            end = denoise(euler, transition.s)
            return state.x + 0.5 * (euler - state.x + c["end_x0"] * end.x0 + c["end_noise"] * end.noise)

        return State(x=jax.lax.cond(transition.sigma_s > 0, trapezoid, lambda: euler))
