"""Variational bounds: for a chain of T Gaussian steps, term by term, and for a VDM.

Chain (Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021), in bits per dimension,

    (1)   -log2 p(x0) <= KL(q(x_T | x0) || N(0, I)) + sum_{n >= 1} KL(q(x_{n-1} | x_n, x0) || p(x_{n-1} | x_n))
                          - log2 p(x0 | x_1),

where p is Gaussian around the mean that the predicted x0 implies. Its variance is the small one, the large one, or the
learned one between them (`gaussian_chain.py`, eq. (2)). x0 has `bins` equally spaced values in [-1, 1].

VDM (Kingma et al. 2021, arXiv 2107.00630, eq. 11 to 18): see `elbo_terms`, and `continuous_bound` for any denoiser.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Denoiser, NoiseSchedule, Prediction, ReverseSteps, corrupt
from diffusion_jax.schedulers.arrays import as_compute, like_data
from diffusion_jax.schedulers.gaussian_chain import discretised_log_likelihood, normal_kl


def _per_dimension(nats: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """Bits per dimension of every example."""
    return jnp.mean(nats, axis=tuple(range(1, nats.ndim))) / math.log(2.0)


def transition_bits(
    steps: ReverseSteps,
    place: Int[Array, " batch"],
    estimate: Prediction,
    x0: Float[Array, "batch ..."],
    xt: Float[Array, "batch ..."],
    *,
    bins: int = 256,
) -> Float[Array, " batch"]:
    """One term of (1) for every example, in bits per dimension.

    Args:
      steps: the chain's reverse steps, in the order of the grid: the last one leads to clean data.
      place: which transition, 0 ... T - 1.
      estimate: the prediction at xt, with a `variance_fraction`.
      x0: the data.
      xt: the state at the start of the transition.
      bins: levels of the data.
    """

    def at(table) -> Float[Array, "batch ..."]:
        return like_data(jnp.asarray(table, x0.dtype)[place], x0)

    kept, gain = at(steps.mean_xt), at(steps.mean_x0)
    log_small, log_large = at(steps.log_small), at(steps.log_large)
    fraction = estimate.variance_fraction
    log_variance = fraction * log_large + (1.0 - fraction) * log_small
    mean = kept * xt + gain * estimate.x0
    kl = normal_kl(kept * xt + gain * x0, log_small, mean, log_variance)
    decoder = -discretised_log_likelihood(x0, mean, 0.5 * log_variance, bins=bins)
    return _per_dimension(jnp.where(like_data(place == len(steps.small) - 1, x0), decoder, kl))


def elbo_terms(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x0: Float[Array, "batch ..."],
    t: Float[Array, " batch"],
    noise: Float[Array, "batch ..."],
    first_noise: Float[Array, "batch ..."],
    *,
    num_steps: int = 0,
    bins: int = 256,
) -> tuple[dict[str, Float[Array, " batch"]], Prediction]:
    """The negative ELBO of a VDM at given times and noise, in bits per dimension: diffusion, prior, reconstruction.

    With gamma = -log_snr, increasing in t,

        diffusion        1/2 gamma'(t) |noise - noise_hat|^2,  or T/2 (e^{gamma(t) - gamma(t - 1/T)} - 1) |...|^2
        prior            KL(q(z_1 | x) || N(0, I))
        reconstruction   -log p(x | z_0),  p(x | z_0) ~ N(z_0; alpha_0 x, sigma_0^2) over the `bins` values of x;

    their mean over t uniform (on the steps i / T) is the bound. Also returns the prediction at t.
    """
    estimate = denoiser(corrupt(schedule, x0, noise, t), t)
    if num_steps:
        rise = schedule.log_snr(t - 1.0 / num_steps) - schedule.log_snr(t)
        weight = 0.5 * num_steps * jnp.expm1(rise)
    else:
        weight = -0.5 * schedule.log_snr_derivative(t)
    zero, one = jnp.zeros((), x0.dtype), jnp.ones((), x0.dtype)
    prior = normal_kl(schedule.alpha(one) * x0, 2.0 * jnp.log(schedule.sigma(one)), 0.0, 0.0)

    level = schedule.sigma(zero) / schedule.alpha(zero)
    reconstruction = _reconstruction(x0, first_noise, level, bins)
    return {
        "diffusion": weight * _per_dimension((noise - estimate.noise) ** 2),
        "prior": _per_dimension(prior),
        "reconstruction": _per_dimension(reconstruction),
    }, estimate


def _reconstruction(x0: Array, noise: Array, level: Array | float, bins: int) -> Array:
    """-log p(x | x + level noise) if all `bins` values are equally likely a priori, in nats per number."""
    noisy = x0 + level * noise

    def add(total: Array, value: Array) -> tuple[Array, None]:
        """log sum exp over the values, one at a time, relative to the true one."""
        exponent = -0.5 * (((noisy - value) / level) ** 2 - ((noisy - x0) / level) ** 2)
        return jnp.logaddexp(total, exponent), None

    values = jnp.linspace(-1.0, 1.0, bins, dtype=x0.dtype)
    return jax.lax.scan(jax.checkpoint(add), jnp.full_like(x0, -jnp.inf), values)[0]


def continuous_bound(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x0: Float[Array, "batch ..."],
    key: BatchKey,
    *,
    num_draws: int = 128,
    bins: int = 256,
) -> Float[Array, " batch"]:
    """An upper bound on -log2 P(x0) in bits per dimension, for any denoiser on any schedule with Gaussian noise.

    The VDM's bound in continuous time depends on the schedule only through the ends of its log-SNR (Kingma et al. 2021,
    eq. 18, with noise error = SNR x0 error):

        1/2 integral of SNR |x0 - x0_hat|^2 d log SNR  +  |x0|^2 SNR_1 / 2  -  log p(x0 | z_0),

    estimated by `num_draws` values of log-SNR, equally spaced from a random start. The integral ends where the noise is
    an eighth of the distance between two levels, or at the schedule's own end if that is earlier. `num_draws`
    evaluations.

    Raises:
      UserError: fewer than one draw, or fewer than two levels.
    """
    if num_draws < 1 or bins < 2:
        raise UserError(f"continuous_bound takes num_draws >= 1 and bins >= 2, got {num_draws} and {bins}")
    x0 = as_compute(x0)
    ratios = [float(schedule.sigma(t)) / max(float(schedule.alpha(t)), 1e-12) for t in (0.0, 1.0)]
    first, last = max(ratios[0], 0.25 / (bins - 1)), min(ratios[1], 1e3)
    low, high = -2.0 * math.log(last), -2.0 * math.log(first)
    start = key.fold_in("log_snr").uniform()

    def term(total: Array, place: Int[Array, ""]) -> tuple[Array, None]:
        log_snr = (low + (high - low) * (place + start) / num_draws).astype(x0.dtype)
        t = schedule.time_of_log_snr(log_snr)
        noise = key.fold_in("bound").at_step(place).normal(x0.shape[1:], x0.dtype)
        error = x0 - denoiser(corrupt(schedule, x0, noise, t), t).x0
        return total + 0.5 * (high - low) * jnp.exp(log_snr) * _per_dimension(error**2), None

    total, _ = jax.lax.scan(term, jnp.zeros(x0.shape[:1], x0.dtype), jnp.arange(num_draws))
    reconstruction = _reconstruction(x0, key.fold_in("first").normal(x0.shape[1:], x0.dtype), first, bins)
    return total / num_draws + _per_dimension(0.5 * (x0 / last) ** 2 + reconstruction)
