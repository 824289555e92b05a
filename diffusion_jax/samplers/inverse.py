"""Inverse problems with an unconditional model: data of which something is known.

replacement      at every step the known part is put back, at the noise of the step (Song et al. 2021, app. I.2).
                 Cheap and biased: the unknown part is drawn without regard to what is to come. A `project` of `sample`.
repaint          DDPM steps, each repeated after noising back, so that the two parts get to agree (Lugmayr et al. 2022,
                 arXiv 2201.09865, algorithm 1). Less biased, the more repetitions the less.
posterior        a denoiser of the posterior given y = A(x0) + n: the score gets the gradient of log p(y | xt), with
                 x0 | xt taken to be Gaussian around the prediction (Chung et al. 2022, arXiv 2209.14687, DPS; with its
                 variance Song et al. 2023, PiGDM). Exact for Gaussian data and linear A with orthonormal rows.
sdedit           begin in the middle, from given data with noise added (Meng et al. 2021, arXiv 2108.01073).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.ddpm import DDPM
from diffusion_jax.samplers.guidance import classifier_guided
from diffusion_jax.samplers.sampler import Projection, Sampler, SampleResult, State, Transition, sample, transitions
from diffusion_jax.schedulers import Denoiser, NoiseSchedule, TimeGrid
from diffusion_jax.schedulers.arrays import as_compute, compute_dtype, like_data


def replacement(known: Float[Array, "batch ..."], mask: Float[Array, "#batch ..."]) -> Projection:
    """The projection that puts known data back where mask is 1; give it to `sample(..., project=...)` with a key."""

    def project(x: Float[Array, "batch ..."], transition: Transition, key: BatchKey | None) -> Array:
        if key is None:
            raise UserError("replacement draws noise for the known part: give sample a key")
        noise = key.fold_in("known").normal(x.shape[1:], x.dtype)
        return jnp.where(mask > 0, transition.alpha_s * known + transition.sigma_s * noise, x)

    return project


def repaint(
    denoiser: Denoiser,
    grid: TimeGrid,
    known: Float[Array, "batch ..."],
    mask: Float[Array, "#batch ..."],
    key: BatchKey,
    *,
    num_resamples: int = 10,
) -> SampleResult:
    """RePaint with jumps of one step: every transition is taken `num_resamples` times.

    Raises:
      UserError: num_resamples < 1.
    """
    if num_resamples < 1:
        raise UserError(f"repaint needs num_resamples >= 1, got {num_resamples}")
    sampler, known = DDPM(), as_compute(known)
    project, keys = replacement(known, mask), key.fold_in("repaint").counter_based()

    def denoise(xt: Array, t: Array):
        return jax.tree.map(as_compute, denoiser(xt, t))

    def step(x: Array, transition: Transition) -> tuple[Array, None]:
        def once(repeat: Array, x: Array) -> Array:
            own = keys.at_step(transition.index).at_step(repeat)
            down = sampler.step(denoise, State(x=x), transition, own.fold_in("step")).x
            down = project(down, transition, own)
            ratio = transition.alpha_t / transition.alpha_s
            std = jnp.sqrt(jnp.maximum(transition.sigma_t**2 - (ratio * transition.sigma_s) ** 2, 0.0))
            back = ratio * down + std * own.fold_in("back").normal(x.shape[1:], x.dtype)
            return jnp.where(repeat == num_resamples - 1, down, back)

        return jax.lax.fori_loop(0, num_resamples, once, x), None

    x_1 = grid.schedule.prior_std * key.fold_in("prior").normal(known.shape[1:], compute_dtype())
    x0, _ = jax.lax.scan(step, x_1, transitions(sampler, grid))
    return SampleResult(x0=x0, nfe=grid.num_steps * num_resamples)


def posterior(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    measure: Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]],
    measured: Float[Array, "batch ..."],
    noise_std: float,
    *,
    x0_variance: Callable[[Float[Array, "*batch"]], Float[Array, "*batch"]] | None = None,
    scale: float = 1.0,
) -> Denoiser:
    """A denoiser of x0 given measured = measure(x0) + noise_std noise; it composes with any sampler.

    log p(y | xt) = -|y - A(x0_hat(xt))|^2 / (2 (noise_std^2 + x0_variance(t))), by the gradient through the network.

    Args:
      denoiser: the unconditional model.
      schedule: its schedule.
      measure: A, for a batch.
      measured: y.
      noise_std: standard deviation of the measurement's noise.
      x0_variance: the variance of x0 given xt at time t; None is DPS, which leaves it out. PiGDM's for unit Gaussian
      data
        is sigma^2 / (sigma^2 + alpha^2).
      scale: of the gradient.

    Raises:
      UserError: neither noise nor variance, which would make the measurement infinitely sharp.
    """
    if noise_std <= 0 and x0_variance is None:
        raise UserError("a measurement without noise needs x0_variance, or noise_std > 0")

    def log_probability(xt: Array, t: Array) -> Float[Array, " batch"]:
        error = measured - measure(denoiser(xt, t).x0)
        variance = noise_std**2 + (0.0 if x0_variance is None else x0_variance(as_compute(t)))
        squares = jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
        return -0.5 * squares / variance

    return classifier_guided(denoiser, schedule, log_probability, scale)


def sdedit(
    sampler: Sampler,
    denoiser: Denoiser,
    grid: TimeGrid,
    image: Float[Array, "batch ..."],
    key: BatchKey,
    *,
    strength: float,
    **options,
) -> SampleResult:
    """Sample from `image` noised to the first time of the grid that is not above `strength`; 1 is ordinary sampling.

    Raises:
      UserError: strength is not in (0, 1], or leaves no transition.
    """
    if not 0 < strength <= 1:
        raise UserError(f"sdedit needs 0 < strength <= 1, got {strength}")
    start = int(np.argmax(grid.times <= strength))
    if start >= grid.num_steps:
        raise UserError(f"strength {strength} is below every step of this grid of {grid.num_steps}: take more steps")
    rest = dataclasses.replace(
        grid,
        times=grid.times[start:],
        alphas=grid.alphas[start:],
        sigmas=grid.sigmas[start:],
        log_snrs=grid.log_snrs[start:],
    )
    image = as_compute(image)
    noise = key.fold_in("sdedit").normal(image.shape[1:], image.dtype)
    alpha, sigma = (like_data(jnp.asarray(v, image.dtype), image) for v in (rest.alphas[0], rest.sigmas[0]))
    begin = (alpha * image + sigma * noise) / grid.schedule.prior_std
    return sample(sampler, denoiser, rest, begin, key, **options)
