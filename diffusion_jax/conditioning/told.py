"""How a picture was cropped, a condition of published networks beside the text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax.conditioning.numbers import Numbers
from diffusion_jax.errors import UserError
from diffusion_jax.specs import FRAME


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(Numbers):
    """How a picture was cropped: its original height and width, and the pixels cut off at the top and left after
    resizing. The last numbers come from the end of `unsaid`: height and width after cropping (SDXL, Podell et al. 2023,
    arXiv:2307.01952, sec. 2.2), or the aesthetic score (SDXL's refiner).

    float32 [batch, count], from the raw field "frame", [batch, 4]. A batch without this field gets `unsaid`.
    """

    slot: str = "sizes"

    def beside(self, shape: tuple[int, ...]) -> "Sizes":
        """The same for whole pictures of this shape, where it is told six numbers."""
        height, width = map(float, shape[:2])
        return dataclasses.replace(self, unsaid=(height, width, 0.0, 0.0, height, width)) if self.count == 6 else self

    @property
    def prepares(self) -> tuple[str, ...]:
        return (FRAME,)

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """The first four numbers for each example, followed by the rest, which is the same for all.

        Raises:
          UserError: rows of another length.
        """
        found = np.asarray(raw[FRAME], np.float32)
        if found.ndim != 2 or found.shape[1] != 4:
            raise UserError(f"{FRAME} should be rows of 4 numbers, it is {list(found.shape)}")
        rest = np.broadcast_to(np.asarray(self.unsaid[4:], np.float32), (len(found), self.count - 4))
        return {self.slot: np.concatenate([found, rest], axis=1)}
