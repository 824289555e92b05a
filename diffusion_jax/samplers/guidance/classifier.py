"""Classifier guidance (Dhariwal & Nichol 2021, arXiv:2105.05233): the gradient of log p(y | xt) is added to the score.

In the terms of the other rules, whose scale 1 is the model itself,

    (1)   score <- score + (scale - 1) grad log p(y | xt),

so the paper's scale s is scale - 1. In noise and x0 the change per unit is

    (2)   noise: -sigma grad log p,      x0: sigma^2 / alpha grad log p.

A classifier of clean data may judge the predicted x0 instead of xt (Bansal et al. 2023, arXiv:2302.07121, eq. 4), with
its gradient through the network.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.samplers.guidance.rule import GUIDANCE, Rule
from diffusion_jax.schedulers import Denoiser, NoiseSchedule, Prediction
from diffusion_jax.schedulers.arrays import as_compute, like_data


@GUIDANCE.register("classifier", example={"scale": 2.0})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(Rule):
    """Eq. (1); "classifier" is the change (2) of a prediction, as `towards` gives it."""

    others: ClassVar[tuple[str, ...]] = ("classifier",)

    def asks(self, asked: Sequence[str]) -> tuple[frozenset[str], ...]:
        return (frozenset(),)

    def lean(self, own: Any, change: Any, memory: Array | None = None) -> Any:
        x0, noise = (getattr(own, n) + (self.scale - 1.0) * getattr(change, n) for n in ("x0", "noise"))
        return dataclasses.replace(own, x0=x0, noise=noise)


def towards(
    schedule: NoiseSchedule,
    log_probability: Callable[[Float[Array, "batch ..."], Float[Array, "*batch"]], Float[Array, " batch"]],
) -> Callable[..., Prediction]:
    """(xt, t) -> eq. (2), from (xt, t) -> log p(y | xt), [batch]."""

    def change(xt: Float[Array, "batch ..."], t: Float[Array, "*batch"], *s: Float[Array, "*batch"]) -> Prediction:
        gradient = jax.grad(lambda x: jnp.sum(log_probability(x, t)))(as_compute(xt))
        alpha, sigma = (like_data(c(as_compute(t)), xt) for c in (schedule.alpha, schedule.sigma))
        return Prediction(x0=sigma**2 / alpha * gradient, noise=-sigma * gradient)

    return change


def of_clean(
    denoiser: Denoiser, log_probability: Callable[[Float[Array, "batch ..."]], Float[Array, " batch"]]
) -> Callable[[Float[Array, "batch ..."], Float[Array, "*batch"]], Float[Array, " batch"]]:
    """log p(y | xt) by a classifier of clean data that judges the predicted x0."""
    return lambda xt, t: log_probability(denoiser(xt, t).x0)
