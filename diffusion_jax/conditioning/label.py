"""A class label: a whole number, whose last value means "no class"."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Batch, Conditioner, Conditions, Form
from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name
from diffusion_jax.specs import ConditionSpec


@CONDITIONERS.register("label", example={"num_classes": 3})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(Conditioner):
    """The class of an example, int32 [batch]; `num_classes` is the null class.

    Attributes:
      num_classes: classes of the data.
      class_names: their names, if they have any.
    """

    num_classes: int
    class_names: tuple[str, ...] = ()

    @property
    def fields(self) -> Mapping[str, Form]:
        return {"label": ((), "int32")}

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        return {"label": ConditionSpec(dtype="int32", num_values=self.num_classes + 1)}

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Numbers of classes, from numbers or names."""
        return {"label": np.array([self._number(value) for value in raw["label"]], np.int32)}

    def _number(self, value: Any) -> int:
        if str(value) in self.class_names:
            return self.class_names.index(str(value))
        try:
            number = int(str(value))
        except ValueError:
            raise UserError(unknown_name("class", str(value), list(self.class_names))) from None
        if not 0 <= number < self.num_classes:
            raise UserError(f"there is no class {number}: the data has classes 0 to {self.num_classes - 1}")
        return number

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        return {"label": self.field(batch, "label")}

    def null(self, params: PyTree, size: int) -> Conditions:
        return {"label": jnp.full((size,), self.num_classes, jnp.int32)}
