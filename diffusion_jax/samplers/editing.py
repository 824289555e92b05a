"""From data back to noise, and to other data: inversion, editing, variations.

`ddim` inversion walks the sampler's own grid backwards. A DDIM step t -> s with eta = 0 (Song et al. 2020,
arXiv:2010.02502, eq. 13) is, in z = xt / alpha and rho = sigma / alpha,

    (1)   z_s = z_t + (rho_s - rho_t) noise(x_t, t).

Run backwards with the noise predicted at s instead of at t, it is their sec. 4.3 (and the start of null-text
inversion); the error is of first order in the step. Each fixed-point iteration

    (2)   z_t <- z_s - (rho_s - rho_t) noise(alpha_t z_t, t)

comes closer to the exact inverse of (1) (Pan et al. 2023, arXiv:2309.04907), where it contracts.

`rk45` inversion integrates the probability-flow ODE to its tolerances, independently of the grid between its ends; the
sampler rk45 leads back.

`edit` inverts with one denoiser and samples with another, for example one for another class (Hertz et al. 2022,
arXiv:2208.01626, start from this). `sdedit` starts in the middle instead, from data with added noise (Meng et al. 2021,
arXiv:2108.01073).
"""

import dataclasses
import functools
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.domains import POSITIVE, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.ode import integrate
from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import Sampler, SampleResult, sample
from diffusion_jax.schedulers import Denoiser, TimeGrid
from diffusion_jax.schedulers.angle import angle_velocity
from diffusion_jax.schedulers.arrays import as_compute


@functools.partial(jax.tree_util.register_dataclass, data_fields=["noise", "nfe"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inverse:
    """The noise [batch, ...], in units of the prior so that `sample` accepts it, and the number of denoiser
    evaluations."""

    noise: Float[Array, "batch ..."]
    nfe: int | Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inversion:
    """A method that finds the noise which gives the data."""

    @property
    def sampler(self) -> str:
        """The name of the sampler that leads back to the data."""
        raise NotImplementedError

    def check(self, grid: TimeGrid) -> None:
        """Raise UserError if a grid cannot be walked backwards."""

    def nfe(self, num_steps: int) -> int:
        """Evaluations of the denoiser on a grid with so many transitions; for an adaptive method, the least number."""
        raise NotImplementedError

    def __call__(self, denoiser: Denoiser, grid: TimeGrid, x0: Float[Array, "batch ..."]) -> Inverse:
        """The noise from which sampling gives x0.

        Args:
          denoiser: (xt, t) -> Prediction.
          grid: the grid to sample with.
          x0: data at the last point of the grid.
        """
        raise NotImplementedError


INVERSIONS: Registry[Inversion] = Registry("inversion")


@INVERSIONS.register("ddim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIMInversion(Inversion):
    """Eq. (1) backwards, with `iterations` of (2) at every step, each of which needs one more evaluation.

    At clean data, where no noise can be predicted, the noise predicted at the next point is used.

    Attributes:
      iterations: refinements of every step, each with one evaluation.

    Raises:
      UserError: the grid starts where alpha = 0, whose z has no finite value.
    """

    iterations: Annotated[int, Bounds(low=0, high=1000)] = 0

    def __post_init__(self):
        if self.iterations < 0:
            raise UserError(f"inversion needs iterations >= 0, got {self.iterations}")

    @property
    def sampler(self) -> str:
        return "ddim"

    def check(self, grid: TimeGrid) -> None:
        if grid.alphas[0] == 0:
            raise UserError(
                f"inversion ddim ends at sigma / alpha, which is infinite at t = 1 of {type(grid.schedule).__name__}: "
                "use inversion rk45, or a grid whose first time is below 1"
            )

    def nfe(self, num_steps: int) -> int:
        return num_steps * (1 + self.iterations)

    def __call__(self, denoiser: Denoiser, grid: TimeGrid, x0: Float[Array, "batch ..."]) -> Inverse:
        self.check(grid)
        alphas, levels, times = (
            as_compute(v[::-1].copy()) for v in (grid.alphas, grid.sigmas / grid.alphas, grid.times)
        )
        is_clean = as_compute(1.0 * (grid.sigmas[::-1] == 0))
        here = tuple(v[:-1] for v in (alphas, levels, times, is_clean))
        there = tuple(v[1:] for v in (alphas, levels, times))

        def step(z: Array, points: Any) -> tuple[Array, None]:
            (alpha_s, level_s, time_s, clean), (alpha_t, level_t, time_t) = points
            alpha, time = jnp.where(clean > 0, alpha_t, alpha_s), jnp.where(clean > 0, time_t, time_s)
            back = z + (level_t - level_s) * denoiser(alpha * z, time).noise

            def refine(_: int, z_t: Array) -> Array:
                return z + (level_t - level_s) * denoiser(alpha_t * z_t, time_t).noise

            return jax.lax.fori_loop(0, self.iterations, refine, back) if self.iterations else back, None

        z, _ = jax.lax.scan(step, as_compute(x0) / alphas[0], (here, there))
        return Inverse(noise=alphas[-1] * z / grid.schedule.prior_std, nfe=self.nfe(grid.num_steps))


@INVERSIONS.register("rk45")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowInversion(Inversion):
    """The probability-flow ODE in the angle atan(sigma / alpha), from `t_first` to the first point of the grid.

    Attributes:
      rtol: relative tolerance.
      atol: absolute tolerance.
      t_first: the time at which data is placed if the grid ends at clean data and the schedule has no noise there.
      max_steps: the largest number of steps; the noise is NaN if more are needed.
    """

    rtol: Annotated[float, POSITIVE] = 1e-5
    atol: Annotated[float, POSITIVE] = 1e-5
    t_first: Annotated[float, Bounds(low=0, high=1, above=True, below=True)] = 1e-3
    max_steps: int = 4096

    @property
    def sampler(self) -> str:
        return "rk45"

    def nfe(self, num_steps: int) -> int:
        return 7

    def __call__(self, denoiser: Denoiser, grid: TimeGrid, x0: Float[Array, "batch ..."]) -> Inverse:
        schedule, first = grid.schedule, float(grid.times[0])
        last = max(float(grid.times[-1]), 0.0)
        if grid.ends_clean:
            last = 0.0 if schedule.sigma(0.0) > 0 else self.t_first
        (low, r_low), (high, r_high) = (
            (math.atan2(float(s), float(a)), math.hypot(float(s), float(a)))
            for a, s in ((schedule.alpha(last), schedule.sigma(last)), (grid.alphas[0], grid.sigmas[0]))
        )
        x0 = as_compute(x0)

        def slopes(z: Array, u: Array) -> Array:
            return angle_velocity(denoiser, schedule, z, u, noisy=(high, first), clean=(low, last))

        ends = (jnp.asarray(low, x0.dtype), jnp.asarray(high, x0.dtype))
        z, nfe = integrate(slopes, x0 / r_low, *ends, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps)
        return Inverse(noise=r_high * z / schedule.prior_std, nfe=nfe)


def edit(
    sampler: Sampler,
    inversion: Inversion,
    from_denoiser: Denoiser,
    to_denoiser: Denoiser,
    grid: TimeGrid,
    x0: Float[Array, "batch ..."],
    key: BatchKey | None = None,
    *,
    strength: float = 1.0,
    **options: Any,
) -> SampleResult:
    """Invert x0 to noise with `from_denoiser` and sample with `to_denoiser`; equal denoisers give x0 again.

    Args:
      sampler: the sampler; that of the inversion leads back most exactly.
      inversion: finds the noise.
      from_denoiser: denoiser for the given data, for example for its class.
      to_denoiser: denoiser for the wanted result.
      grid: the noise levels.
      x0: data, [batch, ...].
      key: key for a sampler that draws noise.
      strength: the time up to which x0 is inverted; a lower one keeps more of x0.
      **options: options of `sample`.

    Raises:
      UserError: strength is not in (0, 1], or leaves no transition.
    """
    part = up_to(grid, strength)
    return sample(sampler, to_denoiser, part, inversion(from_denoiser, part, x0).noise, key, **options)


def sdedit(
    sampler: Sampler,
    denoiser: Denoiser,
    grid: TimeGrid,
    x0: Float[Array, "batch ..."],
    key: BatchKey,
    *,
    strength: float,
    **options: Any,
) -> SampleResult:
    """Sample from x0 noised to the first time of the grid that is not above `strength`; 1 is ordinary sampling.

    Raises:
      UserError: strength is not in (0, 1], or leaves no transition.
    """
    part, x0 = up_to(grid, strength), as_compute(x0)
    noise = key.fold_in("sdedit").normal(x0.shape[1:], x0.dtype)
    begin = (part.alphas[0] * x0 + part.sigmas[0] * noise) / grid.schedule.prior_std
    return sample(sampler, denoiser, part, begin, key, **options)


def up_to(grid: TimeGrid, strength: float) -> TimeGrid:
    """The points of a grid at times not above `strength`.

    Raises:
      UserError: strength is not in (0, 1], or leaves no transition.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength must be above 0 and at most 1, it is {strength}")
    start = int(np.argmax(grid.times <= strength))
    if start >= grid.num_steps:
        raise UserError(f"strength {strength} is below every step of this grid of {grid.num_steps}: take more steps")
    names = ("times", "alphas", "sigmas", "log_snrs")
    return dataclasses.replace(grid, **{name: getattr(grid, name)[start:] for name in names})
