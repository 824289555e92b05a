"""Adams-Bashforth methods for the noise: LMS, DEIS, iPNDM and PLMS.

In z = xt / alpha and rho = sigma / alpha the probability-flow ODE is dz / d rho = noise (see `euler.py`), so

    (1)   z_{i+1} = z_i + integral_{rho_i}^{rho_{i+1}} noise d rho.

The noise is replaced by the polynomial through its last k predictions, in some variable u:

    lms     u = rho: linear multistep of Adams and Bashforth with its variable steps (k-diffusion's LMS)
    deis    u = log rho = -lambda, tAB-DEIS (Zhang & Chen 2022, arXiv 2204.13902) in the variable of DPM-Solver
    ipndm   as if the steps were equal: the constants 3/2, -1/2; 23/12, ...  (Zhang & Chen 2022, sec. 4.2; Liu et al.)
    pndm    the same constants, and a start of two evaluations (Liu et al. 2022, arXiv 2202.09778, without Runge-Kutta)

and integrated exactly over rho. The first steps use the predictions that exist. The order of convergence is that of the
polynomial where the short start does not matter (on Karras's grid). Where it does, as in equal times of rectified_flow,
the published start limits it to 2, and `start="runge_kutta"` of lms and deis restores the polynomial's order
(`multistep.HighOrderStart`). The constants of ipndm and pndm have it only on grids whose steps change slowly.

At rho_{i+1} = 0 LMS can still integrate its polynomial; log rho has no value there, and DEIS takes first order.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.multistep import (
    Coefficients,
    HighOrderStart,
    LinearMultistep,
    MultistepState,
    assemble,
    first_order,
    lagrange_integrals,
    orders_of,
)
from diffusion_jax.samplers.sampler import SAMPLERS, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid

# Adams and Bashforth's constants for equal steps; row k - 1 has the k weights of order k.
EQUAL_STEPS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamsBashforth(LinearMultistep):
    """Eq. (1) with a polynomial through `solver_order` predictions."""

    solver_order: int = 4

    def __post_init__(self):
        if not 1 <= self.solver_order <= 4:
            raise UserError(f"solver_order of {type(self).__name__} is 1, 2, 3 or 4, got {self.solver_order}")

    @property
    def predicts(self) -> str:
        return "noise"

    @property
    def memory(self) -> int:
        return self.solver_order

    def weights(self, grid: TimeGrid, i: int) -> np.ndarray:
        """Integrals over rho of the basis polynomials, for the transition i -> i + 1."""
        raise NotImplementedError

    def coefficients(self, grid: TimeGrid) -> Coefficients:
        def row(i: int) -> tuple[float, np.ndarray]:
            return grid.alphas[i + 1] / grid.alphas[i], grid.alphas[i + 1] * self.weights(grid, i)

        return assemble(grid, "noise", self.memory, row)


@SAMPLERS.register("lms")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LMS(HighOrderStart, AdamsBashforth):
    """u = rho, any steps."""

    order: ClassVar[int] = 4

    def __post_init__(self):
        AdamsBashforth.__post_init__(self)
        HighOrderStart.__post_init__(self)

    def weights(self, grid: TimeGrid, i: int) -> np.ndarray:
        levels = grid.sigmas / grid.alphas
        nodes = levels[i::-1][: self.solver_order]
        return lagrange_integrals(nodes, levels[i], levels[i + 1], np.ones_like)


@SAMPLERS.register("deis")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DEIS(HighOrderStart, AdamsBashforth):
    """u = log rho, any steps; `lower_order_final` as in `multistep.orders_of`."""

    order: ClassVar[int] = 3

    solver_order: int = 3
    lower_order_final: bool = False

    def __post_init__(self):
        AdamsBashforth.__post_init__(self)
        HighOrderStart.__post_init__(self)

    def weights(self, grid: TimeGrid, i: int) -> np.ndarray:
        order = orders_of(grid, self.solver_order, lower_order_final=self.lower_order_final)[i]
        if order == 1:
            return np.array([first_order(grid, "noise", i, i + 1)[1] / grid.alphas[i + 1]])
        logs = -0.5 * grid.log_snrs
        return lagrange_integrals(logs[i::-1][:order], logs[i], logs[i + 1], np.exp)


@SAMPLERS.register("ipndm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class IPNDM(AdamsBashforth):
    """The constants of equal steps, on any grid; formally of first order on a grid whose steps are not equal in rho."""

    order: ClassVar[int] = 1

    def weights(self, grid: TimeGrid, i: int) -> np.ndarray:
        step = np.diff(grid.sigmas / grid.alphas)[i]
        return step * np.array(EQUAL_STEPS[min(self.solver_order, i + 1) - 1])


@SAMPLERS.register("pndm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PNDM(IPNDM):
    """PLMS: iPNDM whose first transition is taken twice, the second time with the mean of both ends' predictions.

    Only the prediction at the start of the first transition is kept for later steps. N + 1 evaluations.
    """

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        return num_steps + 1

    def __post_init__(self):
        if not 2 <= self.solver_order <= 4:
            raise UserError(f"solver_order of pndm is 2, 3 or 4, got {self.solver_order}; order 1 is ddim")

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        if grid.num_steps == 1 and grid.ends_clean:
            raise UserError("sampler pndm looks at both ends of its first transition: give it at least 2 steps")
        return super().constants(grid)

    def step(
        self, denoise: Denoiser, state: MultistepState, transition: Transition, key: BatchKey | None
    ) -> MultistepState:
        c = transition.constants
        after = super().step(denoise, state, transition, key)

        def again() -> jax.Array:
            mean = 0.5 * (after.history[0] + denoise(after.x, transition.s).noise)
            return c["x"] * state.x + c["history"][0] * mean

        return dataclasses.replace(after, x=jax.lax.cond(transition.index == 0, again, lambda: after.x))
