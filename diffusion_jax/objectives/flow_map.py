"""Flow maps: networks of two times that jump along a straight-path flow. MeanFlow and shortcut models.

On rectified_flow the denoiser, called with (x, t, s), stands for the average velocity from t to s < t,

    (1)   u(x_t, t, s) = (x_t - x_s) / (t - s) = noise - x0       of the flow map (`schedulers.Denoiser`),

and u(x, t, t) is the velocity v. MeanFlow (Geng et al. 2025, arXiv 2505.13447, eq. 6 to 10) differentiates (1) in t:

    (2)   u = v - (t - s) du/dt,     du/dt by one forward-mode product with tangents (v, 1, 0) of (x, t, s),
    (3)   loss = E[ w |u - stop(v - (t - s) du/dt)|^2 ],     w = stop(1 / (|.|^2 + c)^p),  |.|^2 summed over dimensions,

with v = noise - x0 of the example, or a teacher's velocity, guided or not ("meanflow_distillation"), or with guidance
built into the training (their eq. 19): v = omega (noise - x0) + kappa u(x, t, t) + (1 - omega - kappa) u(x, t, t | no
condition). A share `instantaneous` of the batch has s = t.

Shortcut models (Frans et al. 2024, arXiv 2410.12557, algorithm 1) let two jumps teach one of twice the length d:

    (4)   u(x_t, t, t - 2d) = ( u(x_t, t, t - d) + u(x', t - d, t - 2d) ) / 2,    x' = x_t - d u(x_t, t, t - d),

with the right side from the averaged parameters, for a share `bootstrap` of the batch and 2d = 1, 1/2, ... down to 2 /
M, M = base_steps. The rest of the batch is flow matching at s = t, or matches a teacher's velocity there
("shortcut_distillation"). Times in (4) are multiples of 2d. At the least length, 1 / M, the network predicts the
velocity itself, at s = t (the paper: d = 0 instead of the least d), in (4) and while sampling
(`AskingInSteps`); the authors' code trains flow matching at d = 1 / M instead. So M steps are M steps of Euler,
and a perfect shortcut model jumps to where Euler's M steps end: its distance from the exact flow falls as 1 / M
(docs/sampler_orders.md).
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.asking import Asking, AskingInSteps
from diffusion_jax.objectives.denoising import Spec, data_of, mean_square
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
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
from diffusion_jax.schedulers.rectified_flow import RectifiedFlow


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMapObjective(Objective):
    """Base: the schedule must be the straight path."""

    num_times: ClassVar[int] = 2
    makes: ClassVar[Literal["flow_map"]] = "flow_map"

    schedule: NoiseSchedule
    prediction: PredictionKind

    def __post_init__(self):
        if not isinstance(self.schedule, RectifiedFlow):
            raise UserError(
                f"objective {type(self).__name__} averages the velocity of straight paths, got "
                f"{type(self.schedule).__name__}: set schedule.name=rectified_flow"
            )


def velocity(denoise_fn: Denoiser, xt: Array, t: Array, s: Array) -> Float[Array, "batch ..."]:
    """u of (1)."""
    return velocity_of(denoise_fn(xt, t, s))


def velocity_of(prediction: Prediction) -> Float[Array, "batch ..."]:
    """The velocity of the straight path that a prediction implies."""
    return prediction.noise - prediction.x0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow(FlowMapObjective):
    """Eq. (2), (3); the names of the options are the paper's, `instantaneous` is its share of r = t."""

    time_sampler: TimeSampler
    instantaneous: float = 0.75
    p: float = 1.0
    c: float = 1e-3
    omega: float = 1.0
    kappa: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.instantaneous <= 1 or self.p < 0 or self.c <= 0:
            raise UserError(f"meanflow needs 0 <= instantaneous <= 1, p >= 0 and c > 0, got {self}")

    def times(self, key: BatchKey) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """(t, s), s <= t."""
        a, b = (self.time_sampler(key.fold_in(name), self.schedule) for name in ("time", "second_time"))
        t, s = jnp.maximum(a, b), jnp.minimum(a, b)
        return t, jnp.where(key.fold_in("instantaneous").uniform() < self.instantaneous, t, s)

    def slope(self, denoise_fn: Denoiser, xt, x0, noise, t, context: Context) -> Float[Array, "batch ..."]:
        """v, with guidance built in if omega or kappa ask for it."""
        v = noise - x0
        if self.omega == 1.0 and self.kappa == 0.0:
            return v
        guided = self.omega * v
        if self.kappa:
            guided = guided + self.kappa * velocity(denoise_fn, xt, t, t)
        rest = 1.0 - self.omega - self.kappa
        if rest:
            if context.unconditional is None:
                raise UserError(
                    "meanflow with omega + kappa other than 1 needs a class-conditional network: set "
                    "train.class_conditional, or omega=1 and kappa=0"
                )
            guided = guided + rest * velocity(context.unconditional, xt, t, t)
        return jax.lax.stop_gradient(guided)

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Eq. (3); metrics `mse`, the mean of |.|^2 / D, and `x0_mse`, for the jump from t to clean data."""
        x0 = data_of(batch)
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
        t, s = self.times(key)
        xt = corrupt(self.schedule, x0, noise, t)
        v = self.slope(denoise_fn, xt, x0, noise, t, context)
        zeros, ones = jnp.zeros_like(t), jnp.ones_like(t)
        u, derivative = jax.jvp(lambda *at: velocity(denoise_fn, *at), (xt, t, s), (v, ones, zeros))
        target = jax.lax.stop_gradient(v - like_data(t - s, x0) * derivative)
        mse = mean_square(u - target)
        squared = mse * (x0.size // x0.shape[0])
        loss = jnp.mean(squared * jax.lax.stop_gradient((squared + self.c) ** -self.p))
        ends = xt - like_data(t, x0) * u
        return loss, {"loss": loss, "mse": jnp.mean(mse), "x0_mse": jnp.mean(mean_square(ends - x0))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlowDistillation(MeanFlow):
    """The velocity is a teacher's; `omega` and `kappa` are not used, since the teacher itself is guided."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def slope(self, denoise_fn: Denoiser, xt, x0, noise, t, context: Context) -> Float[Array, "batch ..."]:
        self.require(context)
        return jax.lax.stop_gradient(velocity_of(context.teacher(xt, t)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortcut(FlowMapObjective):
    """Eq. (4) and flow matching."""

    needs: ClassVar[frozenset[str]] = frozenset({"target"})

    time_sampler: TimeSampler
    base_steps: int = 128
    bootstrap: float = 0.25
    decay: float = 0.999

    def __post_init__(self):
        super().__post_init__()
        if self.base_steps < 2 or self.base_steps & (self.base_steps - 1) or not 0 <= self.bootstrap <= 1:
            raise UserError(
                f"shortcut needs base_steps a power of two, at least 2, and 0 <= bootstrap <= 1, got {self.base_steps} "
                f"and {self.bootstrap}"
            )

    def target_decay_at(self, step: Int[Array, ""]) -> Float[Array, ""] | float:
        return self.decay

    @property
    def most_steps(self) -> int:
        return self.base_steps

    def slope(self, xt, x0, noise, t, context: Context) -> Float[Array, "batch ..."]:
        """The velocity to match at s = t."""
        return noise - x0

    @property
    def asking(self) -> Asking:
        return AskingInSteps(steps=self.base_steps)

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Both parts together; metrics `mse`, `flow_matching` and `bootstrap`, the mean squares of the parts."""
        self.require(context)
        x0 = data_of(batch)
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
        jumps = key.fold_in("bootstrap").uniform() < self.bootstrap
        levels = self.base_steps.bit_length() - 1  # lengths 2^0 ... 2^-(levels - 1)
        level = jnp.minimum(jnp.floor(key.fold_in("length").uniform() * levels), levels - 1)
        length = 2.0**-level
        position = jnp.floor(key.fold_in("position").uniform() / length) + 1.0
        t = jnp.where(jumps, jnp.minimum(position * length, 1.0), self.time_sampler(key.fold_in("time"), self.schedule))
        end = jnp.where(jumps, t - length, t)
        xt = corrupt(self.schedule, x0, noise, t)

        middle, target_fn = 0.5 * (t + end), self.for_sampling(context.target)
        first = velocity(target_fn, xt, t, middle)
        half_way = xt - like_data(t - middle, x0) * first
        second = velocity(target_fn, half_way, middle, end)
        taught = jax.lax.stop_gradient(0.5 * (first + second))
        target = jnp.where(like_data(jumps, x0), taught, self.slope(xt, x0, noise, t, context))
        u = velocity(denoise_fn, xt, t, end)
        mse = mean_square(u - target)
        loss = jnp.mean(mse)
        parts = {"flow_matching": ~jumps, "bootstrap": jumps}
        metrics = {name: jnp.mean(mse * part) / jnp.maximum(jnp.mean(part), 1e-6) for name, part in parts.items()}
        ends = mean_square(xt - like_data(t, x0) * u - x0)
        return loss, {"loss": loss, "mse": loss, **metrics, "x0_mse": jnp.mean(ends)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortcutDistillation(Shortcut):
    """Matches a teacher's velocity at s = t."""

    needs: ClassVar[frozenset[str]] = frozenset({"target", "teacher"})

    def slope(self, xt, x0, noise, t, context: Context) -> Float[Array, "batch ..."]:
        return jax.lax.stop_gradient(velocity_of(context.teacher(xt, t)))


@OBJECTIVES.register("meanflow")
def meanflow(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    time_sampler: Spec | TimeSampler | None = None,
    prediction: Spec | PredictionKind = "velocity",
    instantaneous: float = 0.75,
    p: float = 1.0,
    c: float = 1e-3,
    omega: float = 1.0,
    kappa: float = 0.0,
) -> MeanFlow:
    """The paper's times are logit_normal with mean -0.4 and std 1."""
    return MeanFlow(
        schedule=built(SCHEDULES, schedule),
        prediction=built(PREDICTIONS, prediction),
        time_sampler=built(TIME_SAMPLERS, time_sampler or {"name": "logit_normal", "mean": -0.4, "std": 1.0}),
        instantaneous=instantaneous,
        p=p,
        c=c,
        omega=omega,
        kappa=kappa,
    )


@OBJECTIVES.register("shortcut", example={"base_steps": 8})
def shortcut(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    time_sampler: Spec | TimeSampler = "uniform",
    prediction: Spec | PredictionKind = "velocity",
    base_steps: int = 128,
    bootstrap: float = 0.25,
    decay: float = 0.999,
) -> Shortcut:
    """Shortcut models; sample with `flow_map` in 1, 2, 4, ... steps."""
    return Shortcut(
        schedule=built(SCHEDULES, schedule),
        prediction=built(PREDICTIONS, prediction),
        time_sampler=built(TIME_SAMPLERS, time_sampler),
        base_steps=base_steps,
        bootstrap=bootstrap,
        decay=decay,
    )


@OBJECTIVES.register("meanflow_distillation")
def meanflow_distillation(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    time_sampler: Spec | TimeSampler | None = None,
    prediction: Spec | PredictionKind = "velocity",
    instantaneous: float = 0.75,
    p: float = 1.0,
    c: float = 1e-3,
) -> MeanFlowDistillation:
    """MeanFlow of a teacher's flow, guided or not."""
    plain = meanflow(schedule, time_sampler, prediction, instantaneous, p, c)
    return MeanFlowDistillation(**_fields(plain))


@OBJECTIVES.register("shortcut_distillation", example={"base_steps": 8})
def shortcut_distillation(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    time_sampler: Spec | TimeSampler = "uniform",
    prediction: Spec | PredictionKind = "velocity",
    base_steps: int = 128,
    bootstrap: float = 0.25,
    decay: float = 0.999,
) -> ShortcutDistillation:
    """A shortcut model of a teacher's flow, guided or not; sample with `flow_map` in 1, 2, 4, ... steps."""
    plain = shortcut(schedule, time_sampler, prediction, base_steps, bootstrap, decay)
    return ShortcutDistillation(**_fields(plain))


def _fields(plain: FlowMapObjective) -> dict[str, Any]:
    return {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
