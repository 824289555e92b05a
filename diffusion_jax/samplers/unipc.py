"""UniPC: a multistep predictor and corrector of one family, at one evaluation per step.

Zhao et al. 2023 (arXiv 2302.04867), in the x0 form. With h = lambda_{i+1} - lambda_i, r_j = (lambda_j - lambda_i) / h
for earlier points j, and differences D_j = (m_j - m_i) / r_j of predictions m (their eq. 3 and 8),

    (1)   x_{i+1} = sigma_{i+1} / sigma_i x_i - alpha_{i+1} (e^{-h} - 1) m_i - alpha_{i+1} B(h) sum_j a_j D_j,
    (2)   B(h) = -h ("bh1") or e^{-h} - 1 ("bh2"),
    (3)   sum_j a_j r_j^{k-1} = b_k,  k = 1 ... p,     b_k = phi_k k! / B,   phi_1 = (e^{-h} - 1 + h) / -h,
          phi_{k+1} = phi_k / (-h) - 1 / (k + 1)!.

The predictor solves (3) for the p - 1 points before i. The corrector, once m_{i+1} is known at the predicted x_{i+1},
adds the point r = 1 and solves it for p points: x_{i+1} is replaced, m_{i+1} is not evaluated again. For p = 1 in the
corrector and p = 2 in the predictor the paper takes a = 1/2.

The variant with B(h) replaced by varying coefficients is not here.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.samplers.multistep import (
    Coefficients,
    LinearMultistep,
    assemble,
    first_order,
    half_log_snrs,
    orders_of,
)
from diffusion_jax.samplers.sampler import SAMPLERS
from diffusion_jax.schedulers import TimeGrid


@SAMPLERS.register("unipc")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC(LinearMultistep):
    """Eq. (1) to (3): UniPC-p with p = solver_order; the corrector raises the order of convergence to p + 1.

    `lower_order_final` ends with steps of order ..., 2, 1 whatever the number of steps, as in the authors' uni_pc.py
    and in diffusers (the DPM-Solver family does so below 15 steps only).
    """

    order: ClassVar[int] = 3

    solver_order: int = 2
    solver_type: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = False
    use_corrector: bool = True

    def __post_init__(self):
        if not 1 <= self.solver_order <= 3 or self.solver_type not in ("bh1", "bh2"):
            raise UserError(
                f"sampler unipc takes solver_order 1, 2 or 3 and solver_type 'bh1' or 'bh2', "
                f"got {self.solver_order} and {self.solver_type!r}"
            )

    @property
    def memory(self) -> int:
        return self.solver_order

    @property
    def corrects(self) -> bool:
        return self.use_corrector

    @property
    def uses_start(self) -> bool:
        return self.use_corrector

    def _gains(self, h: float, ratios: np.ndarray) -> np.ndarray:
        """a_j B(h) of (1), from (3)."""
        scale = -h if self.solver_type == "bh1" else math.expm1(-h)
        if len(ratios) == 1:
            solved = np.array([0.5])  # a corrector of order 1, a predictor of order 2
        else:
            phi, rights = math.expm1(-h) / -h - 1.0, []
            for k in range(1, len(ratios) + 1):
                rights.append(phi * math.factorial(k) / scale)
                phi = phi / -h - 1.0 / math.factorial(k + 1)
            powers = np.array([ratios**k for k in range(len(ratios))])
            solved = np.linalg.solve(powers, np.array(rights))
        return solved * scale

    def _ratios(self, grid: TimeGrid, i: int, count: int) -> np.ndarray:
        lambdas = half_log_snrs(grid)
        return (lambdas[i - count : i][::-1] - lambdas[i]) / (lambdas[i + 1] - lambdas[i])

    def coefficients(self, grid: TimeGrid) -> Coefficients:
        orders = orders_of(grid, self.solver_order, lower_order_final=self.lower_order_final, below=math.inf)
        lambdas, k = half_log_snrs(grid), self.memory

        def row(i: int) -> tuple[float, np.ndarray]:
            keep, gain = first_order(grid, "x0", i, i + 1)
            weights = np.zeros(k)
            weights[0] = gain
            if orders[i] > 1:
                ratios = self._ratios(grid, i, orders[i] - 1)
                gains = -grid.alphas[i + 1] * self._gains(lambdas[i + 1] - lambdas[i], ratios) / ratios
                weights[0] -= gains.sum()
                weights[1 : orders[i]] += gains
            return keep, weights

        found = assemble(grid, "x0", k, row)
        if not self.use_corrector:
            return found
        corrector = np.zeros((grid.num_steps, k + 3))
        corrector[:, 0] = 1.0  # leave x as it is
        for i in range(1, grid.num_steps):  # correct x_i, which was predicted from point i - 1
            if not np.isfinite(lambdas[i] - lambdas[i - 1]):
                continue
            earlier = orders[i - 1] - 1
            keep, gain = first_order(grid, "x0", i - 1, i)
            ratios = np.append(self._ratios(grid, i - 1, earlier), 1.0)
            gains = -grid.alphas[i] * self._gains(lambdas[i] - lambdas[i - 1], ratios) / ratios
            line = np.zeros(k + 3)  # x_i, p = x_{i-1}, m_i, m_{i-1}, ...
            line[1], line[2], line[3] = keep, gains[-1], gain - gains.sum()
            line[4 : 4 + earlier] = gains[:-1]
            corrector[i] = line
        return dataclasses.replace(found, corrector=corrector)
