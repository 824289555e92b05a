"""DPM-Solver and DPM-Solver++, multistep and single-step.

Lu et al. 2022 (arXiv 2206.00927: noise form, DPM-Solver) and 2022 (arXiv 2211.01095: x0 form, DPM-Solver++). In lambda
= log(alpha / sigma) the probability-flow ODE is semi-linear, and with m the prediction,

    (1)   x0 form:     x_t = sigma_t / sigma_s x_s + sigma_t integral_{lambda_s}^{lambda_t} e^l x0(l) dl,
    (2)   noise form:  x_t = alpha_t / alpha_s x_s - alpha_t integral_{lambda_s}^{lambda_t} e^{-l} noise(l) dl.

m is replaced by its Taylor polynomial at s, with differences D1, D2 of known predictions for its derivatives times h:

    (3)   x_t = (first order) + g1 D1 + g2 D2,
          x0 form,    phi = e^{-h} - 1:  g2 = -alpha_t ((phi + h) / h^2 - 1/2),
                                         g1 = alpha_t (phi / h + 1)   or  -alpha_t phi / 2,
          noise form, phi = e^{h} - 1:   g2 = -sigma_t ((phi - h) / h^2 - 1/2),
                                         g1 = -sigma_t (phi / h - 1)  or  -sigma_t phi / 2.

The second form of g1 ("midpoint") is used in the papers' algorithms of second order, the first ("heun") is the exact
integral; the difference is of higher order.

Multistep ("2m", "3m"): the differences come from the points before s. With r0 = (l_s - l_{s-1}) / h and r1 likewise,

    (4)   D1 = (m_s - m_{s-1}) / r0                                                            second order
    (5)   E0 = (m_s - m_{s-1}) / r0,  E1 = (m_{s-1} - m_{s-2}) / r1,  w = r0 / (r0 + r1),
          D1 = E0 + w (E0 - E1),  D2 = (E0 - E1) / (r0 + r1)                                   third order

(5) is what the papers' code computes. The second derivative times h^2 is twice that D2, so the published multistep
solvers converge with order 2. `second_derivative="exact"` includes the factor, and they converge with order 3, on grids
whose first steps matter only with `start="runge_kutta"` (`multistep.HighOrderStart`).

Single-step ("2s", "3s"): a step spans two or three transitions of the grid, whose points in between are the solver's
intermediate points: with r = (l_between - l_s) / h, D1 = (m_between - m_s) / r. Two transitions are one step of second
order, three of third order; remaining transitions are steps of lower order (2206.00927, sec. 3.4). With equal steps of
log-SNR the intermediate points are those of the papers. Every method has one evaluation per transition.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.samplers.multistep import (
    Coefficients,
    HighOrderStart,
    LinearMultistep,
    assemble,
    first_order,
    half_log_snrs,
    orders_of,
)
from diffusion_jax.samplers.sampler import SAMPLERS
from diffusion_jax.schedulers import TimeGrid


def taylor_gains(grid: TimeGrid, predicts: str, i: int, j: int, solver_type: str) -> tuple[float, float]:
    """g1 and g2 of (3), from point i to point j; both log-SNRs are finite."""
    lambdas = half_log_snrs(grid)
    h = lambdas[j] - lambdas[i]
    if predicts == "x0":
        scale, phi = -grid.alphas[j], np.expm1(-h)
        heun, second = -(phi / h + 1.0), (phi + h) / h**2 - 0.5
    else:
        scale, phi = -grid.sigmas[j], np.expm1(h)
        heun, second = phi / h - 1.0, (phi - h) / h**2 - 0.5
    return scale * (0.5 * phi if solver_type == "midpoint" else heun), scale * second


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(LinearMultistep):
    """Base of the four families: the form, and the form of g1 in steps of second order."""

    form: ClassVar[str]
    top_order: ClassVar[int]

    solver_type: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = False

    def __post_init__(self):
        if self.solver_type not in ("midpoint", "heun"):
            raise UserError(f"solver_type is 'midpoint' or 'heun', got {self.solver_type!r}")

    @property
    def predicts(self) -> str:
        return self.form

    @property
    def memory(self) -> int:
        return self.top_order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multistep(DPMSolver):
    """Eq. (3) with (4), (5)."""

    second_derivative_factor: ClassVar[float] = 1.0

    def coefficients(self, grid: TimeGrid) -> Coefficients:
        orders = orders_of(grid, self.top_order, lower_order_final=self.lower_order_final)
        lambdas, factor = half_log_snrs(grid), self.second_derivative_factor

        def row(i: int) -> tuple[float, np.ndarray]:
            keep, gain = first_order(grid, self.form, i, i + 1)
            weights = np.zeros(self.top_order)
            weights[0] = gain
            if orders[i] == 1:
                return keep, weights
            solver_type = self.solver_type if orders[i] == 2 else "heun"
            g1, g2 = taylor_gains(grid, self.form, i, i + 1, solver_type)
            h = lambdas[i + 1] - lambdas[i]
            r0 = (lambdas[i] - lambdas[i - 1]) / h
            e0 = np.array([1.0, -1.0, 0.0]) / r0
            if orders[i] == 2:
                return keep, weights + g1 * e0[: self.top_order]
            r1 = (lambdas[i - 1] - lambdas[i - 2]) / h
            e1 = np.array([0.0, 1.0, -1.0]) / r1
            d1 = e0 + r0 / (r0 + r1) * (e0 - e1)
            return keep, weights + g1 * d1 + factor * g2 * (e0 - e1) / (r0 + r1)

        return assemble(grid, self.form, self.top_order, row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Singlestep(DPMSolver):
    """Eq. (3) from the start of a step of two or three transitions."""

    @property
    def uses_start(self) -> bool:
        return True

    def spans(self, grid: TimeGrid) -> list[int]:
        """The number of transitions that each step spans."""
        finite = np.isfinite(grid.log_snrs)
        first, last = (0 if finite[0] else 1), grid.num_steps - (0 if finite[-1] else 1)
        inner = max(0, last - first)
        whole, rest = divmod(inner, self.top_order)
        if (
            self.top_order == 3
            and rest == 0
            and whole
            and self.lower_order_final
            and inner < 15
            and last == grid.num_steps
        ):
            whole, tail = whole - 1, [2, 1]
        else:
            tail = [rest] if rest else []
        return (
            [1] * first + [self.top_order] * whole + tail + [1] * (grid.num_steps - last if inner or first == 0 else 0)
        )

    def coefficients(self, grid: TimeGrid) -> Coefficients:
        lambdas, steps = half_log_snrs(grid), grid.num_steps
        x, history = np.zeros(steps), np.zeros((steps, self.top_order))
        start, restart = np.zeros(steps), np.zeros(steps)
        begin = 0
        for span in self.spans(grid):
            restart[begin] = 1.0
            for stage in range(span):
                i = begin + stage
                start[i], gain = first_order(grid, self.form, begin, i + 1)
                history[i, stage] = gain  # the prediction at the start of the step
                if stage == 0:
                    continue
                between = lambdas[i] - lambdas[begin]
                ratio = between / (lambdas[i + 1] - lambdas[begin])
                last_of_third = stage == 2 or span == 3
                g1, _ = taylor_gains(grid, self.form, begin, i + 1, "heun" if last_of_third else self.solver_type)
                history[i, 0] += g1 / ratio
                history[i, stage] -= g1 / ratio
            begin += span
        return Coefficients(x=x, history=history, start=start, restart=restart)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multistep3(HighOrderStart, Multistep):
    """The third order, with a choice of D2; see (5)."""

    second_derivative: Literal["published", "exact"] = "published"

    def __post_init__(self):
        Multistep.__post_init__(self)
        HighOrderStart.__post_init__(self)
        if self.second_derivative not in ("published", "exact"):
            raise UserError(f"second_derivative is 'published' or 'exact', got {self.second_derivative!r}")

    @property
    def order(self) -> int:
        return 2 if self.second_derivative == "published" else 3

    @property
    def second_derivative_factor(self) -> float:
        return 1.0 if self.second_derivative == "published" else 2.0


@SAMPLERS.register("dpm_solver_2m")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver2M(Multistep):
    """DPM-Solver-2, multistep: noise form."""

    order: ClassVar[int] = 2
    form: ClassVar[str] = "noise"
    top_order: ClassVar[int] = 2


@SAMPLERS.register("dpm_solver_3m")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver3M(Multistep3):
    """DPM-Solver-3, multistep: noise form."""

    form: ClassVar[str] = "noise"
    top_order: ClassVar[int] = 3


@SAMPLERS.register("dpmpp_2m")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(Multistep):
    """DPM-Solver++(2M): x0 form, second order."""

    order: ClassVar[int] = 2
    form: ClassVar[str] = "x0"
    top_order: ClassVar[int] = 2


@SAMPLERS.register("dpmpp_3m")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP3M(Multistep3):
    """DPM-Solver++(3M): x0 form."""

    form: ClassVar[str] = "x0"
    top_order: ClassVar[int] = 3


@SAMPLERS.register("dpm_solver_2s")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver2S(Singlestep):
    """DPM-Solver-2, single-step: noise form."""

    order: ClassVar[int] = 2
    form: ClassVar[str] = "noise"
    top_order: ClassVar[int] = 2


@SAMPLERS.register("dpm_solver_3s")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver3S(Singlestep):
    """DPM-Solver-3, single-step: noise form."""

    order: ClassVar[int] = 3
    form: ClassVar[str] = "noise"
    top_order: ClassVar[int] = 3


@SAMPLERS.register("dpmpp_2s")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2S(Singlestep):
    """DPM-Solver++(2S): x0 form, second order."""

    order: ClassVar[int] = 2
    form: ClassVar[str] = "x0"
    top_order: ClassVar[int] = 2


@SAMPLERS.register("dpmpp_3s")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP3S(Singlestep):
    """DPM-Solver++(3S): x0 form, third order."""

    order: ClassVar[int] = 3
    form: ClassVar[str] = "x0"
    top_order: ClassVar[int] = 3
