"""From a raw network to a Denoiser: the scale of its input, its time input, and the meaning of its output.

A network is called as `network_fn(x, time) -> output`. Around it stand three choices, each named in the config:

    input scale    x = c_in(t) xt                          identity | unit_variance
    time input     time = c_noise(t), float32 [batch]      discrete_index | scaled_t | t | quarter_log_sigma
                                                            | log_half_sigma
    prediction     output = a(t) x0 + b(t) noise           a kind of `prediction.py`

EDM (Karras et al. 2022, table 1) is unit_variance, quarter_log_sigma and the kind `edm`; DDPM is identity,
discrete_index and epsilon; SiT is identity, t or scaled_t and velocity.

All coefficients are computed in float32 (float64 under x64), and the output is cast to that before it is used, also for
a network that computes in bfloat16: c_skip and 1 - c_skip would lose their accuracy in bfloat16.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.domains import is_plain
from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.schedulers.arrays import array_module, as_compute, as_float, like_data
from diffusion_jax.schedulers.prediction import PREDICTIONS, Denoiser, EDMOutput, Prediction, PredictionKind
from diffusion_jax.schedulers.schedule import SCHEDULES, NoiseSchedule

NetworkFn = Callable[..., Float[Array, "batch ..."]]
"""(scaled xt, time input) -> output, with parameters, conditioning and dropout bound.

A network with two times is called as (scaled xt, time input, second time input); see `Denoiser`.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeInput:
    """The number that the network's time embedding receives."""

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        """Same shape as t."""
        raise NotImplementedError


TIME_INPUTS: Registry[TimeInput] = Registry("time input", TimeInput)


@TIME_INPUTS.register("discrete_index")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteIndex(TimeInput):
    """t T - 1: the step index 0 ... T-1 of DDPM on its own steps, and its continuous reading between them."""

    num_steps: int = 1000

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        return as_float(t) * self.num_steps - 1.0


@TIME_INPUTS.register("scaled_t")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledT(TimeInput):
    """1000 t, for embeddings made for step indices (SD3 and others); 999 t is for continuous VP networks."""

    scale: float = 1000.0

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        return as_float(t) * self.scale


@TIME_INPUTS.register("t")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainT(TimeInput):
    """t itself."""

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        return as_float(t)


@TIME_INPUTS.register("quarter_log_sigma")
@dataclasses.dataclass(frozen=True, kw_only=True)
class QuarterLogSigma(TimeInput):
    """c_noise = ln(sigma / alpha) / 4 (Karras et al. 2022, table 1) = -log_snr / 8."""

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        return -0.125 * schedule.log_snr(t)


@TIME_INPUTS.register("log_half_sigma")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogHalfSigma(TimeInput):
    """c_noise = ln(sigma / (2 alpha)), for VE networks (Karras et al. 2022, table 1; Song et al. 2021)."""

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        return -0.5 * schedule.log_snr(t) - np.log(2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputScale:
    """The factor c_in on xt."""

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        """Same shape as t."""
        raise NotImplementedError


INPUT_SCALES: Registry[InputScale] = Registry("input scale", InputScale)


@INPUT_SCALES.register("identity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentityScale(InputScale):
    """xt as it is."""

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        t = as_float(t)
        return array_module(t).ones_like(t)


@INPUT_SCALES.register("unit_variance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitVarianceScale(InputScale):
    """1 / sqrt(sigma^2 + alpha^2 sd^2): Karras' c_in for unscaled data, written for xt; `sigma_data` is sd."""

    sigma_data: float = 0.5

    def __call__(self, schedule: NoiseSchedule, t: Array) -> Array:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return 1.0 / array_module(alpha).sqrt(sigma**2 + (self.sigma_data * alpha) ** 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameterization:
    """The three choices around a network, on one schedule.

    Raises:
      UserError: the combination is not defined at t = 1, for example epsilon where alpha(1) = 0.
    """

    discrete: ClassVar[bool] = False
    """Whether the process diffuses tokens."""
    process_kind: ClassVar[str] = "gaussian"
    """The kind of process; objectives and samplers name the kind that they belong to."""

    schedule: NoiseSchedule
    prediction: PredictionKind
    time_input: TimeInput
    input_scale: InputScale = IdentityScale()

    def __post_init__(self):
        one = np.float64(1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            determinant = self.prediction.determinant(self.schedule, one)
        if determinant == 0 or not np.isfinite(determinant):
            where = "alpha = 0" if determinant == 0 else "its slope is infinite"
            raise UserError(
                f"prediction {type(self.prediction).__name__} does not determine x0 at t = 1 of "
                f"{type(self.schedule).__name__}, where {where}; use v, x0 or edm (or velocity on rectified_flow)"
            )
        if not np.isfinite(self.time_input(self.schedule, one)):
            raise UserError(
                f"time input {type(self.time_input).__name__} is infinite at t = 1 of {type(self.schedule).__name__}, "
                "where alpha = 0; use t or scaled_t"
            )

    @classmethod
    def build(
        cls,
        *,
        schedule: str | Mapping[str, Any] | NoiseSchedule,
        prediction: str | Mapping[str, Any] | PredictionKind,
        time_input: str | Mapping[str, Any] | TimeInput,
        input_scale: str | Mapping[str, Any] | InputScale | None = None,
    ) -> "Parameterization":
        """Build from names, mappings {"name": ..., **arguments} or objects.

        `input_scale` None means the one that suits the prediction kind: unit_variance for edm, identity for the rest.
        """
        prediction = built(PREDICTIONS, prediction)
        if input_scale is None:
            is_edm = isinstance(prediction, EDMOutput)
            input_scale = UnitVarianceScale(sigma_data=prediction.sigma_data) if is_edm else IdentityScale()
        return cls(
            schedule=built(SCHEDULES, schedule),
            prediction=prediction,
            time_input=built(TIME_INPUTS, time_input),
            input_scale=built(INPUT_SCALES, input_scale),
        )

    def network_inputs(
        self, xt: Float[Array, "batch ..."], t: Float[Array, "*batch"]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, " batch"]]:
        """(x, time) as the network receives them; t is [] or [batch]."""
        t, xt = as_compute(t), as_compute(xt)
        time = jnp.broadcast_to(self.time_input(self.schedule, t), xt.shape[:1])
        return like_data(self.input_scale(self.schedule, t), xt) * xt, time

    def prediction_of(
        self, output: Float[Array, "batch ..."], xt: Float[Array, "batch ..."], t: Float[Array, "*batch"]
    ) -> Prediction:
        """Read a network's output as a Prediction.

        The first C channels are the prediction. If the head has exactly 2 C channels, the others are a learned
        variance, where -1 means the small and 1 the large one (Nichol & Dhariwal 2021, eq. 15); other extra channels
        are ignored.

        Raises:
          UserError: the output has fewer channels than the data, or other leading axes.
        """
        channels = xt.shape[-1]
        if output.shape[:-1] != xt.shape[:-1] or output.shape[-1] < channels:
            raise UserError(
                f"the network returned {output.shape} for data {xt.shape}; "
                "it must keep the leading axes and return at least as many channels"
            )
        prediction = Prediction.from_target(self.prediction, self.schedule, output[..., :channels], xt, t)
        if output.shape[-1] != 2 * channels:
            return prediction
        return dataclasses.replace(prediction, variance_fraction=0.5 * (as_compute(output[..., channels:]) + 1.0))

    def denoiser(self, network_fn: NetworkFn) -> Denoiser:
        """The Denoiser of a network whose parameters, conditioning and dropout are bound.

        With a second time s, which only a network with two times takes, it is a flow map (see `Denoiser`).
        """

        def denoise(
            xt: Float[Array, "batch ..."], t: Float[Array, "*batch"], s: Float[Array, "*batch"] | None = None
        ) -> Prediction:
            x, time = self.network_inputs(xt, t)
            if s is None:
                return self.prediction_of(network_fn(x, time), xt, t)
            second = jnp.broadcast_to(self.time_input(self.schedule, as_compute(s)), xt.shape[:1])
            return self.prediction_of(network_fn(x, time, second), xt, t)

        return denoise

    def target(
        self, x0: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], t: Float[Array, "*batch"]
    ) -> Float[Array, "batch ..."]:
        """The output of a perfect network for this x0 and noise."""
        return Prediction(x0=as_compute(x0), noise=as_compute(noise)).value(self.prediction, self.schedule, t)


def built(registry: Registry, spec: Any) -> Any:
    """`spec` itself when it is an object already, else what the registry builds from the name or mapping.

    Raises:
      UserError: it is neither, for example a number.
    """
    return registry.build(spec) if is_plain(spec) else spec
