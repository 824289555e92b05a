"""Use a denoiser that was trained on one schedule on another schedule.

Two schedules pass through the same noise levels at different times and in different units. At equal log-SNR

    (1)   x' = c xt,      c = alpha'(t') / alpha(t) = sigma'(t') / sigma(t),      log_snr'(t') = log_snr(t),

and x0 and noise are the same. So a denoiser for one schedule becomes a denoiser for every other by a change of time and
a scale (Karras et al. 2022, arXiv 2206.00364, app. C; Kingma et al. 2021, sec. 5.1). Sampling commutes with (1).
"""

from jaxtyping import Array, Float

from diffusion_jax.schedulers.arrays import array_module, as_compute, like_data
from diffusion_jax.schedulers.prediction import Denoiser, Prediction
from diffusion_jax.schedulers.schedule import NoiseSchedule


def on_schedule(denoiser: Denoiser, trained_on: NoiseSchedule, target: NoiseSchedule) -> Denoiser:
    """The denoiser for `target`, made from one for `trained_on` by eq. (1).

    For noise levels outside the range of `trained_on` its nearest end is used.
    """

    def time(t: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        found = trained_on.time_of_log_snr(target.log_snr(t))
        return array_module(found).clip(found, 0.0, 1.0)

    def denoise(xt: Float[Array, "batch ..."], t: Float[Array, "*batch"], *s: Float[Array, "*batch"]) -> Prediction:
        t, xt = as_compute(t), as_compute(xt)
        own = time(t)
        xp = array_module(own)
        scale = xp.hypot(trained_on.alpha(own), trained_on.sigma(own)) / xp.hypot(target.alpha(t), target.sigma(t))
        return denoiser(like_data(scale, xt) * xt, own, *(time(as_compute(end)) for end in s))

    return denoise
