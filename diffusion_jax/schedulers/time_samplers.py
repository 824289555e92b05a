"""The noise levels that training draws: distributions over t.

Each is given by its quantile function, t = Q(u) with u uniform in [0, 1). One option, `uniforms`, says for all of them
how the u of a global batch depend on each other. Each u is uniform by itself, and the loss varies less when the u cover
[0, 1) evenly:

    independent        no dependence
    antithetic         pairs u, 1 - u
    stratified         u_i = (i + v_i) / batch, one in every stratum, jittered
    low_discrepancy    u_i = (u_0 + i / batch) mod 1 (Kingma et al. 2021, arXiv 2107.00630, app. I.1)

One distribution adapts to the losses of its own draws: `loss_second_moment` (Nichol & Dhariwal 2021, sec. 3.3). Its
memory is an explicit state, and every time comes with a weight that keeps the expected loss unchanged.

u = 0 and u = 1, where a Gaussian quantile is infinite, are moved inwards by half the spacing of float32 uniforms.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry, unknown_name
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers.arrays import as_compute, compute_dtype
from diffusion_jax.schedulers.schedule import NoiseSchedule

_SMALLEST_U = 2.0**-24
_UNIFORMS = {
    "independent": BatchKey.uniform,
    "antithetic": BatchKey.antithetic,
    "stratified": BatchKey.stratified,
    "low_discrepancy": BatchKey.low_discrepancy,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeSampler:
    """A distribution over t; `uniforms` is explained in the table above."""

    uniforms: Literal["independent", "antithetic", "stratified", "low_discrepancy"] = "independent"

    def __post_init__(self):
        if self.uniforms not in _UNIFORMS:
            raise UserError(unknown_name("way to draw uniforms", self.uniforms, list(_UNIFORMS)))

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        """Q(u), non-decreasing in u."""
        raise NotImplementedError

    def __call__(self, key: BatchKey, schedule: NoiseSchedule) -> Float[Array, " batch"]:
        """One t per example of the batch."""
        return as_compute(self.quantile(self.draw_uniforms(key), schedule))

    def draw_uniforms(self, key: BatchKey) -> Float[Array, " batch"]:
        """u, one per example, away from 0 and 1."""
        return jnp.clip(_UNIFORMS[self.uniforms](key, compute_dtype()), _SMALLEST_U, 1.0 - _SMALLEST_U)

    def init_state(self) -> Any:
        """The memory of an adaptive distribution; None for all others."""
        return None

    def draw(
        self, key: BatchKey, schedule: NoiseSchedule, state: Any = None
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"] | float]:
        """Times, and the factors that make the mean of factor times loss unbiased."""
        return self(key, schedule), 1.0

    def update(self, state: Any, t: Float[Array, " batch"], loss: Float[Array, " batch"]) -> Any:
        """The memory after a step, from the times and the losses of the whole global batch."""
        return state


TIME_SAMPLERS: Registry[TimeSampler] = Registry("time sampler", TimeSampler)


@TIME_SAMPLERS.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(TimeSampler):
    """Uniform on [t_min, t_max]; t_min > 0 by default, where kinds that divide by sigma are still defined."""

    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.t_min < self.t_max <= 1:
            raise UserError(f"time sampler uniform needs 0 <= t_min < t_max <= 1, got {self.t_min}, {self.t_max}")

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        return self.t_min + (self.t_max - self.t_min) * u


@TIME_SAMPLERS.register("discrete_uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteUniform(TimeSampler):
    """A step n uniform in 0 ... T-1, at t = (n + 1) / T (Ho et al. 2020, algorithm 1)."""

    num_steps: int = 1000

    def __post_init__(self):
        super().__post_init__()
        if self.num_steps < 1:
            raise UserError(f"time sampler discrete_uniform needs num_steps >= 1, got {self.num_steps}")

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        step = jnp.minimum(jnp.floor(u * self.num_steps), self.num_steps - 1)
        return (step + 1.0) / self.num_steps


@TIME_SAMPLERS.register("log_normal")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal(TimeSampler):
    """ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1), carried to t by the schedule's inverse."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        super().__post_init__()
        if self.std <= 0:
            raise UserError(f"time sampler log_normal needs std > 0, got {self.std}")

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        return schedule.time_of_log_snr(-2.0 * (self.mean + self.std * ndtri(u)))


@TIME_SAMPLERS.register("logit_normal")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeSampler):
    """logit(t) ~ N(mean, std^2) (Esser et al. 2024, arXiv 2403.03206, SD3; their t = 1 is noise too).

    With `shift` s, t becomes s t / (1 + (s - 1) t), more noise for s > 1 (eq. 23): larger pictures need it. SD3 takes 3
    for 1024 x 1024 pixels; FLUX.1 exp(mu), mu from 0.5 at 256 tokens to 1.15 at 4096.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.std <= 0:
            raise UserError(f"time sampler logit_normal needs std > 0, got {self.std}")
        if self.shift <= 0:
            raise UserError(f"time sampler logit_normal needs shift > 0, got {self.shift}")

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        return 1.0 / (1.0 + jnp.exp(-(self.mean + self.std * ndtri(u))) / self.shift)


@TIME_SAMPLERS.register("mode")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode(TimeSampler):
    """t = u - scale (sin^2(pi u / 2) - u): more times near the middle for scale > 0 (Esser et al. 2024, eq. 20)."""

    scale: float = 1.29

    def __post_init__(self):
        super().__post_init__()
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise UserError(f"time sampler mode needs -1 <= scale <= 2 / (pi - 2), got {self.scale}")

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        return u - self.scale * (jnp.sin(0.5 * math.pi * u) ** 2 - u)


@TIME_SAMPLERS.register("cosmap")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CosMap(TimeSampler):
    """t = 1 - 1 / (tan(pi u / 2) + 1): the log-SNRs of the cosine schedule, on rectified_flow (SD3, sec. 3.1)."""

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        sine, cosine = jnp.sin(0.5 * math.pi * u), jnp.cos(0.5 * math.pi * u)
        return sine / (sine + cosine)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["losses", "counts"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossHistory:
    """The last losses of every step, float32, and the number of losses seen so far, int32."""

    losses: Float[Array, "num_steps history"]
    counts: Int[Array, " num_steps"]


@TIME_SAMPLERS.register("loss_second_moment", example={"num_steps": 4, "history": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSecondMoment(DiscreteUniform):
    """Importance sampling, p_n ~ sqrt(E[loss_n^2]) (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 18).

    The mean is over the last `history` losses of step n. Until every step has that many, steps are uniform; after that
    a share `uniform_share` of the probability stays uniform. The factor for a time is 1 / (num_steps p_n).
    """

    history: int = 10
    uniform_share: float = 0.001

    def __post_init__(self):
        super().__post_init__()
        if self.history < 1 or not 0 < self.uniform_share <= 1:
            raise UserError(
                f"time sampler loss_second_moment needs history >= 1 and 0 < uniform_share <= 1, "
                f"got {self.history} and {self.uniform_share}"
            )

    def init_state(self) -> LossHistory:
        return LossHistory(
            losses=jnp.zeros((self.num_steps, self.history), jnp.float32),
            counts=jnp.zeros((self.num_steps,), jnp.int32),
        )

    def probabilities(self, state: LossHistory) -> Float[Array, " num_steps"]:
        """p_n, which sum to one."""
        root = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
        learned = root / jnp.maximum(jnp.sum(root), jnp.finfo(root.dtype).tiny)
        p = learned * (1 - self.uniform_share) + self.uniform_share / self.num_steps
        return jnp.where(jnp.all(state.counts >= self.history), p, 1.0 / self.num_steps)

    def draw(
        self, key: BatchKey, schedule: NoiseSchedule, state: LossHistory | None = None
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"] | float]:
        """Without a state the times are uniform."""
        if state is None:
            return self(key, schedule), 1.0
        p = self.probabilities(state)
        cumulative = jnp.cumsum(p)
        u = self.draw_uniforms(key) * cumulative[-1]
        step = jnp.clip(jnp.searchsorted(cumulative, u, side="right"), 0, self.num_steps - 1)
        return as_compute((step + 1.0) / self.num_steps), as_compute(1.0 / (self.num_steps * p[step]))

    def update(self, state: LossHistory, t: Float[Array, " batch"], loss: Float[Array, " batch"]) -> LossHistory:
        """Each loss replaces the oldest one of its step, in the order of the batch."""
        steps = jnp.clip(jnp.round(t * self.num_steps).astype(jnp.int32) - 1, 0, self.num_steps - 1)

        def put(state: LossHistory, seen: tuple[Array, Array]) -> tuple[LossHistory, None]:
            step, value = seen
            place = state.counts[step] % self.history
            losses = state.losses.at[step, place].set(value.astype(state.losses.dtype))
            return LossHistory(losses=losses, counts=state.counts.at[step].add(1)), None

        return jax.lax.scan(put, state, (steps, loss))[0]
