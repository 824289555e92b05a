"""The scale of guidance that a network is told, instead of being evaluated twice (Meng et al. 2022, 2210.03142)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Batch, Conditioner, Conditions, Form
from diffusion_jax.specs import GUIDANCE, ConditionSpec


@CONDITIONERS.register("guidance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceScale(Conditioner):
    """Fills the slot with scale 1, no guidance. What draws or is told another scale says it by `Model.with_guidance`.

    No data has a scale, and so no raw field is read.

    Attributes:
      origin: what is taken off the scale before the network is told it (`Network.guidance_origin`).
    """

    origin: float = 1.0

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
        return {GUIDANCE: jnp.full((size,), 1.0 - self.origin, jnp.float32)}
