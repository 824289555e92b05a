"""Which noise levels training sees: distributions over t.

Each is given by its quantile function, t = Q(u) with u uniform in [0, 1), so that one switch turns any of them into its
low-discrepancy form (Kingma et al. 2021, arXiv 2107.00630): u_i = (u_0 + i / batch) mod 1 covers the noise levels
evenly within the global batch, each u_i still uniform by itself, and the loss varies less.

u = 0 and u = 1, where a Gaussian quantile is infinite, are moved inwards by half the spacing of float32 uniforms.
"""

import dataclasses

import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers.arrays import as_compute, compute_dtype
from diffusion_jax.schedulers.schedule import NoiseSchedule

_SMALLEST_U = 2.0**-24


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeSampler:
    """A distribution over t; `low_discrepancy` draws its uniforms stratified over the global batch."""

    low_discrepancy: bool = False

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        """Q(u), non-decreasing in u."""
        raise NotImplementedError

    def __call__(self, key: BatchKey, schedule: NoiseSchedule) -> Float[Array, " batch"]:
        """One t per example of the batch."""
        draw = key.stratified if self.low_discrepancy else key.uniform
        u = jnp.clip(draw(compute_dtype()), _SMALLEST_U, 1.0 - _SMALLEST_U)
        return as_compute(self.quantile(u, schedule))


TIME_SAMPLERS: Registry[TimeSampler] = Registry("time sampler")


@TIME_SAMPLERS.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(TimeSampler):
    """Uniform on [t_min, t_max]; t_min > 0 by default, where kinds that divide by sigma are still defined."""

    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self):
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
        if self.std <= 0:
            raise UserError(f"time sampler log_normal needs std > 0, got {self.std}")

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        return schedule.time_of_log_snr(-2.0 * (self.mean + self.std * ndtri(u)))


@TIME_SAMPLERS.register("logit_normal")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeSampler):
    """logit(t) ~ N(mean, std^2) (Esser et al. 2024, arXiv 2403.03206, SD3; their t = 1 is noise too)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        if self.std <= 0:
            raise UserError(f"time sampler logit_normal needs std > 0, got {self.std}")

    def quantile(self, u: Float[Array, " batch"], schedule: NoiseSchedule) -> Float[Array, " batch"]:
        return 1.0 / (1.0 + jnp.exp(-(self.mean + self.std * ndtri(u))))
