"""Adaptive Runge-Kutta of order 5(4), Dormand and Prince's, for the probability-flow ODE; by Diffrax, inside jit.

For every schedule let u = atan(sigma / alpha), the angle between data and noise, and z = xt / sqrt(alpha^2 + sigma^2).
Then z = cos(u) x0 + sin(u) noise, and the probability-flow ODE is

    (1)   dz / du = cos(u) noise - sin(u) x0,

whose right side, the v of Salimans & Ho 2022, stays bounded from pure noise (u = pi / 2) to clean data (u = 0).

The points of the grid are visited, and between them the solver takes the steps that its tolerances require, separately
for every example, so that a sample does not depend on its neighbours. The transition to clean data integrates down to
`t_end` (or to the schedule's own least noise, if it has any) and returns the x0 predicted there, as in Song et al. 2021
(arXiv 2011.13456) and most other work. `SampleResult.nfe` counts the evaluations that the slowest example needed.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.ode import STAGES, integrate
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid
from diffusion_jax.schedulers.angle import angle_velocity


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "evaluations"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class CountingState:
    """The current xt, [batch, ...], and the evaluations so far."""

    x: Float[Array, "batch ..."]
    evaluations: Int[Array, ""]


@SAMPLERS.register("rk45")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RK45(Sampler):
    """Eq. (1) to the given tolerances, which are relative to z and absolute.

    `first_step` is the share of a transition that is tried first. If `max_steps` do not suffice, the sample is NaN.
    """

    order: ClassVar[None] = None  # set by the tolerances, not by the grid

    rtol: float = 1e-5
    atol: float = 1e-5
    t_end: float = 1e-3
    first_step: float = 0.05
    max_steps: int = 4096

    def __post_init__(self):
        if self.rtol < 0 or self.atol < 0 or self.rtol + self.atol == 0 or not 0 < self.t_end < 1 or self.max_steps < 1:
            raise UserError(f"sampler rk45 needs tolerances > 0, 0 < t_end < 1 and max_steps >= 1, got {self}")

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        """The least: one step of the solver for every transition."""
        return num_steps * (STAGES + 1) + (1 if ends_clean else 0)

    def evaluations(self, state: CountingState, num_steps: int, *, ends_clean: bool = True) -> Int[Array, ""]:
        return state.evaluations

    @property
    def asks_in_loops(self) -> bool:
        return True

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        alphas, sigmas, ends = grid.alphas.copy(), grid.sigmas.copy(), grid.times.copy()
        if grid.ends_clean:
            last = 0.0 if grid.schedule.sigma(0.0) > 0 else min(self.t_end, 0.5 * grid.times[-2])
            alphas[-1], sigmas[-1], ends[-1] = grid.schedule.alpha(last), grid.schedule.sigma(last), last
        angles = np.arctan2(sigmas, alphas)
        return {
            "angle_t": angles[:-1],
            "angle_s": angles[1:],
            "radius_t": np.hypot(alphas, sigmas)[:-1],
            "radius_s": np.hypot(alphas, sigmas)[1:],
            "end": ends[1:],
            "to_clean": 1.0 * (grid.sigmas[1:] == 0),
        }

    def init(self, x: Float[Array, "batch ..."]) -> CountingState:
        return CountingState(x=x, evaluations=jnp.int32(0))

    def step(
        self, denoise: Denoiser, state: CountingState, transition: Transition, key: BatchKey | None
    ) -> CountingState:
        c = transition.constants

        def slopes(z: Float[Array, "batch ..."], angle: Float[Array, " batch"]) -> Float[Array, "batch ..."]:
            noisy, clean = (c["angle_t"], transition.t), (c["angle_s"], c["end"])
            return angle_velocity(denoise, transition.schedule, z, angle, noisy=noisy, clean=clean)

        def integrated() -> tuple[Array, Array]:
            z, evaluations = integrate(
                slopes,
                state.x / c["radius_t"],
                c["angle_t"],
                c["angle_s"],
                rtol=self.rtol,
                atol=self.atol,
                first_step=self.first_step,
                max_steps=self.max_steps,
            )
            return c["radius_s"] * z, evaluations

        x, evaluations = jax.lax.cond(c["angle_s"] < c["angle_t"], integrated, lambda: (state.x, jnp.int32(0)))
        to_clean = c["to_clean"] > 0
        x = jax.lax.cond(to_clean, lambda: denoise(x, c["end"]).x0, lambda: x)
        return CountingState(x=x, evaluations=state.evaluations + evaluations + to_clean.astype(jnp.int32))
