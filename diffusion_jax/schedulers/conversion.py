"""A denoiser trained on one schedule, used on another.

Two schedules pass through the same noise levels, at other times and in other units: at equal log-SNR

    (1)   x' = c xt,      c = alpha'(t') / alpha(t) = sigma'(t') / sigma(t),      log_snr'(t') = log_snr(t),

and x0 and noise are the same. So a denoiser of one schedule is a denoiser of every other, after a change of time and a
scale (Karras et al. 2022, arXiv 2206.00364, app. C; Kingma et al. 2021, sec. 5.1). Sampling commutes with (1).
"""

from jaxtyping import Array, Float

from diffusion_jax.schedulers.arrays import array_module, as_compute, like_data
from diffusion_jax.schedulers.prediction import Denoiser, Prediction
from diffusion_jax.schedulers.schedule import NoiseSchedule


def on_schedule(denoiser: Denoiser, trained_on: NoiseSchedule, target: NoiseSchedule) -> Denoiser:
    """The denoiser of `target`, from one made for `trained_on`: eq. (1).

    Noise levels that `trained_on` does not have are taken at its nearest end.
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
