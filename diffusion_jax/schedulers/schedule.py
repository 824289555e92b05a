"""Noise schedules: how much signal and how much noise at time t.

A Gaussian diffusion corrupts data x0 with unit Gaussian noise as

    (1)   xt = alpha(t) x0 + sigma(t) noise,        t in [0, 1], 0 = data, 1 = noise,

and everything else about the process follows from the two curves (Kingma et al. 2021, arXiv 2107.00630, eq. 1):

    (2)   log_snr(t) = log(alpha(t)^2 / sigma(t)^2),    strictly decreasing in t,
    (3)   dx/dt = alpha'(t) x0 + sigma'(t) noise        the velocity of the straight conditional path.

`log_snr` measures time independently of the schedule. `time_of_log_snr` inverts (2), so a grid or a distribution over
noise levels can be transferred to any schedule. Three families differ only in their curves:
variance preserving (alpha^2 + sigma^2 = 1), variance exploding (alpha = 1) and linear interpolants (alpha = 1 - t,
sigma = t).

Every method accepts a number or numpy array and then computes on the host in float64, or a jax array or tracer and then
computes in its precision.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.registry import Registry
from diffusion_jax.schedulers.arrays import Array, array_module, as_float


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The curves alpha(t) and sigma(t) of (1); a subclass gives `alpha`, `sigma` and `time_of_log_snr`."""

    def alpha(self, t: Array) -> Array:
        """Scale of the data at time t, same shape as t; alpha(0) = 1."""
        raise NotImplementedError

    def sigma(self, t: Array) -> Array:
        """Standard deviation of the noise at time t, same shape as t."""
        raise NotImplementedError

    def time_of_log_snr(self, log_snr: Array) -> Array:
        """The time at which `log_snr(t)` has the given value: the inverse of (2)."""
        raise NotImplementedError

    def log_snr(self, t: Array) -> Array:
        """Eq. (2); +inf where sigma = 0 and -inf where alpha = 0."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        xp = array_module(alpha)
        with np.errstate(divide="ignore"):
            return 2.0 * (xp.log(alpha) - xp.log(sigma))

    def alpha_derivative(self, t: Array) -> Array:
        """d alpha / dt, by forward-mode differentiation unless the subclass has a formula."""
        return _derivative(self.alpha, t)

    def sigma_derivative(self, t: Array) -> Array:
        """d sigma / dt, by forward-mode differentiation unless the subclass has a formula."""
        return _derivative(self.sigma, t)

    def log_snr_derivative(self, t: Array) -> Array:
        """d log_snr / dt, negative; infinite where the log-SNR is."""
        return _derivative(self.log_snr, t)

    @property
    def prior_std(self) -> float:
        """Standard deviation of the Gaussian from which sampling starts at t = 1."""
        return 1.0


SCHEDULES: Registry[NoiseSchedule] = Registry("noise schedule", NoiseSchedule)


def _derivative(curve: Callable[[Array], Array], t: Array) -> Array:
    if isinstance(t, jax.Array):
        t = as_float(t)
        return jax.jvp(curve, (t,), (jnp.ones_like(t),))[1]
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        t = jnp.asarray(as_float(t))
        return np.asarray(jax.jvp(curve, (t,), (jnp.ones_like(t),))[1])
