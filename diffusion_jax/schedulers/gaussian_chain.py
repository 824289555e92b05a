"""The chain of T Gaussian steps that a schedule defines, and the terms that its likelihoods need.

For s < t (Ho et al. 2020, arXiv 2006.11239, eq. 6, 7; Kingma et al. 2021, arXiv 2107.00630, app. A), with
alpha_ts = alpha_t / alpha_s and sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2,

    (1)   q(x_s | x_t, x0) = N( alpha_ts sigma_s^2 / sigma_t^2 x_t + alpha_s sigma_ts^2 / sigma_t^2 x0,
                                sigma_ts^2 sigma_s^2 / sigma_t^2 ).

The variance in (1) is the "small" one of a reverse step, exact for data at a point; sigma_ts^2 is the "large" one,
exact for unit Gaussian data. Between them (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15), with f in [0, 1],

    (2)   log variance = f log large + (1 - f) log small.

At clean data small is 0; where its logarithm is needed it is clipped to that of the step before, as in their code.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.schedulers.time_grids import TimeGrid


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseSteps:
    """Eq. (1) for every transition of a grid, float64 [N] each: x_s = mean_xt x_t + mean_x0 x0 + N(0, variance)."""

    mean_xt: np.ndarray
    mean_x0: np.ndarray
    small: np.ndarray
    large: np.ndarray

    @classmethod
    def of(cls, grid: TimeGrid) -> "ReverseSteps":
        """The reverse steps of a grid."""
        alpha_t, alpha_s = grid.alphas[:-1], grid.alphas[1:]
        sigma_t, sigma_s = grid.sigmas[:-1], grid.sigmas[1:]
        # sigma_ts^2 = sigma_t^2 (1 - SNR_t / SNR_s), without cancellation
        large = -(sigma_t**2) * np.expm1(grid.log_snrs[:-1] - grid.log_snrs[1:])
        kept = (sigma_s / sigma_t) ** 2
        return cls(
            mean_xt=alpha_t / alpha_s * kept, mean_x0=alpha_s * large / sigma_t**2, small=large * kept, large=large
        )

    @property
    def log_small(self) -> np.ndarray:
        """log small; at clean data clipped to the value of the transition before (to log large if there is none)."""
        clipped = np.where(self.small > 0, self.small, 0.0)
        if clipped[-1] == 0:
            clipped[-1] = clipped[-2] if len(clipped) > 1 else self.large[-1]
        return np.log(clipped)

    @property
    def log_large(self) -> np.ndarray:
        """log large."""
        return np.log(self.large)


def normal_kl(
    mean: Float[Array, "..."],
    log_variance: Float[Array, "..."],
    other_mean: Float[Array, "..."],
    other_log_variance: Float[Array, "..."],
) -> Float[Array, "..."]:
    """KL(N(mean, variance) || N(other)) in nats, elementwise."""
    difference = log_variance - other_log_variance
    return 0.5 * (
        -1.0 - difference + jnp.exp(difference) + (mean - other_mean) ** 2 * jnp.exp(-jnp.asarray(other_log_variance))
    )


def discretised_log_likelihood(
    x: Float[Array, "..."], mean: Float[Array, "..."], log_std: Float[Array, "..."], *, bins: int = 256
) -> Float[Array, "..."]:
    """log P of the bin of x under N(mean, std^2), in nats (Ho et al. 2020, eq. 13).

    x takes `bins` equally spaced values from -1 to 1; the first and the last bin reach to infinity. The normal
    distribution function is exact, not the tanh approximation of some public code.
    """
    half, inverse = 1.0 / (bins - 1), jnp.exp(-jnp.asarray(log_std))
    upper, lower = (x + half - mean) * inverse, (x - half - mean) * inverse
    log_cdf = jax.scipy.stats.norm.logcdf
    # The difference of two distribution functions, taken in the tail where it does not cancel.
    flip = lower > 0
    a, b = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    log_a, log_b = log_cdf(a), log_cdf(b)
    inner = log_a + jnp.log(jnp.maximum(-jnp.expm1(jnp.minimum(log_b - log_a, -1e-12)), 1e-12))
    edge = 1.0 - half
    return jnp.where(x < -edge, log_cdf(upper), jnp.where(x > edge, log_cdf(-lower), inner))


def prior_kl(x0: Float[Array, "..."], alpha: float, sigma: float) -> Float[Array, "..."]:
    """KL(q(x_1 | x0) || N(0, 1)) in nats, elementwise; alpha and sigma are the values at t = 1."""
    return normal_kl(alpha * x0, 2.0 * math.log(sigma), 0.0, 0.0)
