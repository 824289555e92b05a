"""Distribution matching distillation: two scores compare a generator's samples, a teacher's and the samples' own.

Yin et al. 2023 (arXiv:2311.18828) and 2024 (arXiv:2405.14867, DMD2, without its adversarial term). The student's x0 at
t_k = k / K is a sample, x = G(x_t, t). Noise at a time u tells the distribution of samples from that of the data: with
the x0 of the guided teacher and of a *fake score*, a denoiser of the samples, the gradient with respect to x is

    (1)   g = (x0_fake(x_u, u) - x0_teacher(x_u, u)) / mean over dims |x - x0_teacher(x_u, u)|,
          x_u = alpha_u x + sigma_u z,
    (2)   matching = E[ mean over dims (x - stop(x - g))^2 / 2 ].

The difference of the scores is weighted in x0, where it stays bounded as u goes to 1. The fake score is a copy of the
network. It is trained on samples, without gradient to them, by

    (3)   denoising = E[ mean over dims (target(x, z) - fake(x_u, u))^2 ],    the target in the process's kind,

in every step, while the network is trained only by (2), in one of `every` steps. The input of G at t_k < 1 is what
sampling would give it (DMD2's backward simulation): its own samples at t = 1 ... t_(k+1), noised to the next time,
without gradient.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.denoising import Spec, data_of, mean_square
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics, Objective
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import (
    PREDICTIONS,
    SCHEDULES,
    Denoiser,
    NoiseSchedule,
    Prediction,
    PredictionKind,
    built,
    corrupt,
)
from diffusion_jax.schedulers.arrays import like_data

FAKE = "fake"
_FIRST, _LAST = 0.02, 0.98  # bounds of the times u


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionMatching(Objective):
    """Eq. (1) to (3).

    Attributes:
      num_steps: K, the steps in which the student samples.
      every: steps of the fake score per step of the network.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"teacher", "with_network"})
    makes: ClassVar[Literal["consistency"]] = "consistency"
    copies: ClassVar[tuple[str, ...]] = (FAKE,)

    schedule: NoiseSchedule
    prediction: PredictionKind
    num_steps: int = 4
    every: int = 5

    def __post_init__(self):
        if self.num_steps < 1 or self.every < 1:
            raise UserError(f"dmd needs num_steps >= 1 and every >= 1, got {self.num_steps} and {self.every}")

    @property
    def most_steps(self) -> int:
        return self.num_steps

    @property
    def network_every(self) -> int:
        return self.every

    def inputs(
        self, denoise: Denoiser, like: Array, key: BatchKey
    ) -> tuple[Float[Array, "batch ..."], Float[Array, " batch"]]:
        """(x_t, t): the input of G in one of the sampling steps, drawn for every example."""
        count = self.num_steps
        k = jnp.minimum(jnp.floor(key.fold_in("step").uniform() * count), count - 1) + 1.0

        def noise(step: int | Array) -> Array:
            return key.fold_in("simulated").at_step(step).normal(like.shape[1:], like.dtype)

        def onwards(x: Array, j: Array) -> tuple[Array, Array]:
            x0 = denoise(x, jnp.full(x.shape[:1], j / count, k.dtype)).x0
            x = corrupt(self.schedule, x0, noise(j), jnp.full(x.shape[:1], (j - 1) / count, k.dtype))
            return x, x

        first = corrupt(self.schedule, jnp.zeros_like(like), noise(count + 1), jnp.ones_like(k))
        if count == 1:
            return first, k
        _, later = jax.lax.scan(onwards, first, jnp.arange(count, 1, -1))  # at K - 1 ... 1
        states = jnp.concatenate([first[None], later])
        rows = (count - k).astype(jnp.int32)
        return jax.lax.stop_gradient(states[rows, jnp.arange(len(like))]), k / count

    def difference(
        self, teacher: Denoiser, fake: Denoiser, x: Float[Array, "batch ..."], key: BatchKey
    ) -> Float[Array, "batch ..."]:
        """g of (1) at samples x."""
        u = _FIRST + (_LAST - _FIRST) * key.fold_in("time").uniform()
        xu = corrupt(self.schedule, x, key.fold_in("noise").normal(x.shape[1:], x.dtype), u)
        real, own = teacher(xu, u).x0, fake(xu, u).x0
        size = jnp.mean(jnp.abs(x - real), axis=tuple(range(1, x.ndim)))
        return jax.lax.stop_gradient((own - real) / like_data(jnp.maximum(size, 1e-6), x))

    def denoising(self, fake: Denoiser, x: Float[Array, "batch ..."], key: BatchKey) -> Float[Array, ""]:
        """(3) at samples x."""
        u = _FIRST + (_LAST - _FIRST) * key.fold_in("time").uniform()
        z = key.fold_in("noise").normal(x.shape[1:], x.dtype)
        target = Prediction(x0=x, noise=z).value(self.prediction, self.schedule, u)
        found = fake(corrupt(self.schedule, x, z, u), u).value(self.prediction, self.schedule, u)
        return jnp.mean(mean_square(found - target))

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """(2) and (3); metrics: both as `matching` and `mse`, and `x0_mse`, from samples to data, which does not
        decrease."""
        self.require(context)
        data = data_of(batch)
        own = (context.params or {}).get(FAKE)
        if own is None:
            raise UserError("dmd trains a fake score: give the copy of the network in Context.params")
        xt, t = self.inputs(denoise_fn, data, key)
        still = context.with_network(jax.lax.stop_gradient(own))

        def turn() -> tuple[Array, Array]:
            x = denoise_fn(xt, t).x0
            g = self.difference(context.teacher, still, jax.lax.stop_gradient(x), key.fold_in("matching"))
            return 0.5 * jnp.mean(mean_square(x - jax.lax.stop_gradient(x - g))), jax.lax.stop_gradient(x)

        def pause() -> tuple[Array, Array]:
            x = jax.lax.stop_gradient(denoise_fn(xt, t).x0)
            return jnp.zeros((), x.dtype), x

        is_turn = jnp.asarray(context.step) % self.every == 0
        matching, x = jax.lax.cond(is_turn, turn, pause)
        mse = self.denoising(context.with_network(own), x, key.fold_in("fake"))
        loss = matching + mse
        x0_mse = jnp.mean(mean_square(x - data))
        return loss, {"loss": loss, "matching": matching, "mse": mse, "x0_mse": x0_mse}


@OBJECTIVES.register("dmd", example={"num_steps": 2, "every": 1})
def dmd(
    schedule: Spec | NoiseSchedule = "rectified_flow",
    prediction: Spec | PredictionKind = "velocity",
    num_steps: int = 4,
    every: int = 5,
) -> DistributionMatching:
    """DMD2 without its adversarial term; sample with `lcm` in `num_steps` steps."""
    return DistributionMatching(
        schedule=built(SCHEDULES, schedule), prediction=built(PREDICTIONS, prediction), num_steps=num_steps, every=every
    )
