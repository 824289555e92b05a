"""Consistency models: one network that maps every point of a path of the probability-flow ODE to the path's end.

Song et al. 2023 (arXiv 2303.01469), algorithms 2 and 3. With a consistency function f (as x0 of a denoiser; the kind
`consistency` makes f the identity at the least noise level), neighbouring times r < t and one noise,

    (1)   loss = E[ w d( f(x_t, t), f_target(x_r, r) ) ],        x_t = alpha(t) x0 + sigma(t) noise,

x_r is made of the same noise (training in isolation) or is a step of a teacher's ODE from x_t (distillation). The two
evaluations share their dropout masks; the target has no gradient.

    name                      times                              target          distance      w
    consistency_training      N(k) levels, uniform               EMA, mu(k)      squared       1
    ict                       N(k) levels, log-normal            same params     pseudo-Huber  1 / (s_t - s_r)
    ect                       t log-normal, r = t ratio(k, t)    same params     pseudo-Huber  1 / (s_t - s_r)
    consistency_distillation  18 levels, uniform                 EMA, 0.95       squared       1, Heun step of a teacher

with s = sigma / alpha. Levels are equally spaced in t; on the edm schedule these are the paper's. Pseudo-Huber is
sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(dimensions) (Song & Dhariwal 2023, arXiv 2310.14189); the squared
distance is a mean. Song et al. 2023 use LPIPS instead of the squared distance: distance="lpips" is a network whose
weights are the objective's state. Images of less than 256 pixels are then enlarged to 224, as in the authors' code.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import init_lpips, lpips
from diffusion_jax.objectives.curriculum import Discretisation, EasyCurriculum
from diffusion_jax.objectives.denoising import Spec, data_of, mean_square
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import (
    PREDICTIONS,
    SCHEDULES,
    TIME_SAMPLERS,
    Denoiser,
    NoiseSchedule,
    PredictionKind,
    TimeSampler,
    built,
    corrupt,
)
from diffusion_jax.schedulers.arrays import like_data

DISTANCES = ("squared", "pseudo_huber", "lpips")
_LPIPS_SIZE = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Objective):
    """The loss (1) with its distance and weight; each subclass states the pairs of times.

    Attributes:
      distance: distance d of (1) between the two evaluations.
      huber_scale: c / sqrt(dimensions) of pseudo-Huber.
      by_interval: w is 1 / (s_t - s_r) instead of 1.
      vgg, lpips: the files of LPIPS's weights (`diffusion_jax.weights.read_lpips`). The trainer reads them and replaces
        the random values of `init_state`.
    """

    makes: ClassVar[Literal["consistency"]] = "consistency"

    schedule: NoiseSchedule
    prediction: PredictionKind
    distance: Literal["squared", "pseudo_huber", "lpips"] = "pseudo_huber"
    vgg: str = ""
    lpips: str = ""
    huber_scale: float = 0.00054
    by_interval: bool = True

    def __post_init__(self):
        if self.distance not in DISTANCES:
            raise UserError(unknown_name("distance of a consistency loss", self.distance, DISTANCES))
        if self.schedule.alpha(1.0) == 0:
            raise UserError(
                f"a consistency loss measures noise as sigma / alpha, which is infinite at t = 1 of "
                f"{type(self.schedule).__name__}: use edm, or objective scm on trigflow"
            )

    @property
    def reads_lpips(self) -> bool:
        return self.distance == "lpips"

    def init_state(self) -> Any:
        """LPIPS's parameters, with random values; None with another distance."""
        return init_lpips(jax.random.key(0)) if self.reads_lpips else None

    def update_state(self, state: Any, observed: Mapping[str, Float[Array, " batch"]]) -> Any:
        return state  # it was trained before

    def times(self, key: BatchKey, step: Int[Array, ""] | int) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """(t, r) with r < t, for every example."""
        raise NotImplementedError

    def target(self, denoise_fn: Denoiser, context: Context) -> Denoiser:
        """f_target."""
        return denoise_fn

    def earlier(self, xt, x0, noise, t, r, context: Context) -> Float[Array, "batch ..."]:
        """x_r."""
        return corrupt(self.schedule, x0, noise, r)

    def level(self, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """sigma / alpha."""
        return self.schedule.sigma(t) / self.schedule.alpha(t)

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Eq. (1); metrics `mse`, the squared distance of the two outputs, and `x0_mse`, the squared distance to the
        data."""
        self.require(context)
        x0 = data_of(batch)
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
        t, r = self.times(key.fold_in("time"), context.step)
        xt = corrupt(self.schedule, x0, noise, t)
        end = denoise_fn(xt, t).x0
        xr = self.earlier(xt, x0, noise, t, r, context)
        target = self.target(denoise_fn, context)(xr, jnp.maximum(r, 0.0)).x0
        target = jnp.where(like_data(r < 0, x0), x0, target)  # r < 0 means clean data
        target = jax.lax.stop_gradient(target)
        mse = mean_square(end - target)
        distance = self._distance(end, target, mse, context)
        weight = 1.0
        if self.by_interval:
            weight = 1.0 / (self.level(t) - jnp.where(r < 0, 0.0, self.level(jnp.maximum(r, 0.0))))
        loss = jnp.mean(weight * distance)
        return loss, {"loss": loss, "mse": jnp.mean(mse), "x0_mse": jnp.mean(mean_square(end - x0))}

    def _distance(self, end, target, mse, context: Context) -> Float[Array, " batch"]:
        if self.distance == "squared":
            return mse
        if self.distance == "pseudo_huber":
            dimensions = math.prod(end.shape[1:])
            c = self.huber_scale * math.sqrt(dimensions)
            return jnp.sqrt(mse * dimensions + c**2) - c
        if context.state is None:
            raise UserError("the distance lpips has a network: give its parameters in Context.state")
        frozen = jax.lax.stop_gradient(context.state)
        return lpips(frozen, end, target, size=_LPIPS_SIZE if max(end.shape[1:3]) < 256 else 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteConsistency(Consistency):
    """Neighbours among N(k) levels; `log_normal` (mean, std) of ln(sigma / alpha), or None for equal probabilities."""

    discretisation: Discretisation
    log_normal: tuple[float, float] | None = (-1.1, 2.0)

    def times(self, key: BatchKey, step: Int[Array, ""] | int) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        count = self.discretisation(step)
        u = key.uniform()
        if self.log_normal is None:
            index = jnp.floor(u * (count - 1))
        else:
            index = jnp.searchsorted(self.cumulative(count), u, side="right")
        index = jnp.clip(index, 0, count - 2)
        return (index + 1) / (count - 1), index / (count - 1)

    def cumulative(self, count: Int[Array, ""]) -> Float[Array, " most"]:
        """The distribution function over the intervals, 1 beyond the last."""
        mean, std = self.log_normal
        points = jnp.arange(1, self.discretisation.most)
        z = (jnp.log(self.level(jnp.minimum(points / (count - 1), 1.0))) - mean) / (math.sqrt(2.0) * std)
        first = self.schedule.sigma(0.0) / self.schedule.alpha(0.0)
        lowest = math.erf((math.log(first) - mean) / (math.sqrt(2.0) * std)) if first > 0 else -1.0
        mass = jax.lax.erf(z) - lowest
        return jnp.where(points < count - 1, mass / mass[count - 2], 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithTargetNetwork(DiscreteConsistency):
    """f_target with averaged parameters, whose decay is `decay`, or mu(k) if `initial_decay` is given."""

    needs: ClassVar[frozenset[str]] = frozenset({"target"})

    decay: float = 0.95
    initial_decay: float | None = None

    def target_decay_at(self, step: Int[Array, ""]) -> Float[Array, ""] | float:
        if self.initial_decay is None:
            return self.decay
        return self.discretisation.target_decay(step, self.initial_decay)

    def target(self, denoise_fn: Denoiser, context: Context) -> Denoiser:
        return context.target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(WithTargetNetwork):
    """x_r by one step of Heun's method in sigma / alpha with a teacher."""

    needs: ClassVar[frozenset[str]] = frozenset({"target", "teacher"})

    def earlier(self, xt, x0, noise, t, r, context: Context) -> Float[Array, "batch ..."]:
        alpha_t, alpha_r = (like_data(self.schedule.alpha(time), xt) for time in (t, r))
        length = like_data(self.level(r) - self.level(t), xt)
        z = xt / alpha_t
        first = context.teacher(xt, t).noise
        second = context.teacher(alpha_r * (z + length * first), r).noise
        return alpha_r * (z + 0.5 * length * (first + second))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasyConsistency(Consistency):
    """ECT: t from `time_sampler`, r by the curriculum in sigma / alpha; below the least level r is clean data."""

    time_sampler: TimeSampler
    curriculum: EasyCurriculum

    def times(self, key: BatchKey, step: Int[Array, ""] | int) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        t = jnp.clip(self.time_sampler(key, self.schedule), 1e-4, 1.0)
        level = self.level(t)
        earlier = level * self.curriculum.ratio(step, level)
        least = float(self.schedule.sigma(0.0) / self.schedule.alpha(0.0))
        r = self.schedule.time_of_log_snr(-2.0 * jnp.log(jnp.maximum(earlier, 1e-12)))
        return t, jnp.where(earlier > least, jnp.minimum(r, t), -1.0)


@OBJECTIVES.register("consistency_training", example={"total_steps": 100})
def consistency_training(
    schedule: Spec | NoiseSchedule = "edm",
    prediction: Spec | PredictionKind = "consistency",
    first: int = 2,
    last: int = 150,
    total_steps: int = 800_000,
    initial_decay: float = 0.9,
    distance: str = "squared",
    vgg: str = "",
    lpips: str = "",
) -> WithTargetNetwork:
    """CT, in the paper with distance="lpips"."""
    return WithTargetNetwork(
        schedule=built(SCHEDULES, schedule),
        prediction=built(PREDICTIONS, prediction),
        distance=distance,
        vgg=vgg,
        lpips=lpips,
        by_interval=False,
        discretisation=Discretisation(rule="sqrt", first=first, last=last, total_steps=total_steps),
        log_normal=None,
        initial_decay=initial_decay,
    )


@OBJECTIVES.register("ict", example={"total_steps": 100})
def ict(
    schedule: Spec | NoiseSchedule = "edm",
    prediction: Spec | PredictionKind = "consistency",
    first: int = 10,
    last: int = 1280,
    total_steps: int = 400_000,
) -> DiscreteConsistency:
    """iCT: no target network, log-normal levels, pseudo-Huber."""
    return DiscreteConsistency(
        schedule=built(SCHEDULES, schedule),
        prediction=built(PREDICTIONS, prediction),
        discretisation=Discretisation(rule="exponential", first=first, last=last, total_steps=total_steps),
    )


@OBJECTIVES.register("consistency_distillation")
def consistency_distillation(
    schedule: Spec | NoiseSchedule = "edm",
    prediction: Spec | PredictionKind = "consistency",
    levels: int = 18,
    decay: float = 0.95,
    distance: str = "squared",
    vgg: str = "",
    lpips: str = "",
) -> Distillation:
    """CD, in the paper with distance="lpips"."""
    return Distillation(
        schedule=built(SCHEDULES, schedule),
        prediction=built(PREDICTIONS, prediction),
        distance=distance,
        vgg=vgg,
        lpips=lpips,
        by_interval=False,
        discretisation=Discretisation(rule="constant", first=levels, last=levels),
        log_normal=None,
        decay=decay,
    )


@OBJECTIVES.register("ect")
def ect(
    schedule: Spec | NoiseSchedule = "edm",
    prediction: Spec | PredictionKind = "consistency",
    time_sampler: Spec | TimeSampler | None = None,
    q: float = 2.0,
    doubling: int = 25_000,
    huber_scale: float = 0.0,
) -> EasyConsistency:
    """ECT; it starts from a trained diffusion model (`teacher.workdir` with `teacher.initialize`)."""
    return EasyConsistency(
        schedule=built(SCHEDULES, schedule),
        prediction=built(PREDICTIONS, prediction),
        huber_scale=huber_scale,
        time_sampler=built(TIME_SAMPLERS, time_sampler or {"name": "log_normal", "mean": -1.1, "std": 2.0}),
        curriculum=EasyCurriculum(q=q, doubling=doubling),
    )
