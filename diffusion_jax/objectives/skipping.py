"""Distillation of a guided teacher by skipping along its flow: latent and trajectory consistency.

The time is divided into N intervals, each of which skips T / N steps of a chain of T. For t = n / N, r = (n - 1) / N,
n drawn from 1 ... N, and the guided teacher's (x0, noise) at x_t, one step of DDIM goes

    (1)   x_r = alpha_r x0 + sigma_r noise,        x_t = alpha_t data + sigma_t noise',

and the student's output at x_t is compared with that of its average, without gradient, at x_r; at r = 0 that is x_r
itself.

LCM (Luo et al. 2023, arXiv:2310.04378, algorithm 1; "lcm") compares the flow's end points,

    (2)   f(x, t) = c_skip x + c_out x0(x, t),    c_skip = b^2 / (s^2 + b^2),   c_out = s / sqrt(s^2 + b^2),

with s = scaling max(T t - 1, 0), T = 1000, scaling = 10 and b = 1/2, so that f is the identity up to the first step of
the chain. TCD (Zheng et al. 2024, arXiv:2402.19159; "tcd") compares the points at a time u, drawn from [0, r],

    (3)   f(x, t, u) = alpha_u x0(x, t) + sigma_u noise(x, t),

which is the identity at u = t for any network, so it needs no second time. The distance is pseudo-Huber per coordinate,

    (4)   loss = E[ mean over dims sqrt(d^2 + c^2) - c ],    c = 0.001.

The teacher is guided (`training/teaching.py`): a student with the scale as input learns all scales at once.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.asking import Asking, AskingSkipped
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipping(Objective):
    """The pairs of times, (1) and (4); each subclass states what is compared.

    Attributes:
      solver_steps: N, the teacher's steps of DDIM from noise to data.
      huber: error at which the pseudo-Huber distance turns from a square into an absolute value.
      decay: decay of the average that is evaluated at x_r.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"target", "teacher"})

    schedule: NoiseSchedule
    prediction: PredictionKind
    solver_steps: int = 50
    huber: float = 0.001
    decay: float = 0.95

    def __post_init__(self):
        if self.solver_steps < 1 or self.huber <= 0:
            raise UserError(
                f"{type(self).__name__} needs solver_steps >= 1 and huber > 0, got {self.solver_steps} and {self.huber}"
            )

    @property
    def most_steps(self) -> int:
        return self.solver_steps

    def target_decay_at(self, step: Int[Array, ""]) -> Float[Array, ""] | float:
        return self.decay

    def times(self, key: BatchKey) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """(t, r) of every example."""
        n = jnp.minimum(jnp.floor(key.low_discrepancy() * self.solver_steps), self.solver_steps - 1)
        return (n + 1.0) / self.solver_steps, n / self.solver_steps

    def answers(self, denoise: Denoiser, x: Array, t: Array, key: BatchKey, r: Array) -> Float[Array, "batch ..."]:
        """f of (2) or (3) at x; further random draws, from `key`, are the same for both outputs."""
        raise NotImplementedError

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """Eq. (4); metrics `mse`, the mean of d^2, and `x0_mse`, from the student's x0 to the data."""
        self.require(context)
        x0 = data_of(batch)
        noise = key.fold_in("noise").normal(x0.shape[1:], x0.dtype)
        t, r = self.times(key.fold_in("time"))
        xt = corrupt(self.schedule, x0, noise, t)
        xr = jax.lax.stop_gradient(context.teacher(xt, t).at(self.schedule, r))
        found, own = [], denoise_fn

        def keeping(x: Array, t: Array, *s: Array) -> Prediction:
            found.append(own(x, t, *s))
            return found[-1]

        answer = self.answers(keeping, xt, t, key, r)
        target = jnp.where(like_data(r > 0, xr), self.answers(context.target, xr, r, key, r), xr)
        d = answer - jax.lax.stop_gradient(target)
        loss = jnp.mean(jnp.sqrt(d**2 + self.huber**2) - self.huber)
        x0_mse = jnp.mean(mean_square(found[0].x0 - x0))
        return loss, {"loss": loss, "mse": jnp.mean(mean_square(d)), "x0_mse": x0_mse}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConsistency(Skipping):
    """Eq. (2).

    Attributes:
      scaling: how fast f leaves the identity with t.
    """

    makes: ClassVar[Literal["consistency"]] = "consistency"

    scaling: float = 10.0

    @property
    def asking(self) -> Asking:
        return AskingSkipped(scaling=self.scaling)

    def answers(self, denoise: Denoiser, x: Array, t: Array, key: BatchKey, r: Array) -> Float[Array, "batch ..."]:
        return self.for_sampling(denoise)(x, t).x0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryConsistency(Skipping):
    """Eq. (3)."""

    makes: ClassVar[Literal["flow_map"]] = "flow_map"

    def answers(self, denoise: Denoiser, x: Array, t: Array, key: BatchKey, r: Array) -> Float[Array, "batch ..."]:
        u = r * key.fold_in("end").uniform()
        return denoise(x, t, u).at(self.schedule, u)


def _fields(schedule: Any, prediction: Any) -> dict[str, Any]:
    return {"schedule": built(SCHEDULES, schedule), "prediction": built(PREDICTIONS, prediction)}


@OBJECTIVES.register("lcm", example={"solver_steps": 4})
def lcm(
    schedule: Spec | NoiseSchedule = "ddpm_linear",
    prediction: Spec | PredictionKind = "epsilon",
    solver_steps: int = 50,
    huber: float = 0.001,
    decay: float = 0.95,
    scaling: float = 10.0,
) -> LatentConsistency:
    """Latent consistency distillation; sample with `lcm`."""
    return LatentConsistency(
        **_fields(schedule, prediction), solver_steps=solver_steps, huber=huber, decay=decay, scaling=scaling
    )


@OBJECTIVES.register("tcd", example={"solver_steps": 4})
def tcd(
    schedule: Spec | NoiseSchedule = "ddpm_linear",
    prediction: Spec | PredictionKind = "epsilon",
    solver_steps: int = 50,
    huber: float = 0.001,
    decay: float = 0.95,
) -> TrajectoryConsistency:
    """Trajectory consistency distillation; sample with `tcd`."""
    return TrajectoryConsistency(**_fields(schedule, prediction), solver_steps=solver_steps, huber=huber, decay=decay)
