"""Multistep solvers of the reverse SDE: DPM-Solver++ 2M SDE and 3M SDE, and SA-Solver.

The family of SDEs with the right marginals (Lu et al. 2022, arXiv 2211.01095, sec. 5; Xue et al. 2023, arXiv
2309.05019, prop. 3.1) has one free function tau >= 0: tau = 0 adds no noise, tau = 1 is the reverse of the forward
process. With constant tau, k = 1 + tau^2 and x0(l) the prediction at log-SNR / 2 = l, over a step of length h,

    (1)   x_s = sigma_s / sigma_t e^{-tau^2 h} x_t + alpha_s integral k e^{-k (l_s - l)} x0(l) dl
                + sigma_s sqrt(1 - e^{-2 tau^2 h}) z.

DPM-Solver++ 2M SDE and 3M SDE (their eta is tau^2) replace x0(l) by its Taylor polynomial at t with differences of past
predictions, like `dpm_solver.py`. SA-Solver replaces it by the Lagrange polynomial through them, integrated exactly,
and corrects x_s with the new prediction and the same noise. A transition to clean data is of first order and returns
x0.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.samplers.multistep import (
    Coefficients,
    LinearMultistep,
    assemble,
    half_log_snrs,
    lagrange_integrals,
    orders_of,
)
from diffusion_jax.samplers.sampler import SAMPLERS
from diffusion_jax.schedulers import TimeGrid


def _lengths(grid: TimeGrid) -> np.ndarray:
    """h of every transition; infinite at both ends of a grid from pure noise to clean data."""
    lambdas = half_log_snrs(grid)
    return lambdas[1:] - lambdas[:-1]


def _kept_and_fresh(grid: TimeGrid, tau_squared: float) -> tuple[np.ndarray, np.ndarray]:
    """The factor of x_t and that of z in (1)."""
    h = _lengths(grid)
    exponent = tau_squared * h if tau_squared else np.zeros_like(h)
    kept = grid.sigmas[1:] / grid.sigmas[:-1] * np.exp(-exponent)
    return kept, grid.sigmas[1:] * np.sqrt(-np.expm1(-2.0 * exponent))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDEMultistep(LinearMultistep):
    """Base of the solvers with `eta` = tau^2."""

    eta: float = 1.0

    def __post_init__(self):
        if self.eta < 0:
            raise UserError(f"sampler {type(self).__name__} needs eta >= 0, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def weights(self, grid: TimeGrid, i: int) -> np.ndarray:
        """The numbers of the predictions at i, i - 1, ... in (1), for the transition i -> i + 1."""
        raise NotImplementedError

    def coefficients(self, grid: TimeGrid) -> Coefficients:
        kept, fresh = _kept_and_fresh(grid, self.eta)
        found = assemble(grid, "x0", self.memory, lambda i: (kept[i], self.weights(grid, i)))
        return dataclasses.replace(found, fresh=fresh) if self.stochastic else found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPPMultistepSDE(SDEMultistep):
    """Taylor polynomials of `top_order` - 1."""

    top_order: ClassVar[int]

    solver_type: Literal["midpoint", "heun"] = "midpoint"

    def __post_init__(self):
        super().__post_init__()
        if self.solver_type not in ("midpoint", "heun"):
            raise UserError(f"solver_type is 'midpoint' or 'heun', got {self.solver_type!r}")

    @property
    def memory(self) -> int:
        return self.top_order

    def weights(self, grid: TimeGrid, i: int) -> np.ndarray:
        order = orders_of(grid, self.top_order, lower_order_final=False)[i]
        h = _lengths(grid)
        k = (1.0 + self.eta) * h[i]
        phi = -np.expm1(-k)
        weights = np.zeros(self.top_order)
        weights[0] = phi
        if order == 1:
            return grid.alphas[i + 1] * weights
        first = 1.0 - phi / k
        if order == 2:
            gain = 0.5 * phi if self.solver_type == "midpoint" and self.top_order == 2 else first
            weights[:2] += gain * np.array([1.0, -1.0]) * h[i] / h[i - 1]
            return grid.alphas[i + 1] * weights
        r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
        e0, e1 = np.array([1.0, -1.0, 0.0]) / r0, np.array([0.0, 1.0, -1.0]) / r1
        d1, d2 = e0 + (e0 - e1) * r0 / (r0 + r1), (e0 - e1) / (r0 + r1)
        return grid.alphas[i + 1] * (weights + first * d1 - (first / k - 0.5) * d2)


@SAMPLERS.register("dpmpp_2m_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2MSDE(DPMSolverPPMultistepSDE):
    """DPM-Solver++ 2M SDE."""

    top_order: ClassVar[int] = 2


@SAMPLERS.register("dpmpp_3m_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP3MSDE(DPMSolverPPMultistepSDE):
    """k-diffusion's DPM++ 3M SDE; steps of second order have the exact integral."""

    top_order: ClassVar[int] = 3


@SAMPLERS.register("sa_solver")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SASolver(SDEMultistep):
    """Stochastic Adams predictor and corrector of Xue et al. 2023; `corrector_order` 0 leaves the corrector out.

    A predictor of order p uses the last p predictions, a corrector of order q the new one and q - 1 before it.
    """

    predictor_order: int = 3
    corrector_order: int = 3

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.predictor_order <= 4 or not 0 <= self.corrector_order <= 4:
            raise UserError(
                "sampler sa_solver takes predictor_order 1 to 4 and corrector_order 0 to 4, "
                f"got {self.predictor_order} and {self.corrector_order}"
            )

    @property
    def memory(self) -> int:
        return max(self.predictor_order, self.corrector_order)

    @property
    def corrects(self) -> bool:
        return self.corrector_order > 0

    def _integrals(self, grid: TimeGrid, i: int, nodes: np.ndarray) -> np.ndarray:
        """The integral of (1) for every basis polynomial of the nodes."""
        lambdas, k = half_log_snrs(grid), 1.0 + self.eta
        first, last = lambdas[i], lambdas[i + 1]
        return grid.alphas[i + 1] * lagrange_integrals(nodes, first, last, lambda u: k * np.exp(k * (u - last)))

    def weights(self, grid: TimeGrid, i: int) -> np.ndarray:
        order = orders_of(grid, self.predictor_order, lower_order_final=False)[i]
        weights = np.zeros(self.memory)
        if order == 1:  # this includes an infinite h
            weights[0] = -grid.alphas[i + 1] * np.expm1(-(1.0 + self.eta) * _lengths(grid)[i])
        else:
            weights[:order] = self._integrals(grid, i, half_log_snrs(grid)[i::-1][:order])
        return weights

    def coefficients(self, grid: TimeGrid) -> Coefficients:
        found = super().coefficients(grid)
        if not self.corrects:
            return found
        k = self.memory
        orders = orders_of(grid, self.corrector_order, lower_order_final=False)
        finite = np.isfinite(half_log_snrs(grid))
        corrector = np.zeros((grid.num_steps, k + 3))  # of x_i, p, m_i, m_{i-1}, ...
        corrector[:, 0] = 1.0
        for i in range(1, grid.num_steps):  # x_i + (integral with m_i) - (integral without)
            if not (finite[i] and finite[i - 1]):
                continue
            earlier = min(self.corrector_order - 1, orders[i - 1])
            nodes = half_log_snrs(grid)[i::-1][: earlier + 1]
            corrector[i, 2 : 3 + earlier] = self._integrals(grid, i - 1, nodes)
            corrector[i, 3 : 3 + k] -= found.history[i - 1]
        return dataclasses.replace(found, corrector=corrector)
