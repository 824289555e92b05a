"""Reflow: flow matching on the pairs of noise and data that a trained flow connects.

Liu et al. 2022 (arXiv 2209.03003), algorithm 1. A trained flow takes noise z to data x(z). The straight interpolation
is matched again on these pairs instead of independent ones,

    (1)   E | velocity(xt, t) - (z - x(z)) |^2,      xt = (1 - t) x(z) + t z,

and the new flow's paths are straighter, so that fewer steps suffice. The pairs are made during training, by `steps`
deterministic steps of the teacher; or they are in the batch, as batch["data"] and batch["noise"].
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.denoising import Denoising, Spec, data_of, flow_matching
from diffusion_jax.objectives.objective import NO_CONTEXT, OBJECTIVES, Batch, Context, Metrics
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import GRIDS, Denoiser, NoiseSchedule, TimeSampler
from diffusion_jax.schedulers.arrays import as_compute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reflow(Denoising):
    """Eq. (1); the teacher's steps are DDIM's, on the grid `uniform`."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})
    reads_prior: ClassVar[bool] = False

    steps: int = 16

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"objective reflow needs steps >= 1, got {self.steps}")

    def loss_and_observed(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, Float[Array, " batch"]]]]:
        x0 = data_of(batch)
        t = self.time_sampler(key.fold_in("time"), self.schedule)
        if "noise" in batch:
            noise = as_compute(batch["noise"])
        else:
            self.require(context)
            noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
            x0 = jax.lax.stop_gradient(self.carried(context.teacher, noise))
        terms, metrics = self.terms(denoise_fn, x0, noise, t, context)
        loss = jnp.mean(terms)
        return loss, ({"loss": loss, **metrics}, {})

    def carried(self, teacher: Denoiser, noise: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """x(z): the data that the teacher makes of the noise."""
        grid = GRIDS.build("uniform")(self.schedule, self.steps)
        times = as_compute(grid.times[:-1])
        ends = (as_compute(grid.alphas[1:]), as_compute(grid.sigmas[1:]))

        def step(x: Array, points: tuple[Array, Array, Array]) -> tuple[Array, None]:
            t, alpha, sigma = points
            prediction = teacher(x, t)
            return alpha * prediction.x0 + sigma * prediction.noise, None

        return jax.lax.scan(step, self.schedule.prior_std * noise, (times, *ends))[0]


@OBJECTIVES.register("reflow", example={"steps": 2})
def reflow(
    schedule: Spec | NoiseSchedule = "rectified_flow", time_sampler: Spec | TimeSampler = "uniform", steps: int = 16
) -> Reflow:
    """Rectify a trained flow once more."""
    plain = flow_matching(schedule, time_sampler)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    return Reflow(**fields, steps=steps)
