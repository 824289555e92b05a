"""DDIM backwards: the noise from which deterministic sampling makes given data.

A DDIM step t -> s with eta = 0 (Song et al. 2020, arXiv 2010.02502, eq. 13) is, in z = xt / alpha and rho = sigma /
alpha,

    (1)   z_s = z_t + (rho_s - rho_t) noise(x_t, t).

Run backwards with the noise predicted at s in the place of that at t it is their sec. 4.3 (and what null-text inversion
starts from); the error is of first order in the step. Each fixed-point iteration

    (2)   z_t <- z_s - (rho_s - rho_t) noise(alpha_t z_t, t)

comes closer to the exact inverse of (1) (Pan et al. 2023, arXiv 2309.04907), where it contracts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import Denoiser, TimeGrid
from diffusion_jax.schedulers.arrays import as_compute


@functools.partial(jax.tree_util.register_dataclass, data_fields=["noise", "nfe"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inversion:
    """The noise [batch, ...], in units of the prior so that `sample` takes it, and the evaluations of the denoiser."""

    noise: Float[Array, "batch ..."]
    nfe: int


def invert(denoiser: Denoiser, grid: TimeGrid, x0: Float[Array, "batch ..."], *, iterations: int = 0) -> Inversion:
    """The noise that `sample(ddim, denoiser, grid, noise)` turns into x0, up to the error of (1).

    Args:
      denoiser: (xt, t) -> Prediction.
      grid: the grid to be sampled with. At clean data, where no noise can be predicted, that of the next point is used.
      x0: data at the last point of the grid, [batch, ...].
      iterations: of (2), at every step; each is one evaluation more.

    Raises:
      UserError: the grid starts where alpha = 0, whose z has no finite value, or iterations < 0.
    """
    if grid.alphas[0] == 0:
        raise UserError(
            f"inversion ends at sigma / alpha, which is infinite at t = 1 of {type(grid.schedule).__name__}: "
            "take a grid whose first time is below 1 (TimeGrid.from_times)"
        )
    if iterations < 0:
        raise UserError(f"inversion needs iterations >= 0, got {iterations}")
    alphas, levels, times = (as_compute(v[::-1].copy()) for v in (grid.alphas, grid.sigmas / grid.alphas, grid.times))
    is_clean = as_compute(1.0 * (grid.sigmas[::-1] == 0))
    here = tuple(v[:-1] for v in (alphas, levels, times, is_clean))
    there = tuple(v[1:] for v in (alphas, levels, times))

    def step(z: Array, points) -> tuple[Array, None]:
        (alpha_s, level_s, time_s, clean), (alpha_t, level_t, time_t) = points
        alpha, time = jnp.where(clean > 0, alpha_t, alpha_s), jnp.where(clean > 0, time_t, time_s)
        back = z + (level_t - level_s) * denoiser(alpha * z, time).noise

        def refine(_: int, z_t: Array) -> Array:
            return z + (level_t - level_s) * denoiser(alpha_t * z_t, time_t).noise

        return jax.lax.fori_loop(0, iterations, refine, back) if iterations else back, None

    z, _ = jax.lax.scan(step, as_compute(x0) / alphas[0], (here, there))
    return Inversion(noise=alphas[-1] * z / grid.schedule.prior_std, nfe=grid.num_steps * (1 + iterations))
