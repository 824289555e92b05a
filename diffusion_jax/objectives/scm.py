"""Continuous-time consistency models: no discretisation, a derivative along the path instead.

Lu & Song 2024 (arXiv 2410.11081), eq. 6 to 8 and algorithm 1, on the schedule `trigflow`, whose angle is a = pi t / 2.
In units of the schedule's `sigma_data`, by which everything below is divided,

    (1)   x_a = cos(a) x0 + sin(a) z,      f(x_a, a) = cos(a) x_a - sin(a) F(x_a, a),
    (2)   g = -cos(a)^2 (F - dx/da) - r cos(a) sin(a) (x_a + dF/da)          cos(a) df/da, for r = 1
    (3)   g <- g / (|g| + c),      c = 0.1
    (4)   loss = E[ e^{w} / D |F - F_stop - g|^2 - w ],     D dimensions, w = -u learned (`uncertainty.py`).

dF/da is the derivative along the path: one forward-mode product with tangents (dx/da, 1), where dx/da = cos(a) z -
sin(a) x0 for training in isolation ("scm"; the paper's sCT), or the teacher's F for distillation ("scd"; sCD). r grows
from 0 to 1 over the first `warmup` steps. |g| is the norm of an example divided by sqrt(D).
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.denoising import Spec, data_of, mean_square
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
from diffusion_jax.objectives.uncertainty import LearnedUncertainty
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
from diffusion_jax.schedulers.arrays import like_data
from diffusion_jax.schedulers.continuous import TrigFlow
from diffusion_jax.schedulers.prediction import EDMOutput


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousConsistency(Objective):
    """Eq. (1) to (4)."""

    makes: ClassVar[Literal["consistency"]] = "consistency"

    schedule: NoiseSchedule
    time_sampler: TimeSampler
    prediction: PredictionKind
    tangent_offset: float = 0.1
    warmup: int = 10_000
    uncertainty: LearnedUncertainty = dataclasses.field(default_factory=lambda: LearnedUncertainty(normalized=False))

    def __post_init__(self):
        if not isinstance(self.schedule, TrigFlow):
            raise UserError(
                f"objective scm is written in the angle of trigflow, got {type(self.schedule).__name__}: set "
                "schedule.name=trigflow"
            )

    def init_params(self, key: Key[Array, ""]) -> Any:
        return self.uncertainty.init(key)

    def output(self, prediction: Prediction, t: Float[Array, " batch"]) -> Float[Array, "batch ..."]:
        """F, which is minus the output of EDM's network."""
        return -prediction.value(EDMOutput(sigma_data=self.schedule.sigma_data), self.schedule, t)

    def slope(self, xt, x0, noise, t, context: Context) -> Float[Array, "batch ..."]:
        """dx/da."""
        return self.output(Prediction(x0=x0, noise=noise), t)

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Eq. (4); metrics `mse`, |F - F_stop - g|^2 / D, `tangent`, |g| before (3), and `x0_mse`."""
        self.require(context)
        if context.params is None:
            raise UserError("the adaptive weight of scm has parameters: give the objective's in Context.params")
        x0, unit = data_of(batch), self.schedule.sigma_data
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
        t = self.time_sampler(key.fold_in("time"), self.schedule)
        xt = corrupt(self.schedule, x0, noise, t)
        slope = jax.lax.stop_gradient(self.slope(xt, x0, noise, t, context))

        def output(xt: Array, t: Array) -> Array:
            return self.output(denoise_fn(xt, t), t)

        stopped, derivative = jax.jvp(output, (xt, t), (unit * slope, jnp.full_like(t, 2.0 / math.pi)))
        cosine, sine = (like_data(curve, x0) for curve in (self.schedule.alpha(t), self.schedule.sigma(t) / unit))
        ramp = jnp.minimum(1.0, context.step / max(1, self.warmup))
        tangent = -(cosine**2) * (stopped - slope) - ramp * cosine * sine * (xt / unit + derivative)
        size = like_data(jnp.sqrt(mean_square(tangent)), x0)
        tangent = jax.lax.stop_gradient(tangent / (size + self.tangent_offset))
        stopped = jax.lax.stop_gradient(stopped)
        estimate = denoise_fn(xt, t)
        mse = mean_square(self.output(estimate, t) - stopped - tangent)
        u = self.uncertainty(context.params, self.schedule.log_snr(t))
        loss = jnp.mean(mse * jnp.exp(-u) + u)
        return loss, {
            "loss": loss,
            "mse": jnp.mean(mse),
            "tangent": jnp.mean(size),
            "x0_mse": jnp.mean(mean_square(estimate.x0 - x0)),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousDistillation(ContinuousConsistency):
    """The path's slope is a teacher's."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def slope(self, xt, x0, noise, t, context: Context) -> Float[Array, "batch ..."]:
        return self.output(context.teacher(xt, t), t)


def _build(kind: type[ContinuousConsistency], schedule, time_sampler, prediction, warmup) -> ContinuousConsistency:
    return kind(
        schedule=built(SCHEDULES, schedule),
        time_sampler=built(TIME_SAMPLERS, time_sampler or {"name": "log_normal", "mean": -1.0, "std": 1.4}),
        prediction=built(PREDICTIONS, prediction),
        warmup=warmup,
    )


@OBJECTIVES.register("scm")
def scm(
    schedule: Spec | NoiseSchedule = "trigflow",
    time_sampler: Spec | TimeSampler | None = None,
    prediction: Spec | PredictionKind = "v",
    warmup: int = 10_000,
) -> ContinuousConsistency:
    """sCT."""
    return _build(ContinuousConsistency, schedule, time_sampler, prediction, warmup)


@OBJECTIVES.register("scd")
def scd(
    schedule: Spec | NoiseSchedule = "trigflow",
    time_sampler: Spec | TimeSampler | None = None,
    prediction: Spec | PredictionKind = "v",
    warmup: int = 10_000,
) -> ContinuousDistillation:
    """sCD."""
    return _build(ContinuousDistillation, schedule, time_sampler, prediction, warmup)
