"""The straight interpolant between data and noise.

Rectified flow and conditional flow matching with the optimal-transport path (Liu et al. 2022, arXiv 2209.03003;
Lipman et al. 2022, arXiv 2210.02747) move on straight lines at constant speed:

    (1)   xt = (1 - t) x0 + t noise,        velocity = dx/dt = noise - x0,
    (2)   log_snr = 2 log((1 - t) / t),     t = sigmoid(-log_snr / 2).

In both papers t = 1 is data; here, as everywhere in this code base, t = 1 is noise (as in Esser et al. 2024, SD3), so
their velocity has the opposite sign. At t = 1 no data is left: alpha(1) = 0 exactly.
"""

import dataclasses

import numpy as np

from diffusion_jax.schedulers.arrays import Array, array_module, as_float
from diffusion_jax.schedulers.schedule import SCHEDULES, NoiseSchedule


@SCHEDULES.register("rectified_flow")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow(NoiseSchedule):
    """Eq. (1)."""

    def alpha(self, t: Array) -> Array:
        return 1.0 - as_float(t)

    def sigma(self, t: Array) -> Array:
        return as_float(t)

    def log_snr(self, t: Array) -> Array:
        t = as_float(t)
        xp = array_module(t)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log1p(-t) - xp.log(t))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        return xp.exp(-xp.logaddexp(xp.zeros_like(log_snr), 0.5 * log_snr))

    def alpha_derivative(self, t: Array) -> Array:
        t = as_float(t)
        return -array_module(t).ones_like(t)

    def sigma_derivative(self, t: Array) -> Array:
        t = as_float(t)
        return array_module(t).ones_like(t)
