"""The weight of the error at each noise level.

A loss compares target = a x0 + b noise with its prediction. At fixed xt an error in the target and the error it implies
in x0 are proportional (see `schedulers/prediction.py`, eq. 2; d = alpha b - sigma a is the kind's determinant):

    (1)   error in x0 = -(sigma / d) error in target,

so a weight stated for squared x0 errors becomes, for any kind,

    (2)   w_kind = w_x0 sigma^2 / d^2.

    kind        sigma^2 / d^2 (variance preserving)       so that, for example
    epsilon     1 / SNR                                   epsilon-MSE is x0-MSE weighted by SNR
    v           1 / (SNR + 1)                             v-MSE is x0-MSE weighted by SNR + 1
    edm         c_out^2                                   EDM's weight is one: c_out^2 = 1 / lambda

A weighting is written once, for x0, and (2) converts it.
"""

import dataclasses
import math

from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.schedulers import NoiseSchedule, PredictionKind
from diffusion_jax.schedulers.arrays import array_module


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighting:
    """A weight on squared x0 errors, and by (2) on the squared errors of any kind."""

    def x0_weight(self, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """The weight on the squared error of x0."""
        raise NotImplementedError

    def __call__(
        self, kind: PredictionKind, schedule: NoiseSchedule, t: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """The weight on the squared error of `kind`: eq. (2)."""
        return self.x0_weight(schedule.log_snr(t)) * (schedule.sigma(t) / kind.determinant(schedule, t)) ** 2


WEIGHTINGS: Registry[Weighting] = Registry("loss weighting", Weighting)


@WEIGHTINGS.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformWeighting(Weighting):
    """1 for whatever kind the loss uses: the "simple" loss of Ho et al. 2020, eq. 14, for epsilon."""

    def __call__(
        self, kind: PredictionKind, schedule: NoiseSchedule, t: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        alpha = schedule.alpha(t)
        return array_module(alpha).ones_like(alpha)


@WEIGHTINGS.register("snr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SNRWeighting(Weighting):
    """The SNR, clipped to [minimum, maximum], on squared x0 errors.

    Unclipped it is the plain epsilon-MSE for every kind; minimum = 1 is the truncated SNR of Salimans & Ho 2022 (arXiv
    2202.00512, sec. 4).
    """

    minimum: float = 0.0
    maximum: float = math.inf

    def __post_init__(self):
        if not isinstance(self.minimum, int | float) or not isinstance(self.maximum, int | float):
            return  # traced: several trainings run as one program
        if not 0 <= self.minimum <= self.maximum or self.maximum == 0:
            raise UserError(f"weighting snr needs 0 <= minimum <= maximum, got {self.minimum}, {self.maximum}")

    def x0_weight(self, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        xp = array_module(log_snr)
        return xp.clip(xp.exp(log_snr), self.minimum, self.maximum)


@WEIGHTINGS.register("min_snr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSNRWeighting(Weighting):
    """min(SNR, gamma) on squared x0 errors (Hang et al. 2023, arXiv 2303.09556, Min-SNR).

    Where the SNR is 0, as at the end of a schedule without signal, the weight is 1 for every kind, as in the authors'
    code (guided_diffusion/gaussian_diffusion.py): the loss of x0 would otherwise vanish there.
    """

    gamma: float = 5.0

    def __post_init__(self):
        traced = not isinstance(self.gamma, int | float)  # of several trainings as one program
        if not traced and not self.gamma > 0:
            raise UserError(f"weighting min_snr needs gamma > 0, got {self.gamma}")

    def x0_weight(self, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        xp = array_module(log_snr)
        return xp.minimum(xp.exp(log_snr), self.gamma)

    def __call__(
        self, kind: PredictionKind, schedule: NoiseSchedule, t: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        log_snr = schedule.log_snr(t)
        xp = array_module(log_snr)
        silent = xp.exp(log_snr) == 0
        factor = (schedule.sigma(t) / xp.where(silent, 1.0, kind.determinant(schedule, t))) ** 2
        return xp.where(silent, 1.0, self.x0_weight(log_snr) * factor)


@WEIGHTINGS.register("edm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMWeighting(Weighting):
    """lambda = (s^2 + sd^2) / (s sd)^2 with s = sigma / alpha (Karras et al. 2022, table 1) = SNR + 1 / sd^2.

    On the kind `edm` with the same `sigma_data` it is uniform.
    """

    sigma_data: float = 0.5

    def x0_weight(self, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return array_module(log_snr).exp(log_snr) + 1.0 / self.sigma_data**2


@WEIGHTINGS.register("p2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class P2Weighting(Weighting):
    """1 / (k + SNR)^gamma on squared epsilon errors (Choi et al. 2022, arXiv 2204.00227, eq. 8)."""

    k: float = 1.0
    gamma: float = 1.0

    def x0_weight(self, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        snr = array_module(log_snr).exp(log_snr)
        return snr / (self.k + snr) ** self.gamma


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateWeighting(Weighting):
    """Base of the weights per unit of log-SNR, with t uniform: w(log_snr) |d log_snr / dt| on squared epsilon errors.

    Every such weight is an integral over log-SNR, and so the same loss on every schedule that covers the same noise
    levels (Kingma et al. 2021; Kingma & Gao 2023, arXiv 2303.00848, eq. 4). It is infinite where the log-SNR is: keep
    t_min and t_max of the time sampler away from such an end.
    """

    def epsilon_weight(self, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """w."""
        raise NotImplementedError

    def __call__(
        self, kind: PredictionKind, schedule: NoiseSchedule, t: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        rate = -schedule.log_snr_derivative(t) * self.epsilon_weight(schedule.log_snr(t))
        return rate * (schedule.alpha(t) / kind.determinant(schedule, t)) ** 2


@WEIGHTINGS.register("likelihood")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodWeighting(RateWeighting):
    """w = 1/2: the loss is the diffusion term of the negative ELBO, in nats per dimension (Song et al. 2021; VDM)."""

    def epsilon_weight(self, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return 0.5 * array_module(log_snr).ones_like(log_snr)


@WEIGHTINGS.register("sigmoid")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidWeighting(RateWeighting):
    """w = sigmoid(bias - log_snr): fine detail counts less (Kingma & Gao 2023; Hoogeboom et al. 2024, SiD2)."""

    bias: float = -1.0

    def epsilon_weight(self, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return 1.0 / (1.0 + array_module(log_snr).exp(log_snr - self.bias))


@WEIGHTINGS.register("clipped_velocity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClippedVelocityWeighting(Weighting):
    """1 / max(sigma, least)^2 on squared x0 errors: on rectified_flow the velocity's error, (xt - x0) / max(t, least).

    Li & He 2025 (arXiv 2511.13720, JiT) divide so, with least = 0.05.
    """

    least: float = 0.05

    def __call__(
        self, kind: PredictionKind, schedule: NoiseSchedule, t: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        sigma = schedule.sigma(t)
        clipped = array_module(sigma).maximum(sigma, self.least)
        return (sigma / (clipped * kind.determinant(schedule, t))) ** 2
