"""The variance-exploding schedule of EDM, with Karras' time-step spacing as its clock.

Karras et al. 2022 (arXiv 2206.00364) leave the data unscaled, xt = x0 + sigma noise, and space N sampling steps as
(eq. 5, with i = 0 the noisiest)

    (1)   sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

Taking t = 1 - i/(N-1) as time gives the schedule

    (2)   alpha(t) = 1,    sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho,

so a uniform grid in t *is* Karras' grid. Noise at t = 0 is sigma_min, not 0: the last sampling step jumps from there
to clean data.

(2) remains a valid schedule a little outside [0, 1]: below t = 0 down to sigma = 0 at t = -0.28 (with the default
numbers), above t = 1 without end. EDM trains with ln sigma ~ N(-1.2, 1.2^2), whose tails leave [sigma_min, sigma_max]
about twice in 10^5 draws; those noise levels have times outside [0, 1] here and need no clipping.
"""

import dataclasses

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers.arrays import Array, array_module, as_float
from diffusion_jax.schedulers.schedule import SCHEDULES, NoiseSchedule


@SCHEDULES.register("edm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(NoiseSchedule):
    """Eq. (2)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise UserError(
                f"the edm schedule needs 0 < sigma_min < sigma_max and rho > 0, "
                f"got {self.sigma_min}, {self.sigma_max}, {self.rho}"
            )

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha(self, t: Array) -> Array:
        t = as_float(t)
        return array_module(t).ones_like(t)

    def sigma(self, t: Array) -> Array:
        low, high = self._ends
        return (low + as_float(t) * (high - low)) ** self.rho

    def time_of_log_snr(self, log_snr: Array) -> Array:
        log_snr = as_float(log_snr)
        low, high = self._ends
        return (array_module(log_snr).exp(-0.5 / self.rho * log_snr) - low) / (high - low)

    def log_snr(self, t: Array) -> Array:
        low, high = self._ends
        root = low + as_float(t) * (high - low)
        return -2.0 * self.rho * array_module(root).log(root)

    def alpha_derivative(self, t: Array) -> Array:
        t = as_float(t)
        return array_module(t).zeros_like(t)

    def sigma_derivative(self, t: Array) -> Array:
        low, high = self._ends
        return self.rho * (high - low) * (low + as_float(t) * (high - low)) ** (self.rho - 1)

    @property
    def prior_std(self) -> float:
        return self.sigma_max
