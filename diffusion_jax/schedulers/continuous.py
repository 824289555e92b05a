"""Schedules given by formulas in continuous time.

    name             alpha                     sigma                        paper
    vp_sde           exp(-B / 2)               sqrt(1 - alpha^2)            Song et al. 2021 (arXiv 2011.13456), app. C
    sub_vp_sde       exp(-B / 2)               1 - exp(-B)                  the same; B(t) = b0 t + (b1 - b0) t^2 / 2
    ve_sde           1                         s0 (s1 / s0)^t               the same
    gvp              cos(pi t / 2)             sin(pi t / 2)                Albergo et al. 2023; SiT (2401.08740)
    trigflow         the same curves; the angle of Lu & Song 2024 (arXiv 2410.11081) is pi t / 2
    clipped_cosine   variance preserving, log_snr = -2 log tan(a t + b)     Salimans & Ho 2022 (2202.00512), app. E
    vdm_linear       variance preserving, log_snr linear in t               Kingma et al. 2021 (2107.00630), app. H
    sigmoid          alpha^2 a scaled sigmoid of t                          Jabri et al. 2022 (2212.11972), alg. 1

A variance-preserving schedule is determined by its log-SNR: alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr).
All inverses are closed forms.
"""

import dataclasses
import math

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers.arrays import Array, array_module, as_float, log1m_exp
from diffusion_jax.schedulers.schedule import SCHEDULES, NoiseSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBetaSDE(NoiseSchedule):
    """Base of the two SDEs whose rate beta(t) grows linearly; B is its integral."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(f"an SDE needs 0 < beta_min <= beta_max, got {self.beta_min}, {self.beta_max}")

    def integral(self, t: Array) -> Array:
        """B(t)."""
        t = as_float(t)
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def rate(self, t: Array) -> Array:
        """beta(t)."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_float(t)

    def time_of_integral(self, integral: Array) -> Array:
        """Solve B(t) = integral for t by the quadratic formula, in the form without cancellation."""
        xp = array_module(integral)
        root = xp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root)

    def alpha(self, t: Array) -> Array:
        integral = self.integral(t)
        return array_module(integral).exp(-0.5 * integral)

    def alpha_derivative(self, t: Array) -> Array:
        return -0.5 * self.rate(t) * self.alpha(t)


@SCHEDULES.register("vp_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VPSDE(LinearBetaSDE):
    """alpha = exp(-B / 2), sigma^2 = 1 - exp(-B)."""

    def sigma(self, t: Array) -> Array:
        integral = self.integral(t)
        xp = array_module(integral)
        return xp.sqrt(-xp.expm1(-integral))

    def log_snr(self, t: Array) -> Array:
        integral = self.integral(t)
        with np.errstate(divide="ignore"):
            return -integral - log1m_exp(-integral)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        return self.time_of_integral(xp.logaddexp(xp.zeros_like(log_snr), -log_snr))

    def sigma_derivative(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return 0.5 * self.rate(t) * self.alpha(t) ** 2 / self.sigma(t)


@SCHEDULES.register("sub_vp_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVPSDE(LinearBetaSDE):
    """alpha = exp(-B / 2), sigma = 1 - exp(-B): less noise than the VP SDE at every t.

    With r = alpha / sigma, exp(-B / 2) = (sqrt(1 + 4 r^2) - 1) / (2 r), which inverts the log-SNR.
    """

    def sigma(self, t: Array) -> Array:
        integral = self.integral(t)
        return -array_module(integral).expm1(-integral)

    def log_snr(self, t: Array) -> Array:
        integral = self.integral(t)
        with np.errstate(divide="ignore"):
            return -integral - 2.0 * log1m_exp(-integral)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        # alpha solves alpha^2 + q alpha - 1 = 0, q = 1 / r, so B / 2 = -log alpha = arcsinh(q / 2).
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        return self.time_of_integral(2.0 * xp.arcsinh(0.5 * xp.exp(-0.5 * log_snr)))

    def sigma_derivative(self, t: Array) -> Array:
        return self.rate(t) * self.alpha(t) ** 2


@SCHEDULES.register("ve_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VESDE(NoiseSchedule):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t; noise is left at t = 0."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"ve_sde needs 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")

    @property
    def _log_range(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Array) -> Array:
        t = as_float(t)
        return array_module(t).ones_like(t)

    def alpha_derivative(self, t: Array) -> Array:
        return 0.0 * self.alpha(t)

    def sigma(self, t: Array) -> Array:
        t = as_float(t)
        return self.sigma_min * array_module(t).exp(t * self._log_range)

    def sigma_derivative(self, t: Array) -> Array:
        return self._log_range * self.sigma(t)

    def log_snr(self, t: Array) -> Array:
        return -2.0 * (math.log(self.sigma_min) + as_float(t) * self._log_range)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        return (-0.5 * as_float(log_snr) - math.log(self.sigma_min)) / self._log_range

    @property
    def prior_std(self) -> float:
        return self.sigma_max


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trigonometric(NoiseSchedule):
    """alpha = cos(angle), sigma = sin(angle), angle = pi t / 2; alpha(1) is exactly 0, computed from 1 - t."""

    def alpha(self, t: Array) -> Array:
        t = as_float(t)
        return array_module(t).sin(0.5 * math.pi * (1.0 - t))

    def sigma(self, t: Array) -> Array:
        t = as_float(t)
        return array_module(t).sin(0.5 * math.pi * t)

    def alpha_derivative(self, t: Array) -> Array:
        return -0.5 * math.pi * self.sigma(t)

    def sigma_derivative(self, t: Array) -> Array:
        return 0.5 * math.pi * self.alpha(t)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        return 2.0 / math.pi * xp.arctan(xp.exp(-0.5 * log_snr))


SCHEDULES.register("gvp")(Trigonometric)


@SCHEDULES.register("trigflow")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrigFlow(Trigonometric):
    """alpha = cos(angle), sigma = sigma_data sin(angle): noise as large as the data (Lu & Song 2024, sec. 3.1).

    tan(angle) is EDM's noise level in units of `sigma_data`, and the paper's F is minus the kind `edm`.
    """

    sigma_data: float = 1.0

    def __post_init__(self):
        if not self.sigma_data > 0:
            raise UserError(f"trigflow needs sigma_data > 0, got {self.sigma_data}")

    def sigma(self, t: Array) -> Array:
        return self.sigma_data * super().sigma(t)

    def alpha_derivative(self, t: Array) -> Array:
        return -0.5 * math.pi * super().sigma(t)

    def sigma_derivative(self, t: Array) -> Array:
        return self.sigma_data * super().sigma_derivative(t)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        return super().time_of_log_snr(as_float(log_snr) + 2.0 * math.log(self.sigma_data))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByLogSNR(NoiseSchedule):
    """Base of the variance-preserving schedules that are given by `log_snr` and its inverse."""

    def alpha(self, t: Array) -> Array:
        log_snr = self.log_snr(t)
        xp = array_module(log_snr)
        return xp.exp(-0.5 * xp.logaddexp(xp.zeros_like(log_snr), -log_snr))

    def sigma(self, t: Array) -> Array:
        log_snr = self.log_snr(t)
        xp = array_module(log_snr)
        return xp.exp(-0.5 * xp.logaddexp(xp.zeros_like(log_snr), log_snr))

    def log_snr(self, t: Array) -> Array:
        raise NotImplementedError


@SCHEDULES.register("clipped_cosine")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClippedCosine(ByLogSNR):
    """log_snr = -2 log tan(a t + b), from log_snr_max at t = 0 to log_snr_min at t = 1."""

    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    def __post_init__(self):
        if not self.log_snr_min < self.log_snr_max:
            raise UserError(f"clipped_cosine needs log_snr_min < log_snr_max, got {self}")

    @property
    def _angles(self) -> tuple[float, float]:
        return math.atan(math.exp(-0.5 * self.log_snr_max)), math.atan(math.exp(-0.5 * self.log_snr_min))

    def log_snr(self, t: Array) -> Array:
        first, last = self._angles
        t = as_float(t)
        xp = array_module(t)
        # tan near a right angle is computed as 1 / tan of the rest, so that both halves keep their accuracy.
        small, large = first + t * (last - first), (math.pi / 2 - last) + (1.0 - t) * (last - first)
        return xp.where(small < large, -2.0 * xp.log(xp.tan(small)), 2.0 * xp.log(xp.tan(large)))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        first, last = self._angles
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        return (xp.arctan(xp.exp(-0.5 * log_snr)) - first) / (last - first)


@SCHEDULES.register("vdm_linear")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VDMLinear(ByLogSNR):
    """gamma = -log_snr linear in t from gamma_min to gamma_max; defined outside [0, 1] too."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0

    def __post_init__(self):
        if not self.gamma_min < self.gamma_max:
            raise UserError(f"vdm_linear needs gamma_min < gamma_max, got {self.gamma_min}, {self.gamma_max}")

    def log_snr(self, t: Array) -> Array:
        return -self.gamma_min - as_float(t) * (self.gamma_max - self.gamma_min)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        return (-as_float(log_snr) - self.gamma_min) / (self.gamma_max - self.gamma_min)


@SCHEDULES.register("sigmoid")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmoid(NoiseSchedule):
    """alpha^2 = (S(end) - S(x)) / (S(end) - S(start)), x = start + t (end - start), S(x) = sigmoid(x / tau).

    alpha(1) = 0 exactly. Differences of sigmoids are computed as S(a) - S(b) = sinh((a - b) / 2 tau) /
    (2 cosh(a / 2 tau) cosh(b / 2 tau)), without cancellation, so both ends are exact.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self):
        if not self.start < self.end or self.tau <= 0:
            raise UserError(f"sigmoid needs start < end and tau > 0, got {self.start}, {self.end}, {self.tau}")

    @property
    def _ends(self) -> tuple[float, float]:
        return 0.5 * self.start / self.tau, 0.5 * self.end / self.tau

    def alpha(self, t: Array) -> Array:
        low, high = self._ends
        t = as_float(t)
        xp = array_module(t)
        here = low + t * (high - low)
        ratio = math.cosh(low) / math.sinh(high - low)
        return xp.sqrt(xp.sinh((1.0 - t) * (high - low)) * ratio / xp.cosh(here))

    def sigma(self, t: Array) -> Array:
        low, high = self._ends
        t = as_float(t)
        xp = array_module(t)
        here = low + t * (high - low)
        return xp.sqrt(xp.sinh(t * (high - low)) * math.cosh(high) / math.sinh(high - low) / xp.cosh(here))

    def alpha_derivative(self, t: Array) -> Array:
        """d alpha / dt; minus infinity at t = 1, where alpha ends as a square root."""
        with np.errstate(divide="ignore"):
            return -self._rate(t) / self.alpha(t)

    def sigma_derivative(self, t: Array) -> Array:
        """d sigma / dt; infinite at t = 0, where sigma starts as a square root."""
        with np.errstate(divide="ignore"):
            return self._rate(t) / self.sigma(t)

    def _rate(self, t: Array) -> Array:
        """Half the derivative of sigma^2 = (tanh(here) - tanh(low)) / (tanh(high) - tanh(low))."""
        low, high = self._ends
        here = low + as_float(t) * (high - low)
        xp = array_module(here)
        return 0.5 * (high - low) / (math.tanh(high) - math.tanh(low)) / xp.cosh(here) ** 2

    def time_of_log_snr(self, log_snr: Array) -> Array:
        """Invert sigma^2 / alpha^2 = sinh(t d) cosh(high) / (sinh((1 - t) d) cosh(low)), d = high - low."""
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        low, high = self._ends
        d = high - low
        inverse = xp.exp(log_snr) * (math.cosh(high) / math.cosh(low))
        return xp.arctanh(math.sinh(d) / (inverse + math.cosh(d))) / d
