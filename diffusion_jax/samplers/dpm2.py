"""DPM2: the midpoint method in the noise level, with the geometric mean as midpoint.

Karras et al. 2022 (arXiv 2206.00364), app. D, in the variables of `euler.py`, z = xt / alpha, sigma~ = sigma / alpha,
as k-diffusion made it known: one transition from sigma~_i to sigma~_{i+1} is

    sigma~_m = sqrt(sigma~_i sigma~_{i+1})
    z_m      = z_i + (sigma~_m - sigma~_i) noise(z_i, sigma~_i)
    z_{i+1}  = z_i + (sigma~_{i+1} - sigma~_i) noise(z_m, sigma~_m).

A transition to clean data is an Euler step: 2 N - 1 evaluations.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition, require_signal
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("dpm2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPM2(Sampler):
    """The midpoint method; needs alpha > 0 at t = 1."""

    order: ClassVar[int] = 2

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        return 2 * num_steps - (1 if ends_clean else 0)

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        require_signal(self, grid)
        levels = grid.sigmas / grid.alphas
        middle_level = np.sqrt(levels[:-1] * levels[1:])
        middle_time = grid.times[1:].copy()
        inner = middle_level > 0
        middle_time[inner] = grid.schedule.time_of_log_snr(-2.0 * np.log(middle_level[inner]))
        return {
            "to_middle": middle_level - levels[:-1],
            "to_end": np.diff(levels),
            "middle_time": middle_time,
            "middle_alpha": np.where(inner, grid.schedule.alpha(middle_time), 1.0),
        }

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        z = state.x / transition.alpha_t
        slope = denoise(state.x, transition.t).noise

        def midpoint() -> jax.Array:
            return denoise(c["middle_alpha"] * (z + c["to_middle"] * slope), c["middle_time"]).noise

        slope = jax.lax.cond(transition.sigma_s > 0, midpoint, lambda: slope)
        return State(x=transition.alpha_s * (z + c["to_end"] * slope))
