"""Numbers that are known about the input: an augmentation, a size, a position. Zeros if they are not given."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Batch, Conditioner, Conditions, Form
from diffusion_jax.errors import UserError
from diffusion_jax.specs import ConditionSpec


@CONDITIONERS.register("numbers", example={"slot": "augment", "count": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers(Conditioner):
    """A vector for each example, float32 [batch, count], under the name of its slot.

    Attributes:
      slot: name of the raw field and of the slot.
      count: length of the vector.
      role: see `ConditionSpec`.
      unsaid: the numbers to use where none are given; () for zeros.
    """

    slot: str
    count: int
    role: Literal["asked", "told"] = "told"
    unsaid: tuple[float, ...] = ()

    def __post_init__(self):
        if len(self.unsaid) not in (0, self.count):
            raise UserError(f"{self.slot} has {self.count} numbers, but unsaid has {len(self.unsaid)}")

    @property
    def fields(self) -> Mapping[str, Form]:
        return {self.slot: ((self.count,), "float32")}

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        return {self.slot: ConditionSpec(shape=(self.count,), role=self.role)}

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Turn rows of numbers into float32."""
        found = np.asarray(raw[self.slot], np.float32)
        if found.ndim != 2 or found.shape[1] != self.count:
            raise UserError(f"{self.slot} should be rows of {self.count} numbers, it is {list(found.shape)}")
        return {self.slot: found}

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        return {self.slot: batch[self.slot]} if self.slot in batch else self.null(params, size)

    def null(self, params: PyTree, size: int) -> Conditions:
        row = jnp.asarray(self.unsaid or (0.0,) * self.count, jnp.float32)
        return {self.slot: jnp.broadcast_to(row, (size, self.count))}
