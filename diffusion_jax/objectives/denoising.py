"""Denoising losses: corrupt, predict, compare; the one regression behind DDPM, v-prediction, EDM and flow matching.

    (1)   t ~ time_sampler,  noise ~ N(0, I),  xt = alpha(t) x0 + sigma(t) noise
    (2)   target = a(t) x0 + b(t) noise                              the loss's kind of prediction
    (3)   loss = E[ w(t) mean over dims (target - prediction)^2 ]    w: `weighting.py`

The loss may use another kind of prediction than the network's output: `denoise_fn` gives (x0, noise), from which every
kind follows.

    paper                          schedule         times               loss kind    weighting
    Ho et al. 2020, eq. 14         ddpm_linear      discrete_uniform    epsilon      uniform
    Salimans & Ho 2022             cosine           uniform             v            uniform (SNR + 1 on x0)
    Hang et al. 2023, Min-SNR      any              any                 any          min_snr
    Karras et al. 2022, eq. 8      edm              log_normal          edm          uniform (= edm, lambda c_out^2 = 1)
    Lipman et al. 2022             rectified_flow   uniform             velocity     uniform
    Esser et al. 2024, SD3         rectified_flow   logit_normal        velocity     uniform
    Ma et al. 2024, SiT            gvp              uniform             velocity     uniform
    Li & He 2025, JiT              rectified_flow   logit_normal        x0           clipped_velocity
    Karras et al. 2024, EDM2       edm              log_normal          edm          uniform, learned uncertainty

`flow_matching`, `stochastic_interpolant` and `jit` are the same objective with other names and defaults. `repa` adds
the cosine between the network's features and those of another network (Yu et al. 2024, arXiv:2410.06940, eq. 8):

    (4)   loss - weight E[ mean over tokens cos(h(xt), y(x0)) ].

If half of the examples show a subject's class and not the subject (batch["prior"] is 1), the loss is that of
DreamBooth with prior preservation (Ruiz et al. 2022, arXiv:2208.12242, eq. 2):

    (5)   loss = (mean over examples of the subject) + prior_loss_weight (mean over those of the class).

With a learned uncertainty u(t) (`uncertainty.py`) the loss is E[w mse e^{-u} + u]. `update_state` passes the losses to
a time sampler that adapts to them; the factors that keep the loss unbiased are in (3).
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.domains import NOT_NEGATIVE
from diffusion_jax.errors import UserError
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
from diffusion_jax.objectives.uncertainty import LearnedUncertainty
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
from diffusion_jax.specs import DATA, FEATURES, PRIOR

Spec = str | Mapping[str, Any]
PriorWeight = Annotated[float, NOT_NEGATIVE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """Weighted mean squared error in one kind of prediction: eq. (3)."""

    reads_prior: ClassVar[bool] = True

    schedule: NoiseSchedule
    time_sampler: TimeSampler
    prediction: PredictionKind
    weighting: Weighting
    uncertainty: LearnedUncertainty | None = None
    prior_loss_weight: PriorWeight = 1.0

    @property
    def squared_error(self) -> "Denoising":
        own = ("schedule", "time_sampler", "prediction", "weighting")
        return Denoising(**{name: getattr(self, name) for name in own})

    def init_params(self, key: Key[Array, ""]) -> Any:
        return self.uncertainty and self.uncertainty.init(key)

    def constrain(self, params: Any) -> Any:
        return params if self.uncertainty is None else self.uncertainty.constrain(params)

    def init_state(self) -> Any:
        return self.time_sampler.init_state()

    def update_state(self, state: Any, observed: Mapping[str, Float[Array, " batch"]]) -> Any:
        return self.time_sampler.update(state, observed["t"], observed["loss"])

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Eq. (3), or (5), over batch["data"], [batch, ...].

        Metrics: `loss`, the weighted mean; `mse`, the same without the weight; `x0_mse`, the squared error of x0; with
        a learned uncertainty its mean, `uncertainty`; with batch["prior"] the two terms of (5), `instance_loss` and
        `prior_loss`.
        """
        loss, (metrics, _) = self.loss_and_observed(denoise_fn, batch, key, context)
        return loss, metrics

    def loss_and_observed(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, Float[Array, " batch"]]]]:
        x0 = data_of(batch)
        t, factor = self.time_sampler.draw(key.fold_in("time"), self.schedule, context.state)
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
        terms, metrics = self.terms(denoise_fn, x0, noise, t, context)
        weighted = factor * terms
        if PRIOR in batch:
            parts = prior_preserving(weighted, batch[PRIOR], self.prior_loss_weight)
        else:
            parts = {"loss": jnp.mean(weighted)}
        observed = {} if context.state is None else {"t": t, "loss": jax.lax.stop_gradient(terms)}
        return parts["loss"], ({**parts, **metrics}, observed)

    def terms(
        self,
        denoise_fn: Denoiser,
        x0: Float[Array, "batch ..."],
        noise: Float[Array, "batch ..."],
        t: Float[Array, " batch"],
        context: Context = NO_CONTEXT,
    ) -> tuple[Float[Array, " batch"], Metrics]:
        """The loss of every example for given noise and times, and the metrics besides `loss`."""
        estimate = denoise_fn(corrupt(self.schedule, x0, noise, t), t)
        target = Prediction(x0=x0, noise=noise).value(self.prediction, self.schedule, t)
        mse = mean_square(estimate.value(self.prediction, self.schedule, t) - target)
        terms = self.weighting(self.prediction, self.schedule, t) * mse
        metrics = {"mse": jnp.mean(mse), "x0_mse": jnp.mean(mean_square(estimate.x0 - x0))}
        if self.uncertainty is not None:
            if context.params is None:
                raise UserError("a learned uncertainty has parameters: give the objective's in Context.params")
            u = self.uncertainty(context.params, self.schedule.log_snr(t))
            terms, metrics = terms * jnp.exp(-u) + u, {**metrics, "uncertainty": jnp.mean(u)}
        return terms, metrics


@OBJECTIVES.register("denoising")
def denoising(
    schedule: Spec | NoiseSchedule = "ddpm_linear",
    time_sampler: Spec | TimeSampler = "discrete_uniform",
    prediction: Spec | PredictionKind = "epsilon",
    weighting: Spec | Weighting = "uniform",
    uncertainty: bool = False,
    prior_loss_weight: PriorWeight = 1.0,
) -> Denoising:
    """Build from names, mappings {"name": ..., **arguments} or objects; the defaults are DDPM's."""
    return Denoising(
        schedule=built(SCHEDULES, schedule),
        time_sampler=built(TIME_SAMPLERS, time_sampler),
        prediction=built(PREDICTIONS, prediction),
        weighting=built(WEIGHTINGS, weighting),
        uncertainty=LearnedUncertainty() if uncertainty else None,
        prior_loss_weight=prior_loss_weight,
    )


@OBJECTIVES.register("flow_matching")
def flow_matching(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    time_sampler: Spec | TimeSampler = "uniform",
    prior_loss_weight: PriorWeight = 1.0,
) -> Denoising:
    """Conditional flow matching: the plain squared error of the velocity alpha' x0 + sigma' noise."""
    return denoising(
        schedule=schedule,
        time_sampler=time_sampler,
        prediction="velocity",
        weighting="uniform",
        prior_loss_weight=prior_loss_weight,
    )


@OBJECTIVES.register("stochastic_interpolant")
def stochastic_interpolant(
    schedule: Spec | NoiseSchedule = "gvp",
    time_sampler: Spec | TimeSampler = "uniform",
    prior_loss_weight: PriorWeight = 1.0,
) -> Denoising:
    """The velocity of a one-sided interpolant alpha(t) x0 + sigma(t) noise (Albergo et al. 2023, arXiv 2303.08797).

    With a Gaussian at one end the velocity determines the score, so the sampler `sit_sde` needs nothing else.
    """
    return flow_matching(schedule, time_sampler, prior_loss_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment(Denoising):
    """Eq. (4): denoising, with features of the noisy image that shall resemble another network's of the clean image."""

    needs: ClassVar[frozenset[str]] = frozenset({"aligned"})
    reads_prior: ClassVar[bool] = False

    weight: float = 0.5

    def loss_and_observed(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, Float[Array, " batch"]]]]:
        """As `Denoising`; y is batch["features"], [batch, tokens, channels]. Without it, in validation, only the
        denoising loss.

        Metric `alignment` is the mean cosine.
        """
        self.require(context)
        if FEATURES not in batch:
            return super().loss_and_observed(denoise_fn, batch, key, context)
        made = []

        def denoise_and_keep(xt: Array, t: Array) -> Prediction:
            prediction, sown = context.aligned(xt, t)
            made.append(sown[FEATURES])
            return prediction

        loss, (metrics, observed) = super().loss_and_observed(denoise_and_keep, batch, key, context)
        alignment = jnp.mean(cosine(as_compute(made[0]), as_compute(batch[FEATURES])))
        loss = loss - self.weight * alignment
        return loss, ({**metrics, "loss": loss, "alignment": alignment}, observed)


def cosine(a: Float[Array, "... d"], b: Float[Array, "... d"]) -> Float[Array, "..."]:
    """The cosine of the angle between vectors; 0 if one of them is zero."""
    norms = jnp.sum(a**2, axis=-1) * jnp.sum(b**2, axis=-1)
    return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(jnp.maximum(norms, 1e-24))


@OBJECTIVES.register("repa")
def repa(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    time_sampler: Spec | TimeSampler = "uniform",
    weight: float = 0.5,
) -> Alignment:
    """Flow matching with representation alignment, SiT's recipe in the paper."""
    base = flow_matching(schedule, time_sampler)
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    return Alignment(**fields, weight=weight)


@OBJECTIVES.register("jit")
def jit(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    time_sampler: Spec | TimeSampler | None = None,
    least: float = 0.05,
    prior_loss_weight: PriorWeight = 1.0,
) -> Denoising:
    """JiT: the network predicts x0, and the loss is on the velocity that follows from it, with 1 / t clipped at 1 /
    `least`.

    The paper's times are sigmoid(N(-0.8, 0.8^2)) with 1 for data, so here logit_normal has mean 0.8.
    """
    return denoising(
        schedule=schedule,
        time_sampler=time_sampler or {"name": "logit_normal", "mean": 0.8, "std": 0.8},
        prediction="x0",
        weighting={"name": "clipped_velocity", "least": least},
        prior_loss_weight=prior_loss_weight,
    )


def data_of(batch: Batch) -> Float[Array, "batch ..."]:
    """batch["data"] in the precision of losses.

    Raises:
      UserError: there is none.
    """
    if DATA not in batch:
        raise UserError(f"this objective needs batch['data'], got {sorted(batch)}")
    return as_compute(batch[DATA])


def prior_preserving(
    losses: Float[Array, " batch"], prior: Float[Array, " batch"], weight: float | Float[Array, ""]
) -> Metrics:
    """Eq. (5) and its two terms from the loss of every example; `prior` is 1 for examples of the class.

    Half of the global batch shows the class. So each term is twice a mean over all examples with zeros for the others,
    and averages correctly over microbatches and devices, whichever examples these have.
    """
    instance, own = 2.0 * jnp.mean((1.0 - prior) * losses), 2.0 * jnp.mean(prior * losses)
    return {"loss": instance + weight * own, "instance_loss": instance, "prior_loss": own}


def mean_square(error: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """The mean over all axes but the first."""
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
