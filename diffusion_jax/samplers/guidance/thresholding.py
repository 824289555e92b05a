"""Dynamic thresholding (Imagen; Saharia et al. 2022, arXiv:2205.11487, sec. 2.3).

Large scales push x0 beyond the range of pixels. With q the `percentile` of |x0| of an example, at least `least`,

    (1)   x0 <- clip(x0, -q, q) least / q.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.domains import POSITIVE, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.samplers.guidance.linear import ClassifierFree
from diffusion_jax.samplers.guidance.rule import GUIDANCE
from diffusion_jax.schedulers.arrays import like_data


@GUIDANCE.register("dynamic_threshold", example={"scale": 2.0})
@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicThreshold(ClassifierFree):
    """Classifier-free guidance whose x0 becomes eq. (1).

    Attributes:
      percentile: fraction of an example's numbers that are not cut.
      least: the range of the data: x0 within it is left as it is.

    Raises:
      UserError: percentile is not in (0, 1], or least not positive.
    """

    of_pixels: ClassVar[bool] = True

    percentile: Annotated[float, Bounds(low=0, high=1, above=True)] = 0.995
    least: Annotated[float, POSITIVE] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.percentile <= 1 or self.least <= 0:
            raise UserError(
                f"guidance dynamic_threshold needs 0 < percentile <= 1 and least > 0, got {self.percentile} and "
                f"{self.least}"
            )

    @property
    def linear(self) -> bool:
        return False

    def lean(self, *predictions: Any, memory: Array | None = None) -> Any:
        found = super().lean(*predictions)
        return dataclasses.replace(found, x0=thresholded(found.x0, self.percentile, self.least))


def thresholded(x0: Float[Array, "batch ..."], percentile: float, least: float) -> Float[Array, "batch ..."]:
    """Eq. (1)."""
    size = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
    size = like_data(jnp.maximum(size, least), x0)
    return jnp.clip(x0, -size, size) * (least / size)
