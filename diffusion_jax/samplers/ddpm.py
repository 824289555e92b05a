"""DDPM: ancestral sampling, one Gaussian step of the reversed chain at a time.

Ho et al. 2020 (arXiv 2006.11239), algorithm 2, written for any schedule (Kingma et al. 2021, arXiv 2107.00630, app. A).
For s < t let

    (1)   alpha_ts = alpha_t / alpha_s,      sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2,

the scale and variance of q(x_t | x_s); on neighbouring steps of a DDPM table sigma_ts^2 is beta_t. Then

    (2)   q(x_s | x_t, x0) = N( alpha_ts sigma_s^2 / sigma_t^2 x_t + alpha_s sigma_ts^2 / sigma_t^2 x0,
                                sigma_ts^2 sigma_s^2 / sigma_t^2 ),                          (Ho et al., eq. 6, 7)

and the sampler puts the predicted x0 in the place of x0. Its variance is that of (2), "small", which is right for data
at a point, or sigma_ts^2, "large", which is right for unit Gaussian data (Ho et al., sec. 3.2).

The transition to clean data has sigma_s = 0 and gets no noise: it returns the predicted x0.
"""

import dataclasses

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("ddpm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """Ancestral sampling with `variance` "small" or "large"."""

    variance: str = "small"

    def __post_init__(self):
        if self.variance not in ("small", "large"):
            raise UserError(f"the variance of sampler ddpm is 'small' or 'large', got {self.variance!r}")

    @property
    def stochastic(self) -> bool:
        return True

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        alpha_t, alpha_s = grid.alphas[:-1], grid.alphas[1:]
        sigma_t, sigma_s = grid.sigmas[:-1], grid.sigmas[1:]
        small, large = reverse_variances(grid)
        return {
            "mean_xt": alpha_t / alpha_s * (sigma_s / sigma_t) ** 2,
            "mean_x0": alpha_s * large / sigma_t**2,
            "std": np.sqrt(small if self.variance == "small" else np.where(sigma_s > 0, large, 0.0)),
        }

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        x0 = denoise(state.x, transition.t).x0
        mean = c["mean_xt"] * state.x + c["mean_x0"] * x0
        return State(x=mean + c["std"] * key.normal(mean.shape[1:], mean.dtype))


def reverse_variances(grid: TimeGrid) -> tuple[np.ndarray, np.ndarray]:
    """The variance of q(x_s | x_t, x0) and that of q(x_t | x_s), for every transition; float64 [N] each."""
    sigma_t, sigma_s = grid.sigmas[:-1], grid.sigmas[1:]
    # sigma_ts^2 = sigma_t^2 (1 - SNR_t / SNR_s), without cancellation
    large = -(sigma_t**2) * np.expm1(grid.log_snrs[:-1] - grid.log_snrs[1:])
    return large * (sigma_s / sigma_t) ** 2, large
