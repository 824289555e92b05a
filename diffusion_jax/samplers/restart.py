"""Restart: Heun's method that repeatedly returns to a higher noise level within one interval.

Xu et al. 2023 (arXiv 2306.14878), algorithm 1, in z = xt / alpha with the noise level rho = sigma / alpha. When the
main grid first reaches `s_min` (its point nearest to it), K times

    (1)   z <- z + sqrt(s_max^2 - s_min^2) eps          forward in one jump
    (2)   Heun from s_max down to s_min in `inner_steps` steps with the spacing of Karras et al.

The large fresh noise in (1) forgets the errors made above s_max; (2) is short. 2 N - 1 + 2 K inner_steps evaluations.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.heun import Heun
from diffusion_jax.samplers.sampler import SAMPLERS, State, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid


@SAMPLERS.register("restart")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Restart(Heun):
    """Eq. (1), (2); the defaults are one of the paper's settings for CIFAR-10."""

    order: ClassVar[None] = None

    s_restart_min: float = 0.06
    s_restart_max: float = 0.3
    inner_steps: int = 3
    num_restarts: int = 2
    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.s_restart_min < self.s_restart_max or self.inner_steps < 1 or self.num_restarts < 1:
            raise UserError(
                "sampler restart needs 0 < s_restart_min < s_restart_max, inner_steps >= 1 and num_restarts >= 1, got "
                f"{self.s_restart_min}, {self.s_restart_max}, {self.inner_steps}, {self.num_restarts}"
            )

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def one_step(self) -> bool:
        return False  # one of its steps is many

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        return super().nfe(num_steps, ends_clean=ends_clean) + 2 * self.num_restarts * self.inner_steps

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        constants = super().constants(grid)
        ends = (grid.sigmas / grid.alphas)[1:]
        usable = (ends > 0) & (ends < self.s_restart_max)
        if not usable.any():
            raise UserError(
                f"sampler restart needs a point of the grid with 0 < sigma / alpha < {self.s_restart_max}: take more "
                "steps or a larger s_restart_max, or use heun or ddim"
            )
        gaps = np.where(usable, np.abs(np.log(np.maximum(ends, 1e-12) / self.s_restart_min)), np.inf)
        chosen = int(np.argmin(gaps))
        roots = np.linspace(self.s_restart_max ** (1 / self.rho), ends[chosen] ** (1 / self.rho), self.inner_steps + 1)
        levels = roots**self.rho
        times = grid.schedule.time_of_log_snr(-2.0 * np.log(levels))
        same = (grid.num_steps, self.inner_steps + 1)
        return {
            **constants,
            "restarts": 1.0 * (np.arange(grid.num_steps) == chosen),
            "inner_level": np.broadcast_to(levels, same),
            "inner_time": np.broadcast_to(times, same),
            "inner_alpha": np.broadcast_to(grid.schedule.alpha(times), same),
            "up": np.full(grid.num_steps, np.sqrt(self.s_restart_max**2 - ends[chosen] ** 2)),
        }

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        down = super().step(denoise, state, transition, key).x

        def inner(z: Array, i: Array) -> tuple[Array, None]:
            level, time, alpha = (c[name] for name in ("inner_level", "inner_time", "inner_alpha"))
            length = level[i + 1] - level[i]
            slope = denoise(alpha[i] * z, time[i]).noise
            end_slope = denoise(alpha[i + 1] * (z + length * slope), time[i + 1]).noise
            return z + 0.5 * length * (slope + end_slope), None

        def again(repeat: int, z: Array) -> Array:
            fresh = key.fold_in("restart").at_step(repeat).normal(z.shape[1:], z.dtype)
            return jax.lax.scan(inner, z + c["up"] * fresh, jax.numpy.arange(self.inner_steps))[0]

        def restarted() -> Array:
            z = jax.lax.fori_loop(0, self.num_restarts, again, down / transition.alpha_s)
            return transition.alpha_s * z

        return State(x=jax.lax.cond(c["restarts"] > 0, restarted, lambda: down))
