"""Denoising losses: corrupt, predict, compare; the one regression behind DDPM, v-prediction, EDM and flow matching.

    (1)   t ~ time_sampler,  noise ~ N(0, I),  xt = alpha(t) x0 + sigma(t) noise
    (2)   target = a(t) x0 + b(t) noise                              the loss's kind of prediction
    (3)   loss = E[ w(t) mean over dims (target - prediction)^2 ]    w: `weighting.py`

The kind in which the loss is taken need not be the kind that the network returns: `denoise_fn` gives (x0, noise), and
every kind follows from those.

    paper                          schedule         times               loss kind    weighting
    Ho et al. 2020, eq. 14         ddpm_linear      discrete_uniform    epsilon      uniform
    Salimans & Ho 2022             cosine           uniform             v            uniform (SNR + 1 on x0)
    Hang et al. 2023, Min-SNR      any              any                 any          min_snr
    Karras et al. 2022, eq. 8      edm              log_normal          edm          uniform (= edm, lambda c_out^2 = 1)
    Lipman et al. 2022             rectified_flow   uniform             velocity     uniform
    Esser et al. 2024, SD3         rectified_flow   logit_normal        velocity     uniform

`flow_matching` is the same objective under the names and defaults of its field.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
from diffusion_jax.objectives.weighting import WEIGHTINGS, Weighting
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import (
    PREDICTIONS,
    SCHEDULES,
    TIME_SAMPLERS,
    Denoiser,
    NoiseSchedule,
    Prediction,
    PredictionKind,
    TimeSampler,
    built,
    corrupt,
)
from diffusion_jax.schedulers.arrays import as_compute

Spec = str | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """Weighted mean squared error in one kind of prediction: eq. (3)."""

    schedule: NoiseSchedule
    time_sampler: TimeSampler
    prediction: PredictionKind
    weighting: Weighting

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Eq. (3) over batch["image"], [batch, ...].

        Metrics: `loss`, the weighted mean; `mse`, the same without the weight; `x0_mse`, the squared error of x0.
        """
        if "image" not in batch:
            raise UserError(f"a denoising objective needs batch['image'], got {sorted(batch)}")
        x0 = as_compute(batch["image"])
        t = self.time_sampler(key.fold_in("time"), self.schedule)
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)

        estimate = denoise_fn(corrupt(self.schedule, x0, noise, t), t)
        target = Prediction(x0=x0, noise=noise).value(self.prediction, self.schedule, t)
        mse = _mean_square(estimate.value(self.prediction, self.schedule, t) - target)
        loss = jnp.mean(self.weighting(self.prediction, self.schedule, t) * mse)
        return loss, {"loss": loss, "mse": jnp.mean(mse), "x0_mse": jnp.mean(_mean_square(estimate.x0 - x0))}


@OBJECTIVES.register("denoising")
def denoising(
    schedule: Spec | NoiseSchedule = "ddpm_linear",
    time_sampler: Spec | TimeSampler = "discrete_uniform",
    prediction: Spec | PredictionKind = "epsilon",
    weighting: Spec | Weighting = "uniform",
) -> Denoising:
    """Build from names, mappings {"name": ..., **arguments} or objects; the defaults are DDPM's."""
    return Denoising(
        schedule=built(SCHEDULES, schedule),
        time_sampler=built(TIME_SAMPLERS, time_sampler),
        prediction=built(PREDICTIONS, prediction),
        weighting=built(WEIGHTINGS, weighting),
    )


@OBJECTIVES.register("flow_matching")
def flow_matching(
    schedule: Spec | NoiseSchedule = "rectified_flow", time_sampler: Spec | TimeSampler = "uniform"
) -> Denoising:
    """Conditional flow matching: the plain squared error of the velocity alpha' x0 + sigma' noise."""
    return denoising(schedule=schedule, time_sampler=time_sampler, prediction="velocity", weighting="uniform")


def _mean_square(error: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
