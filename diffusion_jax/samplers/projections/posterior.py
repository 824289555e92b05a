"""Projections that turn a denoiser into that of the posterior given y = A x0 + noise.

The score gains the gradient of log p(y | xt). With x0 given xt assumed Gaussian around the prediction D(xt),

    (1)   log p(y | xt) = log N(y; A D(xt), v(t) A A^T + noise_std^2),
    (2)   gradient      = J^T A^T (v(t) A A^T + noise_std^2)^-1 (y - A D(xt)),       J the Jacobian of D,

    dps      v = 0, which needs noise_std > 0 (Chung et al. 2022, arXiv:2209.14687, eq. 16)
    pigdm    v the variance of x0 given xt for Gaussian data with standard deviation data_std (Song et al. 2023,
             Pseudoinverse-Guided Diffusion Models), sigma^2 data_std^2 / (sigma^2 + alpha^2 data_std^2)

Exact where x0 given xt is Gaussian with variance v. One evaluation of the network, with its gradient.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.domains import NOT_NEGATIVE, POSITIVE, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.samplers.projections.known import Known
from diffusion_jax.samplers.projections.projection import PROJECTIONS, Projection, name_of
from diffusion_jax.schedulers import PREDICTIONS, Denoiser, NoiseSchedule, Prediction
from diffusion_jax.schedulers.arrays import as_compute, like_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posterior(Projection):
    """Eq. (2) times `scale`; a subclass gives v.

    Attributes:
      scale: factor on the correction; 1 as in (2).
    """

    through_network: ClassVar[bool] = True

    scale: Annotated[float, NOT_NEGATIVE] = 1.0

    def variance(self, schedule: NoiseSchedule, t: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """v(t)."""
        raise NotImplementedError

    def noise_std_of(self, known: Known) -> float:
        """Standard deviation of the noise that the measurement is assumed to have."""
        return known.noise_std

    def denoiser(self, denoise: Denoiser, schedule: NoiseSchedule, known: Known) -> Denoiser:
        kind, assumed = PREDICTIONS.build("epsilon"), dataclasses.replace(known, noise_std=self.noise_std_of(known))

        def given(xt: Float[Array, "batch ..."], t: Float[Array, "*batch"], *s: Array, **memory: Any) -> Any:
            xt, t = as_compute(xt), as_compute(t)

            def mean(x: Array) -> tuple[Array, Any]:
                found = denoise(x, t, *s, **memory)
                return (found[0] if memory else found).x0, found

            x0, transposed, found = jax.vjp(mean, xt, has_aux=True)
            error = as_compute(assumed.measured) - assumed.measure(x0)
            weighted = assumed.solve(error, self.variance(schedule, t))
            (at_x0,) = jax.linear_transpose(assumed.measure, x0)(weighted)
            (gradient,) = transposed(at_x0)
            prediction = found[0] if memory else found
            noise = prediction.noise - like_data(schedule.sigma(t), xt) * self.scale * gradient
            moved = dataclasses.replace(
                Prediction.from_target(kind, schedule, noise, xt, t), variance_fraction=prediction.variance_fraction
            )
            return (moved, found[1]) if memory else moved

        return given


@PROJECTIONS.register("dps")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPS(Posterior):
    """Eq. (2) with v = 0.

    Attributes:
      noise_std: standard deviation of the noise assumed for a measurement without noise, in units of the data; smaller
        values make the correction stiffer.
    """

    noise_std: Annotated[float, POSITIVE] = 0.3

    def __post_init__(self):
        if self.noise_std <= 0:
            raise UserError(f"projection {name_of(self)} needs noise_std above 0, got {self.noise_std}")

    def noise_std_of(self, known: Known) -> float:
        return known.noise_std or self.noise_std

    def variance(self, schedule: NoiseSchedule, t: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return jnp.zeros_like(t)


@PROJECTIONS.register("pigdm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PiGDM(Posterior):
    """Eq. (2) with the variance of Gaussian data.

    Attributes:
      data_std: standard deviation of the data.
    """

    data_std: Annotated[float, Bounds(low=0, high=1e6, above=True)] = 1.0

    def variance(self, schedule: NoiseSchedule, t: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        own, noise = (self.data_std * schedule.alpha(t)) ** 2, schedule.sigma(t) ** 2
        return self.data_std**2 * noise / jnp.maximum(own + noise, 1e-30)
