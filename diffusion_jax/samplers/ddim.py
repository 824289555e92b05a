"""DDIM: predict the data and the noise, and mix them again for the next noise level.

Song et al. 2020 (arXiv 2010.02502), eq. 12 and 16, in the terms of x_t = alpha_t x0 + sigma_t noise:

    (1)   x_s = alpha_s x0 + sqrt(sigma_s^2 - sigma_eta^2) noise + sigma_eta z,      z ~ N(0, I),
    (2)   sigma_eta = eta sqrt(variance of q(x_s | x_t, x0))                         (`schedulers/gaussian_chain.py`).

eta = 0 is deterministic, an Euler step of the probability-flow ODE in sigma / alpha; it is also DPM-Solver-1. eta = 1
is DDPM with the small variance.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition
from diffusion_jax.schedulers import Denoiser, ReverseSteps, TimeGrid


@SAMPLERS.register("ddim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """Eq. (1) with eta in [0, 1]."""

    order: ClassVar[int] = 1

    eta: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta of sampler ddim must lie in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        variance = self.eta**2 * ReverseSteps.of(grid).small
        return {
            "fresh": np.sqrt(variance),
            "signal": grid.alphas[1:],
            "kept": np.sqrt(grid.sigmas[1:] ** 2 - variance),
        }

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        prediction = denoise(state.x, transition.t)
        x = c["signal"] * prediction.x0 + c["kept"] * prediction.noise
        if self.stochastic:
            x = x + c["fresh"] * key.normal(x.shape[1:], x.dtype)
        return State(x=x)


@SAMPLERS.register("euler_ancestral")
def euler_ancestral(eta: float = 1.0) -> DDIM:
    """k-diffusion's Euler a: an Euler step in sigma / alpha to a lower level, and fresh noise; it is DDIM with eta."""
    return DDIM(eta=eta)
