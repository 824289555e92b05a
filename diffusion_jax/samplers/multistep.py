"""The base of all solvers whose step is a linear combination of known values.

Let m_i be the network's prediction at point i of the grid, as x0 or as noise. Multistep solvers, single-step solvers
whose intermediate points are points of the grid, and predictor-corrector pairs all compute

    (1)   corrected = x_i + sum_j K_ij (known)           once m_i is known, if the method corrects at all,
    (2)   x_{i+1} = A_i x_i + P_i p + sum_{j < k} B_ij m_{i-j} + C_i z,        z ~ N(0, I),

with p an earlier state (the start of a single-step solver's step). There is one evaluation per transition, and every
number in (1), (2) follows from the grid: a subclass only computes these numbers, on the host, in float64. See
`dpm_solver.py`, `adams.py`, `unipc.py`.

With lambda = log_snr / 2 and h = lambda_{i+1} - lambda_i > 0, a step of first order is (Lu et al. 2022, 2206.00927 eq.
3.7 and 2211.01095 eq. 9), in two equivalent forms,

    (3)   x0 form:     x_{i+1} = sigma_{i+1} / sigma_i x_i - alpha_{i+1} (e^{-h} - 1) x0_i,
    (4)   noise form:  x_{i+1} = alpha_{i+1} / alpha_i x_i - sigma_{i+1} (e^{h} - 1) noise_i.

At sigma_{i+1} = 0 and at alpha_i = 0 h is infinite; there (3) still holds, and (4) if alpha_i > 0. Steps with an
infinite h are of first order.

A method of order k starts with lower orders until its polynomial of degree k - 1 has k points, like all published ones.
The error of these few steps is of second order in their length. So is then the error of the whole, wherever the flow is
as curved at the start of the grid as elsewhere; on a grid like Karras's, whose first steps change almost nothing, this
does not show. `HighOrderStart` takes the first transitions by the classical Runge-Kutta method of fourth order, with
three more evaluations for each, in variables in which the right side is just the network's prediction:

    (5)   noise form:  d(x / alpha) / d(sigma / alpha) = noise,
          x0 form:     d(x / sigma) / d(alpha / sigma) = x0,        finite also where alpha = 0.

docs/sampler_orders.md has the measured orders of both starts, by kind of schedule.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import Sampler, Transition, require_signal
from diffusion_jax.schedulers import Denoiser, TimeGrid


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "start", "history"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class MultistepState:
    """The current xt, [batch, ...]; an earlier state p, if the method uses one; and the last predictions.

    `history` is a ring, [k, batch, ...]: m_i is in place i mod k. Nothing is shifted; the weights of (1), (2) are
    ordered by place beforehand.
    """

    x: Float[Array, "batch ..."]
    start: Float[Array, "batch ..."] | None
    history: Float[Array, "k batch ..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coefficients:
    """The numbers of (1), (2), float64 with a row for each of N transitions.

    Attributes:
      x: A, [N].
      history: B, [N, k]; column j belongs to m_{i-j}.
      start: P, [N], if the method uses an earlier state.
      restart: [N], whether x_i becomes that earlier state at the start of transition i.
      fresh: C, [N], if the method draws noise.
      corrector: [N, k + 3] weights of (x_i, p, m_i, m_{i-1}, ..., m_{i-k}) in the corrected x_i.
    """

    x: np.ndarray
    history: np.ndarray
    start: np.ndarray | None = None
    restart: np.ndarray | None = None
    fresh: np.ndarray | None = None
    corrector: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearMultistep(Sampler):
    """Eq. (1), (2). A subclass says what it interpolates, "x0" or "noise", and its coefficients."""

    @property
    def predicts(self) -> str:
        """The kind of m: "x0" or "noise"."""
        return "x0"

    @property
    def memory(self) -> int:
        """k: the number of predictions that a step uses, including the current one."""
        return 1

    def coefficients(self, grid: TimeGrid) -> Coefficients:
        """The numbers of (1), (2) on a grid."""
        raise NotImplementedError

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        if self.predicts == "noise":
            require_signal(self, grid)
        found = self.coefficients(grid)
        places = self._ring_size
        constants = {"x": found.x, "history": _in_ring(found.history, places)}
        for name in ("start", "restart", "fresh"):
            if getattr(found, name) is not None:
                constants[name] = getattr(found, name)
        if found.corrector is not None:
            own, predictions = found.corrector[:, :2], found.corrector[:, 2:]
            constants |= {"corrector": own, "corrector_history": _in_ring(predictions, places)}
        return {name: np.asarray(value, np.float64) for name, value in constants.items()}

    @property
    def _ring_size(self) -> int:
        return self.memory + (1 if self.corrects else 0)

    def init(self, x: Float[Array, "batch ..."]) -> MultistepState:
        return MultistepState(
            x=x,
            start=x if self.uses_start else None,
            history=jnp.zeros((self._ring_size, *x.shape), x.dtype),
        )

    @property
    def corrects(self) -> bool:
        """Whether there is a corrector."""
        return False

    @property
    def uses_start(self) -> bool:
        """Whether an earlier state p is needed."""
        return False

    def step(
        self, denoise: Denoiser, state: MultistepState, transition: Transition, key: BatchKey | None
    ) -> MultistepState:
        c = transition.constants
        new = getattr(denoise(state.x, transition.t), self.predicts)
        place = transition.index % self._ring_size
        history = jax.lax.dynamic_update_index_in_dim(state.history, new, place, 0)
        x, start = state.x, state.start
        if "corrector" in c:
            corrected = c["corrector"][0] * x + _combine(c["corrector_history"], history)
            x = corrected if start is None else corrected + c["corrector"][1] * start
        if "restart" in c:
            start = jnp.where(c["restart"] > 0, x, start)
        elif start is not None:
            start = x
        moved = c["x"] * x + _combine(c["history"], history)
        if "start" in c:
            moved = moved + c["start"] * start
        if "fresh" in c:
            moved = moved + c["fresh"] * key.normal(x.shape[1:], x.dtype)
        return MultistepState(x=moved, start=start, history=history)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HighOrderStart(LinearMultistep):
    """Multistep with a choice of `start`: "lower_order", as published, or "runge_kutta", eq. (5).

    Eq. (5) is used in the x0 form for the first `memory` transitions, since the first one may begin without signal and
    is then no point of a polynomial in log-SNR, and in the noise form for the first `memory` - 1; never for a jump to
    clean data.
    """

    start: Literal["lower_order", "runge_kutta"] = "lower_order"

    def __post_init__(self):
        if self.start not in ("lower_order", "runge_kutta"):
            raise UserError(f"start of {type(self).__name__} is 'lower_order' or 'runge_kutta', got {self.start!r}")

    def _started(self, num_steps: int, ends_clean: bool) -> int:
        """The number of transitions that are taken by (5)."""
        if self.start == "lower_order":
            return 0
        return min(self.memory - (self.predicts == "noise"), num_steps - ends_clean)

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        return num_steps + 3 * self._started(num_steps, ends_clean)

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        found, started = super().constants(grid), self._started(grid.num_steps, grid.ends_clean)
        if not started:
            return found
        scale, other = (grid.alphas, grid.sigmas) if self.predicts == "noise" else (grid.sigmas, grid.alphas)
        u = other[: started + 1] / scale[: started + 1]
        middles = 0.5 * (u[:-1] + u[1:])
        log_snrs = 2.0 * np.log(middles) * (-1.0 if self.predicts == "noise" else 1.0)
        times = np.asarray(grid.schedule.time_of_log_snr(log_snrs))
        curve = grid.schedule.alpha if self.predicts == "noise" else grid.schedule.sigma
        columns = {
            "started": np.ones(started),
            "start_length": np.diff(u),
            "start_middle": times,
            "start_scale": scale[:started],
            "start_scale_middle": curve(times),
            "start_scale_end": scale[1 : started + 1],
        }
        rest = grid.num_steps - started
        return found | {name: np.pad(values, (0, rest)) for name, values in columns.items()}

    def step(
        self, denoise: Denoiser, state: MultistepState, transition: Transition, key: BatchKey | None
    ) -> MultistepState:
        c = transition.constants
        after = super().step(denoise, state, transition, key)
        if "started" not in c:
            return after

        def runge_kutta() -> Float[Array, "batch ..."]:
            def slope(y: Float[Array, "batch ..."], scale: Array, time: Array) -> Float[Array, "batch ..."]:
                return getattr(denoise(scale * y, time), self.predicts)

            y, h, middle = state.x / c["start_scale"], c["start_length"], (c["start_scale_middle"], c["start_middle"])
            first = after.history[transition.index % self._ring_size]
            second = slope(y + 0.5 * h * first, *middle)
            third = slope(y + 0.5 * h * second, *middle)
            fourth = slope(y + h * third, c["start_scale_end"], transition.s)
            return c["start_scale_end"] * (y + h / 6 * (first + 2 * second + 2 * third + fourth))

        return dataclasses.replace(after, x=jax.lax.cond(c["started"] > 0, runge_kutta, lambda: after.x))


def _in_ring(weights: np.ndarray, places: int) -> np.ndarray:
    """[N, k] weights of (m_i, m_{i-1}, ...) as [N, places] weights of the places of a ring."""
    steps = np.arange(len(weights))
    ring = np.zeros((len(weights), places))
    for back in range(weights.shape[1]):
        if back < places:
            ring[steps, (steps - back) % places] = weights[:, back]
        elif np.any(weights[:, back]):
            raise ValueError(f"a weight for the prediction {back} transitions ago, and {places} are kept")
    return ring


def _combine(weights: Float[Array, " k"], terms: Float[Array, "k batch ..."]) -> Float[Array, "batch ..."]:
    """sum_j weights_j terms_j, in one elementwise expression."""
    return functools.reduce(jnp.add, [weights[j] * terms[j] for j in range(terms.shape[0])])


def half_log_snrs(grid: TimeGrid) -> np.ndarray:
    """lambda at every point of the grid, [N + 1]."""
    return 0.5 * grid.log_snrs


def first_order(grid: TimeGrid, predicts: str, i: int, j: int) -> tuple[float, float]:
    """Eq. (3) or (4) from point i to point j: the weights of x_i and of the prediction there."""
    alphas, sigmas, lambdas = grid.alphas, grid.sigmas, half_log_snrs(grid)
    if predicts == "x0":
        return sigmas[j] / sigmas[i], -alphas[j] * np.expm1(lambdas[i] - lambdas[j])
    ratio = alphas[j] / alphas[i]
    return ratio, sigmas[j] * -np.expm1(lambdas[j] - lambdas[i]) if sigmas[j] > 0 else -ratio * sigmas[i]


def orders_of(grid: TimeGrid, order: int, *, lower_order_final: bool, below: float = 15) -> np.ndarray:
    """The order of every transition, as high as the history and finite values of h allow.

    `lower_order_final` ends a grid of fewer than `below` transitions with orders ..., 2, 1, for stability: 15 in the
    DPM-Solver family and DEIS (Lu et al. 2022, 2211.01095, sec. 6, and diffusers), any number in UniPC.
    """
    finite = np.isfinite(grid.log_snrs)
    steps = grid.num_steps
    orders = []
    for i in range(steps):
        usable = 0
        while usable < order and i - usable >= 0 and finite[i - usable]:
            usable += 1
        allowed = min(order, steps - i) if lower_order_final and steps < below else order
        orders.append(max(1, min(usable, allowed) if finite[i + 1] else 1))
    return np.array(orders)


def assemble(
    grid: TimeGrid, predicts: str, memory: int, row: Callable[[int], tuple[float, np.ndarray]]
) -> Coefficients:
    """Coefficients from a function i -> (A_i, B_i of any length up to `memory`)."""
    rows = [row(i) for i in range(grid.num_steps)]
    history = np.zeros((grid.num_steps, memory))
    for i, (_, weights) in enumerate(rows):
        history[i, : len(weights)] = weights
    return Coefficients(x=np.array([x for x, _ in rows]), history=history)


def lagrange_integrals(
    nodes: np.ndarray, first: float, last: float, weight: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Integrals from `first` to `last` of weight(u) l_j(u), l_j the Lagrange polynomials of `nodes`.

    By Gauss-Legendre quadrature with 40 points, which is exact to rounding for a polynomial and for exp over the length
    of any reasonable step.
    """
    points, weights = np.polynomial.legendre.leggauss(40)
    u = 0.5 * (first + last) + 0.5 * (last - first) * points
    measure = 0.5 * (last - first) * weights * weight(u)
    basis = [
        np.prod([(u - other) / (node - other) for k, other in enumerate(nodes) if k != j], axis=0) * np.ones_like(u)
        for j, node in enumerate(nodes)
    ]
    return np.array([np.sum(measure * values) for values in basis])
