"""The variance of a sampler's output with the perfect denoiser of Gaussian data, computed without random numbers."""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.samplers import sample
from diffusion_jax.schedulers import Prediction

SIGMA_DATA = 0.5


class _GivenNoise:
    """Replaces the key of one example: the noise of step i is a given number."""

    def __init__(self, numbers: jax.Array, index: Any = None):
        self.numbers, self.index = numbers, index

    def fold_in(self, name: str) -> "_GivenNoise":
        return self

    def counter_based(self) -> "_GivenNoise":
        return self

    def at_step(self, index: Any) -> "_GivenNoise":
        return _GivenNoise(self.numbers, index)

    def normal(self, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        return jnp.full((1, *shape), self.numbers[self.index], dtype)


def gaussian_variance(one: Any, grid: Any) -> float:
    """The variance of a sampler's output from the prior with a perfect denoiser of N(0, 0.5^2), without sampling.

    For such data every sampler that draws one number per step is linear in its noise, so the variance is the sum of the
    squared derivatives.
    """

    def denoise(xt: jax.Array, t: jax.Array) -> Prediction:
        alpha, sigma = grid.schedule.alpha(t), grid.schedule.sigma(t)
        x0 = alpha * SIGMA_DATA**2 / ((alpha * SIGMA_DATA) ** 2 + sigma**2) * xt
        return Prediction.from_x0(grid.schedule, x0, xt, t)

    def run(noise: jax.Array, numbers: jax.Array) -> jax.Array:
        return sample(one, denoise, grid, noise[None], _GivenNoise(numbers)).x0[0]

    with jax.enable_x64(True):
        zeros = jnp.zeros((), jnp.float64), jnp.zeros((grid.num_steps,), jnp.float64)
        parts = jax.jit(jax.grad(run, argnums=(0, 1)))(*zeros)
        return float(sum(jnp.sum(part**2) for part in parts))
