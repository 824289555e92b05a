"""DDPM: ancestral sampling, one Gaussian step of the reversed chain at a time.

Ho et al. 2020 (arXiv 2006.11239), algorithm 2, written for any schedule: x_s is drawn from q(x_s | x_t, x0) of
`schedulers/gaussian_chain.py`, eq. (1), with the predicted x0 instead of x0. Its variance is

    small      that of q(x_s | x_t, x0)
    large      that of q(x_t | x_s)
    learned    between the two, as the network says (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15)

The transition to clean data gets no noise: it returns the predicted x0.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition
from diffusion_jax.schedulers import Denoiser, ReverseSteps, TimeGrid

VARIANCES = ("small", "large", "learned")


@SAMPLERS.register("ddpm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """Ancestral sampling with `variance` "small", "large" or "learned"."""

    variance: Literal["small", "large", "learned"] = "small"

    def __post_init__(self):
        if self.variance not in VARIANCES:
            raise UserError(f"the variance of sampler ddpm is one of {VARIANCES}, got {self.variance!r}")

    @property
    def stochastic(self) -> bool:
        return True

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        steps, noisy = ReverseSteps.of(grid), grid.sigmas[1:] > 0
        constants = {"mean_xt": steps.mean_xt, "mean_x0": steps.mean_x0}
        if self.variance == "learned":
            return {**constants, "log_small": steps.log_small, "log_large": steps.log_large, "noisy": 1.0 * noisy}
        return {**constants, "std": np.sqrt(np.where(noisy, getattr(steps, self.variance), 0.0))}

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        prediction = denoise(state.x, transition.t)
        mean = c["mean_xt"] * state.x + c["mean_x0"] * prediction.x0
        if self.variance == "learned":
            fraction = prediction.variance_fraction
            if fraction is None:
                raise UserError(
                    "sampler ddpm with variance='learned' needs a network that learned variances: a head of twice "
                    "the channels (model.out_channels) trained by the hybrid or vlb objective; use 'small' or 'large'"
                )
            log_variance = fraction * c["log_large"] + (1.0 - fraction) * c["log_small"]
            std = c["noisy"] * jnp.exp(0.5 * log_variance)
        else:
            std = c["std"]
        return State(x=mean + std * key.normal(mean.shape[1:], mean.dtype))
