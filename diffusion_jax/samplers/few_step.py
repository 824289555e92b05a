"""Samplers for networks that jump: consistency models, LCM, sCM, TCD, and flow maps (shortcut, MeanFlow).

A *consistency* function predicts, as x0, the end point of the probability-flow ODE. Its samplers alternate between that
end point and fresh noise (Song et al. 2023, arXiv 2303.01469, algorithm 1),

    (1)   x_s = alpha_s x0(x_t, t) + std_s z,

with std_s = alpha_s sqrt(rho_s^2 - rho_0^2) for a function that ends at the schedule's own least noise level rho_0
(rho = sigma / alpha), as consistency models do on EDM's schedule; and std_s = sigma_s in latent consistency models (Luo
et al. 2023, arXiv 2310.04378) and sCM (Lu & Song 2024, arXiv 2410.11081; on trigflow (1) is their cos(s) x0 + sin(s)
z).

A *flow map* predicts the point of the ODE at time s (see `schedulers.Denoiser`), and so

    (2)   x_s = alpha_s x0(x_t, t, s) + sigma_s noise(x_t, t, s)

is exact, in any number of steps: n-step shortcut models (Frans et al. 2024, arXiv 2410.12557) and MeanFlow (Geng et al.
2025, arXiv 2505.13447). With gamma > 0 the map goes further down, to s' = (1 - gamma) s, and fresh noise brings it back
up to s: trajectory consistency (Zheng et al. 2024, arXiv 2402.19159, TCD; Kim et al. 2023, CTM), gamma = 1 being (1).

The transition to clean data returns the predicted x0.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("consistency")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Sampler):
    """Eq. (1); `from_least_noise` chooses the first of the two noise levels."""

    denoiser_kind: ClassVar[Literal["consistency"]] = "consistency"

    from_least_noise: bool = True

    @property
    def stochastic(self) -> bool:
        return True

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        std = grid.sigmas[1:]
        if self.from_least_noise:
            least = float(grid.schedule.sigma(0.0) / grid.schedule.alpha(0.0))
            std = np.sqrt(np.maximum(std**2 - (grid.alphas[1:] * least) ** 2, 0.0))
        return {"std": std}

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        x0 = denoise(state.x, transition.t).x0
        noise = key.normal(x0.shape[1:], x0.dtype)
        return State(x=transition.alpha_s * x0 + transition.constants["std"] * noise)


def _to_full_noise() -> Consistency:
    """Eq. (1) with std_s = sigma_s."""
    return Consistency(from_least_noise=False)


SAMPLERS.register("lcm")(_to_full_noise)
SAMPLERS.register("scm")(_to_full_noise)


@SAMPLERS.register("flow_map")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMap(Sampler):
    """Eq. (2), with `gamma` in [0, 1]."""

    denoiser_kind: ClassVar[Literal["flow_map"]] = "flow_map"

    gamma: float = 0.0

    def __post_init__(self):
        if not 0 <= self.gamma <= 1:
            raise UserError(f"gamma of sampler flow_map must lie in [0, 1], got {self.gamma}")

    @property
    def stochastic(self) -> bool:
        return self.gamma > 0

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        lower, clean = (1.0 - self.gamma) * grid.times[1:], grid.sigmas[1:] == 0
        alpha = np.where(clean, 1.0, grid.schedule.alpha(lower))
        sigma = np.where(clean, 0.0, grid.schedule.sigma(lower))
        ratio = grid.alphas[1:] / alpha
        fresh = np.sqrt(np.maximum(grid.sigmas[1:] ** 2 - (ratio * sigma) ** 2, 0.0))
        return {"lower": lower, "x0": ratio * alpha, "noise": ratio * sigma, "fresh": fresh}

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        prediction = denoise(state.x, transition.t, c["lower"])
        x = c["x0"] * prediction.x0 + c["noise"] * prediction.noise
        if self.stochastic:
            x = x + c["fresh"] * key.normal(x.shape[1:], x.dtype)
        return State(x=x)


@SAMPLERS.register("tcd")
def tcd(gamma: float = 0.3) -> FlowMap:
    """Strategic stochastic sampling of TCD, whose eta is `gamma`."""
    return FlowMap(gamma=gamma)
