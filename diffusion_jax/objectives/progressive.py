"""Progressive distillation: a student learns to do in one DDIM step what its teacher does in two.

Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2. For a student of N steps, at t = i / N with t' = t - 1 / (2 N) and
t'' = t - 1 / N, the teacher goes z_t -> z_t' -> z_t'' by DDIM. One DDIM step from z_t ends at the same point if x0 is

    (1)   x = (z_t'' - (sigma_t'' / sigma_t) z_t) / (alpha_t'' - (sigma_t'' / sigma_t) alpha_t),
    (2)   loss = E[ max(SNR, 1) |x - x0_student(z_t, t)|^2 ].

If the step ends in clean data (i = 1), (1) is the teacher's own x0 at t'. A student becomes the next teacher, with
N halved: `teacher.workdir` names the run before.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.denoising import Spec, data_of, mean_square
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
from diffusion_jax.objectives.weighting import WEIGHTINGS, Weighting
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import PREDICTIONS, SCHEDULES, Denoiser, NoiseSchedule, PredictionKind, built, corrupt
from diffusion_jax.schedulers.arrays import like_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Objective):
    """Eq. (1), (2), for a student of `num_steps` steps on the grid `uniform`."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    schedule: NoiseSchedule
    prediction: PredictionKind
    weighting: Weighting
    num_steps: int = 8

    def __post_init__(self):
        if self.num_steps < 1:
            raise UserError(f"progressive distillation needs num_steps >= 1, got {self.num_steps}")

    @property
    def most_steps(self) -> int:
        return self.num_steps

    def target(
        self, teacher: Denoiser, zt: Float[Array, "batch ..."], t: Float[Array, " batch"]
    ) -> Float[Array, "batch ..."]:
        """x of (1)."""
        middle, end = t - 0.5 / self.num_steps, t - 1.0 / self.num_steps
        half_way = teacher(zt, t).at(self.schedule, middle)
        second = teacher(half_way, middle)
        clean = end < 0.25 / self.num_steps
        arrived = second.at(self.schedule, jnp.maximum(end, 0.0))
        alpha_t, sigma_t = (like_data(curve(t), zt) for curve in (self.schedule.alpha, self.schedule.sigma))
        alpha, sigma = (
            like_data(curve(jnp.maximum(end, 0.0)), zt) for curve in (self.schedule.alpha, self.schedule.sigma)
        )
        x = (arrived - sigma / sigma_t * zt) / (alpha - sigma / sigma_t * alpha_t)
        return jnp.where(like_data(clean, zt), second.x0, x)

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Eq. (2); metrics `mse` to the target and `x0_mse` to the data."""
        self.require(context)
        x0 = data_of(batch)
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
        u = key.fold_in("time").low_discrepancy()
        t = (jnp.minimum(jnp.floor(u * self.num_steps), self.num_steps - 1) + 1.0) / self.num_steps
        zt = corrupt(self.schedule, x0, noise, t)
        target = jax.lax.stop_gradient(self.target(context.teacher, zt, t))
        estimate = denoise_fn(zt, t)
        mse = mean_square(estimate.x0 - target)
        loss = jnp.mean(self.weighting(PREDICTIONS.build("x0"), self.schedule, t) * mse)
        return loss, {"loss": loss, "mse": jnp.mean(mse), "x0_mse": jnp.mean(mean_square(estimate.x0 - x0))}


@OBJECTIVES.register("progressive_distillation", example={"num_steps": 2})
def progressive_distillation(
    schedule: Spec | NoiseSchedule = "cosine",
    prediction: Spec | PredictionKind = "v",
    weighting: Spec | Weighting | None = None,
    num_steps: int = 8,
) -> ProgressiveDistillation:
    """Halve the teacher's steps to `num_steps`; the default weight is max(SNR, 1)."""
    return ProgressiveDistillation(
        schedule=built(SCHEDULES, schedule),
        prediction=built(PREDICTIONS, prediction),
        weighting=built(WEIGHTINGS, weighting or {"name": "snr", "minimum": 1.0}),
        num_steps=num_steps,
    )
