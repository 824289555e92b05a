"""The probability-flow ODE in the angle between data and noise, which is bounded on every schedule.

With u = atan(sigma / alpha) and z = xt / sqrt(alpha^2 + sigma^2), z = cos(u) x0 + sin(u) noise, and

    (1)   dz / du = cos(u) noise - sin(u) x0,

the v of Salimans & Ho 2022 (arXiv 2202.00512), from pure noise (u = pi / 2) to clean data (u = 0).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.schedulers.arrays import like_data
from diffusion_jax.schedulers.prediction import Denoiser
from diffusion_jax.schedulers.schedule import NoiseSchedule


def angle_velocity(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    z: Float[Array, "batch ..."],
    u: Float[Array, " batch"],
    *,
    noisy: tuple[Array | float, Array | float],
    clean: tuple[Array | float, Array | float],
) -> Float[Array, "batch ..."]:
    """Eq. (1), each example at its own angle; `noisy` and `clean` are (angle, time) at the two ends of the path."""
    at_noisy = u >= noisy[0]
    inner = jnp.where(at_noisy, 0.5 * (noisy[0] + clean[0]), jnp.maximum(u, clean[0]))  # a finite log-SNR
    t = schedule.time_of_log_snr(-2.0 * jnp.log(jnp.tan(inner)))
    t = jnp.clip(jnp.where(at_noisy, noisy[1], t), clean[1], noisy[1])
    radius = like_data(jnp.hypot(schedule.alpha(t), schedule.sigma(t)), z)
    prediction = denoiser(radius * z, t)
    return like_data(jnp.cos(u), z) * prediction.noise - like_data(jnp.sin(u), z) * prediction.x0
