"""Heun's second-order method with optional churn: algorithms 1 and 2 of EDM.

Karras et al. 2022 (arXiv 2206.00364). In z = xt / alpha with noise level sigma~ = sigma / alpha (see `euler.py`), one
transition from sigma~_i to sigma~_{i+1} is

    gamma_i = min(S_churn / N, sqrt(2) - 1)   if S_min <= sigma~_i <= S_max, else 0
    s^      = sigma~_i + gamma_i sigma~_i                        raise the noise level a little ...
    z^      = z_i + sqrt(s^^2 - sigma~_i^2) eps                  ... by fresh noise, eps ~ N(0, S_noise^2)
    d       = (z^ - D(z^; s^)) / s^                              the slope there, which is the predicted noise
    z'      = z^ + (sigma~_{i+1} - s^) d                         Euler step
    if sigma~_{i+1} != 0:
        d'  = (z' - D(z'; sigma~_{i+1})) / sigma~_{i+1}          the slope at the end
        z'  = z^ + (sigma~_{i+1} - s^) (d + d') / 2              trapezoid

S_churn = 0 is algorithm 1. The last transition ends at sigma~ = 0 and has no correction, and `lax.cond` skips its
second evaluation: 2 N - 1 evaluations.

A schedule that has no noise level above that of t = 1 cannot churn there; the raised level is then the highest one.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition, require_signal
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("heun")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """EDM's sampler, with the paper's names for the churn options; needs alpha > 0 at t = 1."""

    order: ClassVar[int] = 2

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self):
        if self.s_churn < 0 or self.s_noise < 0 or self.s_min > self.s_max:
            raise UserError(
                f"sampler heun needs s_churn >= 0, s_noise >= 0 and s_min <= s_max, "
                f"got {self.s_churn}, {self.s_noise}, {self.s_min}, {self.s_max}"
            )

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        return 2 * num_steps - (1 if ends_clean else 0)

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        require_signal(self, grid)
        levels = grid.sigmas / grid.alphas
        level, next_level = levels[:-1], levels[1:]
        churned = (self.s_min <= level) & (level <= self.s_max)
        gamma = np.where(churned, min(self.s_churn / grid.num_steps, math.sqrt(2) - 1), 0.0)
        raised_time = np.where(
            gamma > 0, grid.schedule.time_of_log_snr(-2 * np.log(level * (1 + gamma))), grid.times[:-1]
        )
        raised_level = np.where(gamma > 0, np.exp(-0.5 * grid.schedule.log_snr(raised_time)), level)
        return {
            "raised_time": raised_time,
            "raised_alpha": grid.schedule.alpha(raised_time),
            "added_std": self.s_noise * np.sqrt(np.maximum(raised_level**2 - level**2, 0.0)),
            "step_size": next_level - raised_level,
        }

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        z = state.x / transition.alpha_t
        if self.stochastic:
            z = z + c["added_std"] * key.normal(z.shape[1:], z.dtype)
        slope = denoise(c["raised_alpha"] * z, c["raised_time"]).noise
        z_euler = z + c["step_size"] * slope

        def trapezoid() -> Array:
            end_slope = denoise(transition.alpha_s * z_euler, transition.s).noise
            return z + c["step_size"] * 0.5 * (slope + end_slope)

        z_next = jax.lax.cond(transition.sigma_s > 0, trapezoid, lambda: z_euler)
        return State(x=transition.alpha_s * z_next)
