"""A schedule given as a list of noise levels: what a published scheduler visits, with the network's time at each.

Published schedulers round steps, interpolate noise levels in various ways, and give the network a time that need not
match the level's place in the table of betas. Here all of that is listed, point by point:

    time t_i falling from 1 to 0  ->  alpha_i, sigma_i, and the network's own time

At the points everything is exact, and between them it is linear in t; the points of solvers that evaluate between steps
are listed too. Such a schedule is for sampling, where the points are known beforehand, not for training.
"""

import dataclasses

import numpy as np

from diffusion_jax.schedulers.arrays import Array, array_module, as_float
from diffusion_jax.schedulers.parameterization import TimeInput
from diffusion_jax.schedulers.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visited(NoiseSchedule):
    """Noise levels as a function of time.

    Attributes:
      times: falling, from 1 to 0.
      alphas, sigmas: values at these times.
    """

    times: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]

    def alpha(self, t: Array) -> Array:
        return _between(t, self.times, self.alphas)

    def sigma(self, t: Array) -> Array:
        return _between(t, self.times, self.sigmas)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        with np.errstate(divide="ignore"):
            levels = np.clip(2.0 * (np.log(self.alphas) - np.log(self.sigmas)), -1e4, 1e4)
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        return xp.interp(log_snr, xp.asarray(levels, log_snr.dtype), xp.asarray(self.times, log_snr.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisitedTime(TimeInput):
    """The network's own time input, as a function of the time of a `Visited` schedule."""

    times: tuple[float, ...]
    told: tuple[float, ...]

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        return _between(t, self.times, self.told)


def _between(t: Array, times: tuple[float, ...], values: tuple[float, ...]) -> Array:
    t = as_float(t)
    xp = array_module(t)
    return xp.interp(t, xp.asarray(times[::-1], t.dtype), xp.asarray(values[::-1], t.dtype))
