"""What published networks are told of a picture beside its text: how it was cut, and how far guidance leans."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.conditioning.conditioner import Batch, Conditioner, Conditions, Form
from diffusion_jax.conditioning.numbers import Numbers
from diffusion_jax.errors import UserError
from diffusion_jax.specs import FRAME, ConditionSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(Numbers):
    """Height and width of the picture as it was, pixels cut off at the top and at the left of it once it was resized,
    and then what `unsaid` ends with: height and width of what is left (SDXL, Podell et al. 2023, arXiv:2307.01952,
    sec. 2.2), or how beautiful it is (its refiner).

    float32 [batch, count], from the raw field "frame", [batch, 4]. Where a batch does not say, they are `unsaid`.
    """

    slot: str = "sizes"

    @property
    def prepares(self) -> tuple[str, ...]:
        return (FRAME,)

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """The first four numbers of each example, and the rest, which is the same for all.

        Raises:
          UserError: rows of another length.
        """
        found = np.asarray(raw[FRAME], np.float32)
        if found.ndim != 2 or found.shape[1] != 4:
            raise UserError(f"{FRAME} should be rows of 4 numbers, it is {list(found.shape)}")
        rest = np.broadcast_to(np.asarray(self.unsaid[4:], np.float32), (len(found), self.count - 4))
        return {self.slot: np.concatenate([found, rest], axis=1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceScale(Conditioner):
    """One scale for all examples, float32 [batch], for a network that embeds it (FLUX.1 dev, LCM).

    Attributes:
      scale: of guidance.
      offset: what is taken off it before the network is told: 1 of LCM's, 0 of Flux.
    """

    scale: float
    offset: float = 0.0

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
        return {"guidance": ConditionSpec(role="told")}

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Nothing: no example says it."""
        return {}

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        return self.null(params, size)

    def null(self, params: PyTree, size: int) -> Conditions:
        return {"guidance": jnp.full((size,), self.scale - self.offset, jnp.float32)}
