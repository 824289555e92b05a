"""The scale of guidance that a network is told, instead of being evaluated twice (Meng et al. 2022, 2210.03142)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Batch, Conditioner, Conditions, Form
from diffusion_jax.errors import UserError
from diffusion_jax.specs import GUIDANCE, ConditionSpec


@CONDITIONERS.register("guidance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceScale(Conditioner):
    """One scale for all examples, float32 [batch]; another one is told by `Model.with_guidance`.

    No data has a scale, and so no raw field is read.

    Attributes:
      scale: scale of guidance where nothing is said; 1 is none.
      offset: what is taken off it before the network is told (`Network.guidance_origin`): 1 in LCM, 0 in Flux.
    """

    scale: float = 1.0
    offset: float = 1.0

    def __post_init__(self):
        if not self.scale >= self.offset:
            raise UserError(
                f"the guidance scale that the network is told must be at least {self.offset:g}, it is {self.scale}"
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
        return {GUIDANCE: jnp.full((size,), self.scale - self.offset, jnp.float32)}
