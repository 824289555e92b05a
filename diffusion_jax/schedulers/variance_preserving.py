"""Variance-preserving schedules given by a table of T betas, extended to continuous time.

Ho et al. 2020 (arXiv 2006.11239, eq. 2, 4) define a chain of T steps by betas, and with it

    (1)   alpha_n^2 = prod_{m <= n} (1 - beta_m),      sigma_n^2 = 1 - alpha_n^2,       n = 0 ... T-1.

Step n is at t = (n + 1) / T, and clean data, log alpha = 0, at t = 0. Between these T + 1 knots log alpha is linear
in t, as DPM-Solver extends such tables (Lu et al. 2022, arXiv 2206.00927):

    (2)   log alpha(t) = linear interpolation of the knots,      sigma(t) = sqrt(-expm1(2 log alpha(t))),
    (3)   log_snr = 2 log alpha - log(-expm1(2 log alpha)),
    (4)   log alpha = -softplus(-log_snr) / 2,  and t by inverse interpolation: a closed form.

On the knots all of this is exact, so a discrete sampler sees exactly the table of the paper. `expm1` keeps sigma
accurate where alpha is one to within rounding. The derivative of the log alpha curve is constant between knots; at a
knot it is the slope of the segment before it.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers.arrays import Array, array_module, as_float, log1m_exp
from diffusion_jax.schedulers.schedule import SCHEDULES, NoiseSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSchedule(NoiseSchedule):
    """Base of the schedules whose paper gives a table of `num_steps` betas."""

    num_steps: int = 1000

    def __post_init__(self):
        if self.num_steps < 1:
            raise UserError(f"num_steps of a noise schedule must be at least 1, got {self.num_steps}")
        betas = self.betas()
        if not np.all((betas > 0) & (betas < 1)):
            raise UserError(f"every beta of a noise schedule must lie in (0, 1), got {betas.min()} ... {betas.max()}")

    def betas(self) -> np.ndarray:
        """The table, float64 [num_steps]."""
        raise NotImplementedError

    @functools.cached_property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and log alphas of the T + 1 knots of (2), both float64."""
        log_alphas = 0.5 * np.cumsum(np.log1p(-self.betas()))
        return np.arange(self.num_steps + 1) / self.num_steps, np.concatenate([[0.0], log_alphas])

    def _log_alpha(self, t: Array) -> Array:
        t = as_float(t)
        xp = array_module(t)
        times, log_alphas = (xp.asarray(knots, t.dtype) for knots in self._knots)
        return xp.interp(t, times, log_alphas)

    def _log_alpha_derivative(self, t: Array) -> Array:
        t = as_float(t)
        xp = array_module(t)
        slopes = xp.asarray(np.diff(self._knots[1]) * self.num_steps, t.dtype)
        segment = xp.ceil(t * self.num_steps).astype(jnp.int32) - 1
        return slopes[xp.clip(segment, 0, self.num_steps - 1)]

    def alpha(self, t: Array) -> Array:
        log_alpha = self._log_alpha(t)
        return array_module(log_alpha).exp(log_alpha)

    def sigma(self, t: Array) -> Array:
        log_alpha = self._log_alpha(t)
        xp = array_module(log_alpha)
        return xp.sqrt(-xp.expm1(2.0 * log_alpha))

    def log_snr(self, t: Array) -> Array:
        log_alpha = self._log_alpha(t)
        with np.errstate(divide="ignore"):
            return 2.0 * log_alpha - log1m_exp(2.0 * log_alpha)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        times, log_alphas = (xp.asarray(knots[::-1], log_snr.dtype) for knots in self._knots)
        return xp.interp(-0.5 * xp.logaddexp(xp.zeros_like(log_snr), -log_snr), log_alphas, times)

    def alpha_derivative(self, t: Array) -> Array:
        return self.alpha(t) * self._log_alpha_derivative(t)

    def sigma_derivative(self, t: Array) -> Array:
        """d sigma / dt from sigma^2 = 1 - alpha^2; infinite at t = 0, where sigma starts as a square root."""
        with np.errstate(divide="ignore"):
            return -self.alpha(t) * self.alpha_derivative(t) / self.sigma(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaRange(TableSchedule):
    """Base of the schedules whose betas rise from `beta_start` to `beta_end`."""

    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self):
        super().__post_init__()
        if self.beta_start > self.beta_end:
            raise UserError(f"beta_start={self.beta_start:g} must not be above beta_end={self.beta_end:g}")


@SCHEDULES.register("ddpm_linear")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMLinear(BetaRange):
    """Betas equally spaced from 1e-4 to 0.02 (Ho et al. 2020, sec. 4)."""

    def betas(self) -> np.ndarray:
        return np.linspace(self.beta_start, self.beta_end, self.num_steps)


@SCHEDULES.register("cosine")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(TableSchedule):
    """alpha^2 ~ cos^2((u + s)/(1 + s) pi/2), u = n/T, betas clipped at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""

    offset: float = 0.008
    max_beta: float = 0.999

    def betas(self) -> np.ndarray:
        steps = np.arange(self.num_steps + 1) / self.num_steps
        alpha_squared = np.cos((steps + self.offset) / (1 + self.offset) * np.pi / 2) ** 2
        return np.minimum(1 - alpha_squared[1:] / alpha_squared[:-1], self.max_beta)
