"""Variational diffusion models: the negative ELBO in bits per dimension, with a fixed or a learned noise schedule.

Kingma et al. 2021 (arXiv 2107.00630), eq. 11 to 18. With gamma(t) = -log_snr(t), increasing,

    (1)   diffusion:       1/2 E_t[ gamma'(t) |noise - noise_hat(z_t, t)|^2 ]                        continuous time,
                           T/2 E_i[ (e^{gamma(t_i) - gamma(t_{i-1})} - 1) |noise - noise_hat|^2 ]     T steps,
    (2)   prior:           KL(q(z_1 | x) || N(0, I)),
    (3)   reconstruction:  -log p(x | z_0),  p(x | z_0) ~ N(z_0; alpha_0 x, sigma_0^2) over the `bins` values of x.

(1) in continuous time depends on gamma only through its ends; its course between them only changes the variance of the
estimate. The paper (app. I.2) learns that course by descending the squared loss. The authors' released code descends
the loss itself in all parameters, and so does this: the ends are learned, and the course between them only if T is
finite. The network keeps the time of its fixed schedule: it is evaluated at the time at which that schedule has the
learned log-SNR (`on_schedule`), so that one denoiser serves both.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.likelihood import elbo_terms
from diffusion_jax.objectives.denoising import Spec, data_of
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import (
    PREDICTIONS,
    SCHEDULES,
    TIME_SAMPLERS,
    Denoiser,
    MonotoneGamma,
    NoiseSchedule,
    PredictionKind,
    TimeSampler,
    built,
    on_schedule,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDM(Objective):
    """Eq. (1) to (3). `num_steps` 0 is continuous time; `gamma` None is the fixed `schedule`."""

    schedule: NoiseSchedule
    time_sampler: TimeSampler
    prediction: PredictionKind
    gamma: MonotoneGamma | None = None
    num_steps: int = 0
    bins: int = 256

    def __post_init__(self):
        for end in (0.0, 1.0):
            if not math.isfinite(self.schedule.log_snr(end)):
                raise UserError(
                    f"vdm needs a schedule with finite log-SNR at both ends, which {type(self.schedule).__name__} "
                    "lacks: use vdm_linear"
                )
        if self.num_steps < 0 or self.bins < 2:
            raise UserError(f"vdm needs num_steps >= 0 and bins >= 2, got {self.num_steps} and {self.bins}")

    def init_params(self, key: Key[Array, ""]) -> Any:
        return self.gamma and self.gamma.init(key)

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """The negative ELBO in bits per dimension; metrics `diffusion`, `prior`, `reconstruction` and `x0_mse`."""
        x0 = data_of(batch)
        schedule, denoiser = self.schedule, denoise_fn
        if self.gamma is not None:
            if context.params is None:
                raise UserError("a learned noise schedule has parameters: give the objective's in Context.params")
            schedule = self.gamma.bind(context.params)
            denoiser = on_schedule(denoise_fn, self.schedule, schedule)
        t = self.time_sampler(key.fold_in("time"), self.schedule)
        if self.num_steps:
            t = (jnp.floor(jnp.clip(t, 0.0, 1.0 - 1e-7) * self.num_steps) + 1.0) / self.num_steps
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
        first_noise = key.fold_in("reconstruction").normal(x0.shape[1:], x0.dtype)
        terms, estimate = elbo_terms(
            denoiser, schedule, x0, t, noise, first_noise, num_steps=self.num_steps, bins=self.bins
        )
        metrics = {name: jnp.mean(value) for name, value in terms.items()}
        loss = sum(metrics.values())
        x0_mse = jnp.mean((jax.lax.stop_gradient(estimate.x0) - x0) ** 2)
        return loss, {"loss": loss, **metrics, "x0_mse": x0_mse}


@OBJECTIVES.register("vdm", example={"bins": 16, "learned": True})
def vdm(
    schedule: Spec | NoiseSchedule = "vdm_linear",
    time_sampler: Spec | TimeSampler | None = None,
    prediction: Spec | PredictionKind = "epsilon",
    learned: bool = False,
    fixed_ends: bool = False,
    features: int = 1024,
    num_steps: int = 0,
    bins: int = 256,
) -> VDM:
    """VDM with the fixed schedule, or with a learned one that starts near a line between the same ends."""
    schedule = built(SCHEDULES, schedule)
    ends = {"gamma_min": -float(schedule.log_snr(0.0)), "gamma_max": -float(schedule.log_snr(1.0))}
    return VDM(
        schedule=schedule,
        time_sampler=built(
            TIME_SAMPLERS, time_sampler or {"name": "uniform", "t_min": 0.0, "uniforms": "low_discrepancy"}
        ),
        prediction=built(PREDICTIONS, prediction),
        gamma=MonotoneGamma(**ends, features=features, fixed_ends=fixed_ends) if learned else None,
        num_steps=num_steps,
        bins=bins,
    )
