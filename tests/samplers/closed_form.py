"""Distributions with exactly known denoisers, a schedule with any range of log-SNR, and exact variances.

For data N(mean, std^2) on any schedule, with V = alpha^2 std^2 + sigma^2,

    E[x0 | xt]    = mean + alpha std^2 / V (xt - alpha mean),
    E[noise | xt] = sigma / V (xt - alpha mean),
    x_t           = alpha_t mean + (x_1 - alpha_1 mean) sqrt(V_t / V_1)     the probability-flow ODE's solution.

A mixture of Gaussians averages these over the responsibilities of its components.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats

from diffusion_jax.samplers import sample
from diffusion_jax.schedulers import NoiseSchedule, Prediction
from diffusion_jax.schedulers.arrays import array_module, as_float, like_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Independent coordinates, each N(mean, std^2)."""

    mean: float = 0.3
    std: float = 0.5

    def marginal(self, schedule, t):
        """Mean and standard deviation of xt."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * self.mean, array_module(alpha).sqrt((alpha * self.std) ** 2 + sigma**2)

    def denoiser(self, schedule):
        def denoise(xt, t):
            alpha, sigma = (like_data(c, xt) for c in (schedule.alpha(t), schedule.sigma(t)))
            scaled = (xt - alpha * self.mean) / ((alpha * self.std) ** 2 + sigma**2)
            return Prediction(x0=self.mean + alpha * self.std**2 * scaled, noise=sigma * scaled)

        return denoise

    def flow_map(self, schedule):
        """The exact flow map to time s, or to clean data if s is not given (a consistency function)."""

        def denoise(xt, t, s=None):
            t = jnp.asarray(t, jnp.result_type(float))
            alpha_t, sigma_t = (like_data(c, xt) for c in (schedule.alpha(t), schedule.sigma(t)))
            mean_t, std_t = (like_data(c, xt) for c in self.marginal(schedule, t))
            scaled = (xt - mean_t) / std_t
            if s is None:
                return Prediction.from_x0(schedule, self.mean + self.std * scaled, xt, t)
            s = jnp.asarray(s, jnp.result_type(float))
            alpha_s, sigma_s = (like_data(c, xt) for c in (schedule.alpha(s), schedule.sigma(s)))
            mean_s, std_s = (like_data(c, xt) for c in self.marginal(schedule, s))
            there = mean_s + std_s * scaled
            d = alpha_s * sigma_t - alpha_t * sigma_s
            exact = self.denoiser(schedule)(xt, t)
            close = jnp.abs(d) < 1e-12
            d = jnp.where(close, 1.0, d)
            return Prediction(
                x0=jnp.where(close, exact.x0, (sigma_t * there - sigma_s * xt) / d),
                noise=jnp.where(close, exact.noise, (alpha_s * xt - alpha_t * there) / d),
            )

        return denoise

    def flow(self, schedule, x_1, grid):
        """The end of the probability-flow ODE that starts at x_1, at the grid's last point."""
        mean_1, std_1 = self.marginal(schedule, grid.times[0])
        alpha, sigma = grid.alphas[-1], grid.sigmas[-1]
        return alpha * self.mean + (x_1 - mean_1) * np.sqrt((alpha * self.std) ** 2 + sigma**2) / std_1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of one-dimensional Gaussians with independent coordinates."""

    weights: tuple[float, ...] = (0.3, 0.7)
    means: tuple[float, ...] = (-1.0, 0.8)
    stds: tuple[float, ...] = (0.2, 0.35)

    def denoiser(self, schedule):
        parts = [Gaussian(mean=m, std=s) for m, s in zip(self.means, self.stds, strict=True)]

        def denoise(xt, t):
            logits = []
            for part, weight in zip(parts, self.weights, strict=True):
                mean, std = (like_data(c, xt) for c in part.marginal(schedule, t))
                logits.append(jnp.log(weight) - jnp.log(std) - 0.5 * ((xt - mean) / std) ** 2)
            responsibilities = jax.nn.softmax(jnp.stack(logits), axis=0)
            predictions = [part.denoiser(schedule)(xt, t) for part in parts]
            return jax.tree.map(lambda *p: jnp.sum(responsibilities * jnp.stack(p), axis=0), *predictions)

        return denoise

    def flow(self, schedule, x_1, grid):
        """The end of the probability-flow ODE that starts at x_1; in one dimension the flow keeps the quantile."""

        def tail(x, alpha, sigma, sign):
            """P(sign X > sign x) of the marginal."""
            spreads = np.sqrt((alpha * np.array(self.stds)) ** 2 + sigma**2)
            return np.sum(
                np.array(self.weights) * scipy.stats.norm.sf(sign * (x - alpha * np.array(self.means)) / spreads)
            )

        first = grid.alphas[0], grid.sigmas[0]
        last = grid.alphas[-1], grid.sigmas[-1]
        sign = 1 if tail(x_1, *first, 1) < 0.5 else -1  # the smaller tail is more accurate
        wanted = tail(x_1, *first, sign)
        return scipy.optimize.brentq(lambda x: tail(x, *last, sign) - wanted, -20.0, 20.0, xtol=1e-15, rtol=1e-15)


def point_mass_denoiser(schedule, x0):
    """The denoiser of data that always equals x0."""
    return lambda xt, t: Prediction.from_x0(schedule, jnp.broadcast_to(x0, xt.shape), xt, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSNRLine(NoiseSchedule):
    """A variance-preserving schedule with log_snr linear in t; derivatives are those of the base class."""

    first: float = 20.0
    last: float = -20.0

    def log_snr(self, t):
        return self.first + (self.last - self.first) * as_float(t)

    def alpha(self, t):
        log_snr = self.log_snr(t)
        xp = array_module(log_snr)
        return xp.exp(-0.5 * xp.logaddexp(xp.zeros_like(log_snr), -log_snr))

    def sigma(self, t):
        log_snr = self.log_snr(t)
        xp = array_module(log_snr)
        return xp.exp(-0.5 * xp.logaddexp(xp.zeros_like(log_snr), log_snr))

    def time_of_log_snr(self, log_snr):
        return (as_float(log_snr) - self.first) / (self.last - self.first)


class GivenNoise:
    """Replaces a BatchKey of one example and returns given numbers as the noise of step i for each named use."""

    def __init__(self, numbers, use="", index=None):
        self.numbers, self.use, self.index = numbers, use, index

    def fold_in(self, name):
        return GivenNoise(self.numbers, name, self.index)

    def counter_based(self):
        return self

    def at_step(self, index):
        return self if self.index is not None else GivenNoise(self.numbers, self.use, index)

    def normal(self, shape, dtype=None):
        row = 1 if self.use == "middle" else 0
        return jnp.full((1, *shape), self.numbers[row, self.index], dtype)


def exact_variance(sampler, denoiser, grid):
    """The exact variance of a sampler's output from the prior, which is linear in the noise for Gaussian data."""

    def run(noise, numbers):
        return sample(sampler, denoiser, grid, noise[None], GivenNoise(numbers)).x0[0]

    zeros = jnp.zeros(()), jnp.zeros((2, grid.num_steps))
    return float(sum(jnp.sum(part**2) for part in jax.jit(jax.grad(run, argnums=(0, 1)))(*zeros)))
