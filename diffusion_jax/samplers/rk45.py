"""Adaptive Runge-Kutta of order 5(4), Dormand and Prince's, for the probability-flow ODE; by Diffrax, inside jit.

For every schedule let u = atan(sigma / alpha), the angle between data and noise, and z = xt / sqrt(alpha^2 + sigma^2).
Then z = cos(u) x0 + sin(u) noise, and the probability-flow ODE is

    (1)   dz / du = cos(u) noise - sin(u) x0,

whose right side, the v of Salimans & Ho 2022, stays bounded from pure noise (u = pi / 2) to clean data (u = 0).

The points of the grid are visited, and between them the solver takes the steps that its tolerances ask for: every
example its own, so that a sample does not depend on its neighbours. The transition to clean data integrates down to
`t_end` (or to the schedule's own least noise, if it has any) and returns the x0 predicted there, as Song et al. 2021
(arXiv 2011.13456) and most others do. `SampleResult.nfe` counts the evaluations that the slowest example needed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import diffrax
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid
from diffusion_jax.schedulers.arrays import like_data

_STAGES = 6  # evaluations per step; the seventh is the first of the next step


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

    `first_step` is the share of a transition that is tried first. Where `max_steps` do not suffice the sample is NaN.
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
        return num_steps * (_STAGES + 1) + (1 if ends_clean else 0)

    def evaluations(self, state: CountingState, num_steps: int, *, ends_clean: bool = True) -> Int[Array, ""]:
        return state.evaluations

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
        c, schedule = transition.constants, transition.schedule

        def slopes(z: Float[Array, "batch ..."], angle: Float[Array, " batch"]) -> Float[Array, "batch ..."]:
            """Eq. (1), every example at its own angle."""
            at_start = angle >= c["angle_t"]
            inner = jnp.where(at_start, 0.5 * (c["angle_t"] + c["angle_s"]), angle)  # a finite log-SNR
            t = schedule.time_of_log_snr(-2.0 * jnp.log(jnp.tan(inner)))
            t = jnp.clip(jnp.where(at_start, transition.t, t), c["end"], transition.t)
            radius = like_data(jnp.hypot(schedule.alpha(t), schedule.sigma(t)), z)
            prediction = denoise(radius * z, t)
            return like_data(jnp.cos(angle), z) * prediction.noise - like_data(jnp.sin(angle), z) * prediction.x0

        slope, captured = _for_one_example(slopes, state.x, jnp.zeros(state.x.shape[:1], state.x.dtype))

        def solve(z: Array) -> tuple[Array, Array]:
            term = diffrax.ODETerm(lambda angle, z, captured: slope(z, angle, *captured))
            return self._solve(term, z, c["angle_t"], c["angle_s"], captured)

        def integrate() -> tuple[Array, Array]:
            z, steps = jax.vmap(solve)(state.x / c["radius_t"])
            return c["radius_s"] * z, 1 + _STAGES * jnp.max(steps).astype(jnp.int32)

        x, evaluations = jax.lax.cond(c["angle_s"] < c["angle_t"], integrate, lambda: (state.x, jnp.int32(0)))
        to_clean = c["to_clean"] > 0
        x = jax.lax.cond(to_clean, lambda: denoise(x, c["end"]).x0, lambda: x)
        return CountingState(x=x, evaluations=state.evaluations + evaluations + to_clean.astype(jnp.int32))

    def _solve(self, term: diffrax.ODETerm, z: Array, first: Array, last: Array, captured: list) -> tuple[Array, Array]:
        """One example from angle `first` down to `last`: its z there, and the steps tried.

        The loop is ours, with Diffrax's solver and step-size controller: `diffeqsolve` calls back to the host to raise
        errors, and a program that does so can not be exported.
        """
        # Progress p in [0, 1] is the solver's time, so that it runs forwards.
        length = last - first
        solver, controller = diffrax.Dopri5(), diffrax.PIDController(rtol=self.rtol, atol=self.atol)
        progress = diffrax.ODETerm(lambda p, z, args: length * term.vf(first + p * length, z, args))
        zero, one = jnp.zeros_like(first), jnp.ones_like(first)
        order = solver.error_order(progress)
        second, controller_state = controller.init(
            progress, zero, one, z, jnp.full_like(first, self.first_step), captured, solver.func, order
        )
        solver_state = solver.init(progress, zero, second, z, captured)

        def more(carry) -> Array:
            p, _, _, _, _, steps = carry
            return (p < 1) & (steps < self.max_steps)

        def step(carry):
            p, p_next, z, solver_state, controller_state, steps = carry
            p_next = jnp.minimum(p_next, 1.0)
            z_next, error, _, new_solver_state, _ = solver.step(
                progress, p, p_next, z, captured, solver_state, made_jump=False
            )
            keep, p, p_next, _, controller_state, _ = controller.adapt_step_size(
                p, p_next, z, z_next, captured, error, order, controller_state
            )
            z, solver_state = jax.tree.map(
                lambda new, old: jnp.where(keep, new, old), (z_next, new_solver_state), (z, solver_state)
            )
            return p, p_next, z, solver_state, controller_state, steps + 1

        carry = (zero, second, z, solver_state, controller_state, jnp.int32(0))
        p, _, z, _, _, steps = jax.lax.while_loop(more, step, carry)
        return jnp.where(p >= 1, z, jnp.nan), steps


def _for_one_example(
    batched: Callable[[Array, Array], Array], x: Array, angle: Array
) -> tuple[Callable[..., Array], list[Array]]:
    """A function of one example, (z, angle, *captured), which under vmap is one call of `batched` for the whole batch.

    Also what `batched` closes over, such as parameters and labels: it must enter the solver's loop as an argument.
    """
    program = jax.make_jaxpr(batched)(x, angle)

    @jax.custom_batching.custom_vmap
    def one(z: Array, angle: Array, *captured: Array) -> Array:
        return jnp.zeros_like(z)

    @one.def_vmap
    def _(size: int, is_batched: list, z: Array, angle: Array, *captured: Array) -> tuple[Array, bool]:
        whole = z if is_batched[0] else jnp.broadcast_to(z, (size, *z.shape))
        run = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(program.jaxpr, captured))
        return run(whole, jnp.broadcast_to(angle, (size,)))[0], True

    return one, program.consts
