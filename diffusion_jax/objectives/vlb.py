"""The variational bound of a chain of T Gaussian steps with learned variances, alone and in the hybrid loss.

Nichol & Dhariwal 2021 (arXiv 2102.09672), sec. 2 and 3; Ho et al. 2020, eq. 5. In bits per dimension, with
p(x_{n-1} | x_n) Gaussian around the mean that the predicted x0 implies and with the variance of
`schedulers/gaussian_chain.py`, eq. (2),

    (1)   L_n = KL(q(x_{n-1} | x_n, x0) || p(x_{n-1} | x_n))   n >= 1,     L_0 = -log p(x0 | x_1), of the bin of x0,
    (2)   vlb = T E_n[L_n]        (without the prior's KL, which no network changes; see `likelihood/`)
    (3)   hybrid = E[mse] + lambda vlb,   lambda = 0.001, where the vlb has no gradient to the mean.

x0 is taken to have `bins` equally spaced values in [-1, 1].
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.likelihood import transition_bits
from diffusion_jax.objectives.denoising import Denoising, Spec, denoising
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Context, Metrics
from diffusion_jax.objectives.weighting import Weighting
from diffusion_jax.schedulers import (
    Denoiser,
    NoiseSchedule,
    Prediction,
    PredictionKind,
    ReverseSteps,
    TimeGrid,
    TimeSampler,
    corrupt,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationalBound(Denoising):
    """Eq. (2), or (3) with `hybrid`; `vlb_weight` is lambda."""

    num_steps: int = 1000
    hybrid: bool = True
    vlb_weight: float = 1e-3
    bins: int = 256

    def __post_init__(self):
        if self.num_steps < 2 or self.bins < 2:
            raise UserError(f"a variational bound needs num_steps >= 2 and bins >= 2, got {self}")
        if self.schedule.sigma(0.0) != 0 or self.schedule.alpha(1.0) == 0:
            raise UserError(
                f"a variational bound on steps needs sigma(0) = 0 and alpha(1) > 0, which "
                f"{type(self.schedule).__name__} lacks: use ddpm_linear, cosine or vp_sde"
            )

    @functools.cached_property
    def _steps(self) -> ReverseSteps:
        times = [n / self.num_steps for n in range(self.num_steps, -1, -1)]
        return ReverseSteps.of(TimeGrid.from_times(self.schedule, times))

    def terms(
        self,
        denoise_fn: Denoiser,
        x0: Float[Array, "batch ..."],
        noise: Float[Array, "batch ..."],
        t: Float[Array, " batch"],
        context: Context = NO_CONTEXT,
    ) -> tuple[Float[Array, " batch"], Metrics]:
        """The loss of every example, with `vlb` in bits per dimension among the metrics; t must be times of steps."""
        xt = corrupt(self.schedule, x0, noise, t)
        estimate = denoise_fn(xt, t)
        simple, metrics = super().terms(lambda xt, t: estimate, x0, noise, t, context)
        if self.hybrid:
            estimate = dataclasses.replace(estimate, x0=jax.lax.stop_gradient(estimate.x0))
        vlb = self.num_steps * self.bits(estimate, x0, xt, t)
        metrics = {**metrics, "vlb": jnp.mean(vlb)}
        return (simple + self.vlb_weight * vlb if self.hybrid else vlb), metrics

    def bits(
        self,
        estimate: Prediction,
        x0: Float[Array, "batch ..."],
        xt: Float[Array, "batch ..."],
        t: Float[Array, " batch"],
    ) -> Float[Array, " batch"]:
        """L_n of (1) at the steps of t, in bits per dimension."""
        if estimate.variance_fraction is None:
            raise UserError(
                "the variational bound needs a network with learned variances: a head of twice the channels "
                "(model.out_channels)"
            )
        place = jnp.clip(self.num_steps - jnp.round(t * self.num_steps).astype(jnp.int32), 0, self.num_steps - 1)
        return transition_bits(self._steps, place, estimate, x0, xt, bins=self.bins)


def _bound(hybrid, schedule, time_sampler, prediction, weighting, num_steps, vlb_weight, bins) -> VariationalBound:
    sampler = time_sampler or {"name": "discrete_uniform", "num_steps": num_steps}
    simple = denoising(schedule, sampler, prediction, weighting)
    fields = {field.name: getattr(simple, field.name) for field in dataclasses.fields(simple)}
    return VariationalBound(**fields, num_steps=num_steps, hybrid=hybrid, vlb_weight=vlb_weight, bins=bins)


@OBJECTIVES.register("hybrid", example={"num_steps": 20, "schedule": "vp_sde"})
def hybrid(
    schedule: Spec | NoiseSchedule = "cosine",
    time_sampler: Spec | TimeSampler | None = None,
    prediction: Spec | PredictionKind = "epsilon",
    weighting: Spec | Weighting = "uniform",
    num_steps: int = 1000,
    vlb_weight: float = 1e-3,
    bins: int = 256,
) -> VariationalBound:
    """iDDPM's L_hybrid: eq. (3); `weighting` applies to its first part."""
    return _bound(True, schedule, time_sampler, prediction, weighting, num_steps, vlb_weight, bins)


@OBJECTIVES.register("vlb", example={"num_steps": 20, "schedule": "vp_sde"})
def vlb(
    schedule: Spec | NoiseSchedule = "cosine",
    time_sampler: Spec | TimeSampler | None = None,
    prediction: Spec | PredictionKind = "epsilon",
    num_steps: int = 1000,
    bins: int = 256,
) -> VariationalBound:
    """iDDPM's L_vlb: eq. (2); its time sampler is loss_second_moment."""
    return _bound(False, schedule, time_sampler, prediction, "uniform", num_steps, 1.0, bins)
