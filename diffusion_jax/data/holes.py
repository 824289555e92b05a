"""Holes in which a network learns to draw, computed from random words for each example.

A mask is 1 where something is to be drawn, float32 [batch, height, width, 1]. In a share of the examples the hole is
the whole picture, so that the network also learns to draw from nothing.
"""

import dataclasses
from typing import Annotated, Protocol

import numpy as np
from jaxtyping import Float, UInt64

from diffusion_jax.data.order import HOLES, random_bits
from diffusion_jax.domains import SHARE, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry

Masks = Float[np.ndarray, "batch height width 1"]


class Holes(Protocol):
    """Makes masks for pictures of a height and a width; `any` says whether there are holes at all."""

    any: bool

    def __call__(self, words: UInt64[np.ndarray, "batch words"], height: int, width: int) -> Masks: ...


holes: Registry[Holes] = Registry("hole")


def hole_words(seed: int, start: int, stop: int) -> UInt64[np.ndarray, "positions 12"]:
    """Random words for the examples at these global positions."""
    return random_bits(seed, start, stop, stream=HOLES, words=12)


@holes.register("none")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoHoles:
    """No holes."""

    any = False

    def __call__(self, words, height, width):
        return np.zeros((len(words), height, width, 1), np.float32)


@holes.register("boxes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes:
    """One to `most` boxes whose sides are uniform between two shares of the picture's side; in some pictures the hole
    is the whole picture, or all of it but a strip at one side.

    Attributes:
      most: largest number of boxes in a picture.
      smallest, largest: bounds of a box's side, as a share of the picture's side.
      whole: share of the pictures that are entirely hole.
      beyond: share of the pictures in which only a strip remains, as when a canvas is enlarged.
    """

    any = True

    most: Annotated[int, Bounds(low=1, high=2)] = 2
    smallest: Annotated[float, SHARE] = 0.2
    largest: Annotated[float, SHARE] = 0.75
    whole: Annotated[float, SHARE] = 0.15
    beyond: Annotated[float, SHARE] = 0.25

    def __post_init__(self):
        if not 0 < self.smallest <= self.largest or self.whole + self.beyond > 1:
            raise UserError(
                f"holes are boxes of 0 < smallest <= largest, whole + beyond at most 1; here {self.smallest:g}, "
                f"{self.largest:g}, {self.whole:g} and {self.beyond:g}"
            )

    def __call__(self, words, height, width):
        u = (words >> np.uint64(11)) * 2.0**-53  # [batch, words] in [0, 1)
        rows, columns = (np.arange(side) + 0.5 for side in (height, width))
        found = np.zeros((len(words), height, width), bool)
        for box in range(self.most):
            there = u[:, 2] * self.most >= box
            found |= there[:, None, None] & self._box(u[:, 3 + 4 * box : 7 + 4 * box], rows, columns)
        kept = self.smallest / 2 + (1 - self.smallest) * u[:, 1]
        side, ends = (u[:, 3] * 4).astype(int), (rows / height, columns / width)
        for number in range(4):  # the side at which the strip remains
            along = ends[number % 2][None, :]
            left = (along < kept[:, None]) if number < 2 else (along > 1 - kept[:, None])
            strip = ~(left[:, :, None] if number % 2 == 0 else left[:, None, :]) & np.ones((1, height, width), bool)
            chosen = (u[:, 0] >= self.whole) & (u[:, 0] < self.whole + self.beyond) & (side == number)
            found = np.where(chosen[:, None, None], strip, found)
        found |= (u[:, 0] < self.whole)[:, None, None]
        empty = ~found.any((1, 2))
        found[empty] = True
        return found[..., None].astype(np.float32)

    def _box(self, u, rows, columns):
        low, high = self.smallest, self.largest
        tall, wide = ((low + (high - low) * u[:, i]) * len(ends) for i, ends in ((0, rows), (1, columns)))
        top, left = u[:, 2] * (len(rows) - tall), u[:, 3] * (len(columns) - wide)
        down = (rows >= top[:, None]) & (rows <= (top + tall)[:, None])
        across = (columns >= left[:, None]) & (columns <= (left + wide)[:, None])
        return down[:, :, None] & across[:, None, :]
