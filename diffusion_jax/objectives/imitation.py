"""Guidance distillation: a student with the scale as input predicts in one evaluation what its teacher does in two.

Meng et al. 2022 (arXiv:2210.03142), section 3, the first of its two stages. For the guided teacher of
`training/teaching.py`, with a scale that the student receives as input,

    (1)   loss = E[ w(t) mean over dims (teacher - student)^2 ],

in one kind of prediction, on noisy data as in any denoising loss. The student is a denoiser: it is sampled like its
teacher, and progressive distillation, the paper's second stage, may start from it.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.objectives.denoising import Denoising, Spec, denoising, mean_square
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Context, Metrics
from diffusion_jax.schedulers import Denoiser, NoiseSchedule, PredictionKind, TimeSampler, corrupt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imitation(Denoising):
    """Eq. (1)."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    @property
    def squared_error(self) -> None:
        return None

    def terms(
        self,
        denoise_fn: Denoiser,
        x0: Float[Array, "batch ..."],
        noise: Float[Array, "batch ..."],
        t: Float[Array, " batch"],
        context: Context = NO_CONTEXT,
    ) -> tuple[Float[Array, " batch"], Metrics]:
        """The loss of every example; metrics `mse`, to the teacher, and `x0_mse`, from the student's x0 to the data."""
        self.require(context)
        xt = corrupt(self.schedule, x0, noise, t)
        estimate, taught = denoise_fn(xt, t), context.teacher(xt, t)
        found, wanted = (one.value(self.prediction, self.schedule, t) for one in (estimate, taught))
        mse = mean_square(found - jax.lax.stop_gradient(wanted))
        metrics = {"mse": jnp.mean(mse), "x0_mse": jnp.mean(mean_square(estimate.x0 - x0))}
        return self.weighting(self.prediction, self.schedule, t) * mse, metrics


@OBJECTIVES.register("guidance_distillation")
def guidance_distillation(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    time_sampler: Spec | TimeSampler = "uniform",
    prediction: Spec | PredictionKind = "velocity",
) -> Imitation:
    """Imitate a guided teacher, with uniform weight in the kind of prediction."""
    plain = denoising(schedule=schedule, time_sampler=time_sampler, prediction=prediction, weighting="uniform")
    return Imitation(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
