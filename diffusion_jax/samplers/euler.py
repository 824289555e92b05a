"""Euler steps of the probability-flow ODE in the noise level.

In the unscaled variable z = xt / alpha with the noise level sigma~ = sigma / alpha, the probability-flow ODE is, for
every schedule (Karras et al. 2022, arXiv 2206.00364, eq. 1 and 3 with s = 1, sigma~ as time),

    (1)   dz / d sigma~ = (z - D(z; sigma~)) / sigma~ = predicted noise,

and one Euler step is

    (2)   z_s = z_t + (sigma~_s - sigma~_t) noise.

Multiplied out, (2) is DDIM with eta = 0; in exact arithmetic the two are one sampler.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition, require_signal
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("euler")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    """Eq. (2); needs alpha > 0 at t = 1."""

    order: ClassVar[int] = 1

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        require_signal(self, grid)
        return {"step_size": np.diff(grid.sigmas / grid.alphas)}

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        z = state.x / transition.alpha_t
        noise = denoise(state.x, transition.t).noise
        return State(x=transition.alpha_s * (z + transition.constants["step_size"] * noise))
