"""What a network may predict, and how one kind of prediction is converted to another.

Every common target is a linear form in the data and the noise,

    (1)   target = a x0 + b noise,

and so is the network's input, xt = alpha x0 + sigma noise. The two make a 2x2 system. With d = alpha b - sigma a,

    (2)   x0    = (b xt - sigma target) / d,
    (3)   noise = (alpha target - a xt) / d.

This one rule turns any kind into (x0, noise), and (1) turns that into any other kind; there is no table of pairs.

    kind       a                 b                paper
    epsilon    0                 1                Ho et al. 2020, eq. 12
    x0         1                 0                Ho et al. 2020, sec. 3.2
    v          -sigma            alpha            Salimans & Ho 2022 (arXiv 2202.00512), sec. 4
    score      0                 -1 / sigma       Song et al. 2021 (arXiv 2011.13456): score of q(xt | x0)
    velocity   alpha'            sigma'           Lipman et al. 2022: d xt / dt
    edm        see `EDMOutput`                    Karras et al. 2022, eq. 7, 8
    consistency  see `ConsistencyOutput`          Song et al. 2023 (arXiv 2303.01469), app. C

d = 0 means that the kind does not determine x0 there: epsilon and score where alpha = 0, x0 and score where sigma = 0.

Error by kind: the larger of the two divisions amplifies rounding by 1 / min(alpha, sigma). No rule can do better, since
the input does not hold that much of the answer.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.schedulers.arrays import array_module, as_compute, as_float, like_data
from diffusion_jax.schedulers.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionKind:
    """A linear form in data and noise."""

    def coefficients(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        """(a, b) of (1), each of the shape of t; numpy float64 in, numpy float64 out."""
        raise NotImplementedError

    def solution(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array, Array, Array]:
        """Coefficients of xt and target in x0, and of both in noise: eq. (2), (3), each of the shape of t."""
        a, b = self.coefficients(schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        d = alpha * b - sigma * a
        return b / d, -sigma / d, -a / d, alpha / d

    def determinant(self, schedule: NoiseSchedule, t: Array) -> Array:
        """d of (2): an error e in the target is an error -sigma e / d in x0."""
        a, b = self.coefficients(schedule, t)
        return schedule.alpha(t) * b - schedule.sigma(t) * a


PREDICTIONS: Registry[PredictionKind] = Registry("prediction", PredictionKind)


@PREDICTIONS.register("epsilon")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Epsilon(PredictionKind):
    """The noise itself."""

    def coefficients(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        t = as_float(t)
        return array_module(t).zeros_like(t), array_module(t).ones_like(t)


@PREDICTIONS.register("x0")
@dataclasses.dataclass(frozen=True, kw_only=True)
class X0(PredictionKind):
    """The clean data."""

    def coefficients(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        t = as_float(t)
        return array_module(t).ones_like(t), array_module(t).zeros_like(t)


@PREDICTIONS.register("v")
@dataclasses.dataclass(frozen=True, kw_only=True)
class V(PredictionKind):
    """alpha noise - sigma x0: the velocity in the angle atan(sigma / alpha) when the variance is preserved."""

    def coefficients(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        return -schedule.sigma(t), schedule.alpha(t)


@PREDICTIONS.register("score")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(PredictionKind):
    """-noise / sigma, whose mean given xt is the gradient of log p(xt)."""

    def coefficients(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        sigma = schedule.sigma(t)
        with np.errstate(divide="ignore"):
            return array_module(sigma).zeros_like(sigma), -1.0 / sigma


@PREDICTIONS.register("velocity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity(PredictionKind):
    """d xt / dt along the conditional path; its mean given xt drives the probability-flow ODE."""

    def coefficients(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        return schedule.alpha_derivative(t), schedule.sigma_derivative(t)


@PREDICTIONS.register("edm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMOutput(PredictionKind):
    """The raw network output F of EDM preconditioning, for any schedule.

    Let s = sigma / alpha be the noise level of the unscaled xt / alpha, and sd = `sigma_data`. Karras et al. (eq. 7 and
    table 1) write D = c_skip xt / alpha + c_out F with

        c_skip = sd^2 / (s^2 + sd^2),      c_out = s sd / sqrt(s^2 + sd^2),

    so F = (x0 - c_skip xt / alpha) / c_out, which is linear in x0 and noise. With r = sqrt(sigma^2 + sd^2 alpha^2):

        a = sigma / (sd r),      b = -sd alpha / r,      d = -r / sd.

    d is never 0: this kind is well posed at every noise level, also at sigma = 0 and at alpha = 0. Its target has unit
    variance when the data have standard deviation sd, and uniform weight on it is EDM's weight lambda = 1 / c_out^2.
    """

    sigma_data: float = 0.5

    def coefficients(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        r = array_module(alpha).sqrt(sigma**2 + (self.sigma_data * alpha) ** 2)
        return sigma / (self.sigma_data * r), -self.sigma_data * alpha / r


@PREDICTIONS.register("consistency")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyOutput(PredictionKind):
    """The raw output F of a consistency model: EDM's, changed so that x0 is exactly xt at the least noise level.

    With s = sigma / alpha and its least value e at t = 0 (Song et al. 2023, app. C),

        x0 = c_skip xt / alpha + c_out F,   c_skip = sd^2 / ((s - e)^2 + sd^2),   c_out = sd (s - e) / sqrt(s^2 + sd^2).

    x0 does not determine F at s = e, where c_out = 0, but F determines x0. Where e = 0 this is the kind `edm`.
    """

    sigma_data: float = 0.5

    def scalings(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        """c_skip and c_out."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        xp = array_module(alpha)
        with np.errstate(divide="ignore"):
            level = sigma / xp.maximum(alpha, 1e-30)
        zero = t * 0 if isinstance(t, jax.Array) else np.float64(0.0)
        excess = xp.maximum(level - schedule.sigma(zero) / schedule.alpha(zero), 0.0)
        sd = self.sigma_data
        # works for levels that are infinite in practice
        skip = 1.0 / (1.0 + (excess / sd) ** 2)
        return skip, sd * (excess / xp.hypot(level, sd * xp.ones_like(level)))

    def coefficients(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array]:
        skip, out = self.scalings(schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        xp = array_module(alpha)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (1.0 - skip) / out, -skip * (sigma / xp.maximum(alpha, 1e-30)) / out

    def solution(self, schedule: NoiseSchedule, t: Array) -> tuple[Array, Array, Array, Array]:
        skip, out = self.scalings(schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        xp = array_module(alpha)
        scale = skip / xp.maximum(alpha, 1e-15)
        with np.errstate(divide="ignore", invalid="ignore"):
            return scale, out, (1.0 - alpha * scale) / sigma, -alpha * out / sigma


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x0", "noise", "variance_fraction"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """An estimate of the data and the noise that were mixed into some xt; both [batch, ...].

    `variance_fraction` is the additional output of a network with a head for learned variances (Nichol & Dhariwal 2021,
    eq. 15): 0 is the small variance of the reverse step, 1 the large one, log-linear between; None without such a head.
    """

    x0: Float[Array, "batch ..."]
    noise: Float[Array, "batch ..."]
    variance_fraction: Float[Array, "batch ..."] | None = None

    @classmethod
    def from_target(
        cls,
        kind: PredictionKind,
        schedule: NoiseSchedule,
        target: Float[Array, "batch ..."],
        xt: Float[Array, "batch ..."],
        t: Float[Array, "*batch"],
    ) -> "Prediction":
        """Solve (2), (3) for one kind of prediction; t is [] or [batch]. Not finite where the kind's d is 0."""
        _require_same_shape(target, xt)
        t = as_compute(t)
        target, xt = as_compute(target), as_compute(xt)
        x0_xt, x0_target, noise_xt, noise_target = (like_data(c, xt) for c in kind.solution(schedule, t))
        return cls(x0=x0_xt * xt + x0_target * target, noise=noise_xt * xt + noise_target * target)

    @classmethod
    def from_x0(
        cls,
        schedule: NoiseSchedule,
        x0: Float[Array, "batch ..."],
        xt: Float[Array, "batch ..."],
        t: Float[Array, "*batch"],
    ) -> "Prediction":
        """The prediction with a given x0, for example after clipping, and the noise that xt then implies."""
        return cls.from_target(X0(), schedule, x0, xt, t)

    def value(
        self, kind: PredictionKind, schedule: NoiseSchedule, t: Float[Array, "*batch"]
    ) -> Float[Array, "batch ..."]:
        """The same estimate as another kind: eq. (1)."""
        a, b = (like_data(c, self.x0) for c in kind.coefficients(schedule, as_compute(t)))
        return a * self.x0 + b * self.noise

    def at(self, schedule: NoiseSchedule, s: Float[Array, "*batch"]) -> Float[Array, "batch ..."]:
        """alpha(s) x0 + sigma(s) noise: the end point of a DDIM step to time s (Song et al. 2020, eq. 12 with eta =
        0)."""
        return corrupt(schedule, self.x0, self.noise, s)


Denoiser = Callable[..., Prediction]
"""(xt, t) -> Prediction, with parameters and conditioning bound; t is [] or [batch].

A *flow map* is called with a second time, (xt, t, s) -> Prediction; its alpha(s) x0 + sigma(s) noise is the point to
which the probability-flow ODE takes xt from t to s. At s = t it is an ordinary denoiser, and for every s a DDIM step
with it is exact. Shortcut models, MeanFlow and consistency trajectories are flow maps under other names.
"""


def corrupt(
    schedule: NoiseSchedule,
    x0: Float[Array, "batch ..."],
    noise: Float[Array, "batch ..."],
    t: Float[Array, "*batch"],
) -> Float[Array, "batch ..."]:
    """xt = alpha(t) x0 + sigma(t) noise."""
    _require_same_shape(noise, x0)
    t = as_compute(t)
    return like_data(schedule.alpha(t), x0) * x0 + like_data(schedule.sigma(t), x0) * noise


def _require_same_shape(value: Array, xt: Array) -> None:
    if jnp.shape(value) != jnp.shape(xt):
        raise UserError(f"a prediction and its data must have one shape, got {jnp.shape(value)} and {jnp.shape(xt)}")
