"""Adaptive projected guidance (APG; Sadat et al. 2024, arXiv:2410.02416).

Large scales oversaturate, mostly by the part of the difference along the conditional prediction. With D_c and D_u the
conditional and the unconditional x0, in step n,

    (1)   delta_n = (D_c - D_u) + momentum delta_{n-1},             a negative momentum turns down what is repeated
    (2)   delta   = delta_n min(1, norm_threshold / |delta_n|)      a ball around the conditional x0
    (3)   guided  = D_c + (scale - 1) (across + eta along),         the two parts of delta with respect to D_c.

eta = 1, momentum 0 and no threshold is classifier-free guidance. In a step with several evaluations each of them sees
the delta_{n-1} of the step before; that of the first evaluation is what is remembered.
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.domains import NOT_NEGATIVE, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.samplers.guidance.rule import GUIDANCE, Rule
from diffusion_jax.schedulers import Prediction


@GUIDANCE.register("apg", example={"scale": 2.0, "momentum": -0.5, "norm_threshold": 3.0})
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveProjected(Rule):
    """Eq. (1) to (3).

    Attributes:
      eta: the share of the part along the conditional x0 that is kept.
      norm_threshold: the largest norm of the difference, in units of the data; 0 is any.
      momentum: weight of the difference of the step before.
    """

    eta: Annotated[float, Bounds(low=0, high=1000)] = 0.0
    norm_threshold: Annotated[float, NOT_NEGATIVE] = 0.0
    momentum: Annotated[float, Bounds(low=-1, high=1, above=True, below=True)] = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.norm_threshold < 0:
            raise UserError(f"guidance apg needs a norm_threshold of at least 0, got {self.norm_threshold}")

    @property
    def linear(self) -> bool:
        return False

    @property
    def remembers(self) -> bool:
        return self.momentum != 0.0 and not self.neutral

    def lean(self, conditional: Prediction, unconditional: Prediction, memory: Array | None = None) -> Prediction:
        delta = self.remember(conditional, unconditional, memory=memory)
        if self.norm_threshold:
            norm = jnp.sqrt(_inner(delta, delta))
            delta = delta * jnp.minimum(1.0, self.norm_threshold / jnp.maximum(norm, 1e-12))
        direction = conditional.x0 / jnp.sqrt(jnp.maximum(_inner(conditional.x0, conditional.x0), 1e-12))
        along = _inner(delta, direction) * direction
        x0 = conditional.x0 + (self.scale - 1.0) * (delta - along + self.eta * along)
        return dataclasses.replace(conditional, x0=x0)

    def remember(self, conditional: Prediction, unconditional: Prediction, *, memory: Array | None) -> Array:
        """Eq. (1)."""
        difference = conditional.x0 - unconditional.x0
        return difference if memory is None else difference + self.momentum * memory


def _inner(a: Float[Array, "batch ..."], b: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """The inner product of every example, with axes of size 1 for the rest."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)
