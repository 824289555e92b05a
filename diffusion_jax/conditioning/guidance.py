"""The scale of guidance as a network's input, instead of two evaluations (Meng et al. 2022, 2210.03142)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Batch, Conditioner, Conditions, Form
from diffusion_jax.domains import NOT_NEGATIVE
from diffusion_jax.errors import UserError
from diffusion_jax.specs import GUIDANCE, ConditionSpec


@CONDITIONERS.register("guidance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceScale(Conditioner):
    """One scale for all examples, by default 1, which is no guidance; `Model.with_guidance` sets another one.

    The scale is not in the data, so no raw field is read.

    Attributes:
      scale: guidance scale.
      origin: number subtracted from the scale before it enters the network (`Network.guidance_origin`): 1 for LCM, 0
        for Flux.

    Raises:
      UserError: the network would receive a number below 0.
    """

    scale: float = 1.0
    origin: Annotated[float, NOT_NEGATIVE] = 1.0

    def __post_init__(self):
        if not self.scale >= self.origin:
            raise UserError(
                f"the guidance scale given to the network must be at least {self.origin:g}, it is {self.scale}"
            )

    @property
    def fields(self) -> Mapping[str, Form]:
        return {}

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        return {GUIDANCE: ConditionSpec(role="told")}

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        return {}

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        return self.null(params, size)

    def null(self, params: PyTree, size: int) -> Conditions:
        return {GUIDANCE: jnp.full((size,), self.scale - self.origin, jnp.float32)}
