"""The reverse SDE of an interpolant, by Euler and Maruyama: SiT's stochastic sampler.

Ma et al. 2024 (arXiv 2401.08740), eq. 4 to 6; Albergo et al. 2023 (arXiv 2303.08797). For every diffusion D(t) >= 0

    (1)   dx = velocity dt - D score dt + sqrt(2 D) dW        run backwards from t = 1

has the marginals of the interpolant; the score is -noise / sigma. One step of length h = t - s is

    (2)   x_s = x_t - h velocity + h D score + sqrt(2 D h) z.

    diffusion              D, times `diffusion_norm`
    sigma                  sigma(t), the paper's best
    linear                 t
    constant               1
    decreasing             (cos(pi (1 - t)) + 1)^2 / 4, with norm inside the bracket at the cosine
    increasing_decreasing  sin^2(pi t)
    sbdm                   sigma (sigma' - sigma alpha' / alpha), half the squared diffusion of the score SDE

A transition to clean data returns the predicted x0; the authors take the mean of (2) there, over a last step of 0.04.
"""

import dataclasses
from typing import Literal

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.flow_euler import FlowEuler
from diffusion_jax.samplers.sampler import SAMPLERS, State, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid

DIFFUSIONS = ("sigma", "linear", "constant", "decreasing", "increasing_decreasing", "sbdm")


@SAMPLERS.register("sit_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SiTSDE(FlowEuler):
    """Eq. (2)."""

    order = None

    diffusion: Literal["sigma", "linear", "constant", "decreasing", "increasing_decreasing", "sbdm"] = "sigma"
    diffusion_norm: float = 1.0

    def __post_init__(self):
        if self.diffusion not in DIFFUSIONS:
            raise UserError(unknown_name("diffusion of sampler sit_sde", self.diffusion, list(DIFFUSIONS)))
        if self.diffusion_norm <= 0:
            raise UserError(f"sampler sit_sde needs diffusion_norm > 0, got {self.diffusion_norm}")

    @property
    def stochastic(self) -> bool:
        return True

    def diffusions(self, grid: TimeGrid) -> np.ndarray:
        """D at the start of every transition, float64 [N]."""
        schedule, t, norm = grid.schedule, grid.times[:-1], self.diffusion_norm
        if self.diffusion == "decreasing":
            return 0.25 * (norm * np.cos(np.pi * (1.0 - t)) + 1.0) ** 2
        if self.diffusion == "sbdm":
            if grid.alphas[0] == 0:
                raise UserError("diffusion 'sbdm' of sit_sde is infinite where alpha = 0; use 'sigma', or sampler ddim")
            slope = schedule.sigma_derivative(t) - schedule.sigma(t) * schedule.alpha_derivative(t) / schedule.alpha(t)
            return norm * schedule.sigma(t) * slope
        values = {"sigma": schedule.sigma(t), "linear": t, "constant": np.ones_like(t)}
        values["increasing_decreasing"] = np.sin(np.pi * t) ** 2
        return norm * values[self.diffusion]

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        constants, lengths = super().constants(grid), -np.diff(grid.times)
        diffusion = np.where(grid.sigmas[1:] > 0, self.diffusions(grid), 0.0)
        constants["step_noise"] = constants["step_noise"] - lengths * diffusion / grid.sigmas[:-1]
        return {**constants, "std": np.sqrt(2.0 * diffusion * lengths)}

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        mean = super().step(denoise, state, transition, key).x
        return State(x=mean + transition.constants["std"] * key.normal(mean.shape[1:], mean.dtype))
