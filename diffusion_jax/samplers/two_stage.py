"""Samplers with two evaluations per transition, with or without fresh noise: DPM2, DPM++ 2S ancestral, DPM++ SDE.

All work in z = xt / alpha with the noise level rho = sigma / alpha (see `euler.py`). They are known from k-diffusion,
and go back to Karras et al. 2022 (arXiv 2206.00364, app. D) and Lu et al. 2022 (arXiv 2211.01095). An *ancestral* step
from rho_t to rho_s is a deterministic step further down, to rho_down, followed by adding fresh noise rho_up:

    (1)   rho_up = min(rho_s, eta sqrt(rho_s^2 (rho_t^2 - rho_s^2) / rho_t^2)),   rho_down^2 = rho_s^2 - rho_up^2,

which for eta = 1 leaves the marginals of the forward process as they are (it is q(x_s | x_t, x0) of `ddpm.py`). With D
the predicted x0, x(r) a first-order step to level r, and everything linear in z, D at both stages and the noise:

    dpm2, dpm2_ancestral    middle sqrt(rho_t rho_down); z' = z + (rho_down - rho_t) (z_m - D_m) / rho_m
    dpmpp_2s_ancestral      middle sqrt(rho_t rho_down); z' = (rho_down / rho_t) z + (1 - rho_down / rho_t) D_m
    dpmpp_sde               middle sqrt(rho_t rho_s), reached by an ancestral step; z' the same form with the mean of
    the
                            exponential integrator, (1 - f) D + f D_m, f = 1 / (2 r), r = 1/2, so D_m alone

The noise of dpmpp_sde's two stages is one Brownian path in rho, seen at rho_m and at rho_s: their correlation is
sqrt((rho_t - rho_m) / (rho_t - rho_s)).

A transition to clean data is a first-order step, which returns D: 2 N - 1 evaluations.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition, require_signal
from diffusion_jax.schedulers import Denoiser, TimeGrid


def ancestral_levels(start: np.ndarray, end: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """(rho_down, rho_up) of (1)."""
    up = np.minimum(end, eta * np.sqrt(end**2 * np.maximum(start**2 - end**2, 0.0)) / start)
    return np.sqrt(np.maximum(end**2 - up**2, 0.0)), up


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStage(Sampler):
    """Base: z_m = a z + b D + c xi, z' = a' z + b' D + b'' D_m + c' xi + c'' xi'."""

    noisy_middle: ClassVar[bool] = False

    eta: float = 0.0
    s_noise: float = 1.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1 or self.s_noise < 0:
            raise UserError(
                f"sampler {type(self).__name__} needs 0 <= eta <= 1 and s_noise >= 0, got {self.eta} and {self.s_noise}"
            )

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        return 2 * num_steps - (1 if ends_clean else 0)

    def stages(self, start: np.ndarray, end: np.ndarray) -> dict[str, np.ndarray]:
        """The numbers of the base's formula, and the middle level, for levels with end > 0; [N] each."""
        raise NotImplementedError

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        require_signal(self, grid)
        levels = grid.sigmas / grid.alphas
        start, end = levels[:-1], levels[1:]
        inner = end > 0
        found = {name: np.zeros_like(start) for name in ("middle", *_NUMBERS)}
        for name, values in self.stages(start[inner], end[inner]).items():
            found[name][inner] = values
        found["end_x0"][~inner] = 1.0  # clean data is the predicted x0
        middle_time = grid.times[:-1].copy()
        middle_time[inner] = grid.schedule.time_of_log_snr(-2.0 * np.log(found.pop("middle")[inner]))
        return {**found, "middle_time": middle_time, "middle_alpha": grid.schedule.alpha(middle_time)}

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        z = state.x / transition.alpha_t
        first = denoise(state.x, transition.t).x0
        shape, dtype = z.shape[1:], z.dtype
        early = key.fold_in("middle").normal(shape, dtype) if self.stochastic and self.noisy_middle else None

        def second_stage() -> jax.Array:  # its part of the new state
            middle = c["middle_z"] * z + c["middle_x0"] * first
            if early is not None:
                middle = middle + c["middle_noise"] * early
            part = c["end_middle_x0"] * denoise(c["middle_alpha"] * middle, c["middle_time"]).x0
            return part if early is None else part + c["end_early_noise"] * early

        second = jax.lax.cond(transition.sigma_s > 0, second_stage, lambda: jnp.zeros_like(z))
        z_next = c["end_z"] * z + c["end_x0"] * first + second
        if self.stochastic:
            z_next = z_next + c["end_noise"] * key.normal(shape, dtype)
        return State(x=transition.alpha_s * z_next)


_NUMBERS = (
    *("middle_z", "middle_x0", "middle_noise"),
    *("end_z", "end_x0", "end_middle_x0", "end_early_noise", "end_noise"),
)


@SAMPLERS.register("dpm2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPM2(TwoStage):
    """The midpoint method, with the geometric mean as midpoint; ancestral for eta > 0."""

    order: ClassVar[int] = 2

    def stages(self, start: np.ndarray, end: np.ndarray) -> dict[str, np.ndarray]:
        down, up = ancestral_levels(start, end, self.eta)
        middle = np.sqrt(start * down)
        ratio, length = middle / start, down - start
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "middle": middle,
                "middle_z": ratio,
                "middle_x0": 1 - ratio,
                "end_z": 1 + length / start,
                "end_x0": length * (1 - ratio) / middle,
                "end_middle_x0": -length / middle,
                "end_noise": self.s_noise * up,
            }


@SAMPLERS.register("dpm2_ancestral")
def dpm2_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> DPM2:
    """DPM2 with fresh noise (k-diffusion's DPM2 a)."""
    return DPM2(eta=eta, s_noise=s_noise)


@SAMPLERS.register("dpmpp_2s_ancestral")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2SAncestral(TwoStage):
    """DPM-Solver++(2S) to the lower level, with fresh noise (k-diffusion's DPM++ 2S a)."""

    eta: float = 1.0

    def stages(self, start: np.ndarray, end: np.ndarray) -> dict[str, np.ndarray]:
        down, up = ancestral_levels(start, end, self.eta)
        middle = np.sqrt(start * down)
        return {
            "middle": middle,
            "middle_z": middle / start,
            "middle_x0": 1 - middle / start,
            "end_z": down / start,
            "end_middle_x0": 1 - down / start,
            "end_noise": self.s_noise * up,
        }


@SAMPLERS.register("dpmpp_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPPSDE(TwoStage):
    """DPM-Solver++ of the SDE, single-step of two stages (k-diffusion's DPM++ SDE)."""

    noisy_middle: ClassVar[bool] = True

    eta: float = 1.0

    def stages(self, start: np.ndarray, end: np.ndarray) -> dict[str, np.ndarray]:
        middle = np.sqrt(start * end)
        middle_down, middle_up = ancestral_levels(start, middle, self.eta)
        down, up = ancestral_levels(start, end, self.eta)
        shared = (start - middle) / (start - end)
        return {
            "middle": middle,
            "middle_z": middle_down / start,
            "middle_x0": 1 - middle_down / start,
            "middle_noise": self.s_noise * middle_up,
            "end_z": down / start,
            "end_middle_x0": 1 - down / start,
            "end_early_noise": self.s_noise * up * np.sqrt(shared),
            "end_noise": self.s_noise * up * np.sqrt(1 - shared),
        }
