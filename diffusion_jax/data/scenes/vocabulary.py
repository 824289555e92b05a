"""The elements of scenes: shapes as masks, colours, sizes, grounds, and the words for them.

Every ground is grey and every colour is not. The channels of a pixel then differ by alpha * (largest - smallest channel
of the colour), whatever the ground is. So an edge pixel tells exactly how much of it is covered, and its hue is the
shape's. `reading` is based on this. The hues are at least 27 degrees apart.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Shape = Literal["circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart"]
Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Size = Literal["small", "medium", "large"]
Density = Literal["label", "sentence", "description", "mixed"]
SPLITS = ("train", "validation", "test", "held_out")
DENSITIES = ("label", "sentence", "description")
"""How much a caption says; "mixed" draws one of these for each example."""

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "orange": (250, 130, 20),
    "yellow": (240, 225, 30),
    "green": (40, 165, 65),
    "cyan": (40, 205, 215),
    "blue": (40, 75, 225),
    "purple": (140, 45, 195),
    "pink": (250, 130, 190),
}
SIZES: Mapping[str, tuple[float, float]] = {"small": (0.26, 0.29), "medium": (0.36, 0.39), "large": (0.48, 0.52)}
"""The least and the greatest side of a shape's box, as shares of the picture's side."""

GROUNDS: Mapping[str, tuple[int, int]] = {"dark": (24, 56), "grey": (112, 144), "light": (200, 232)}
"""The least and the greatest grey level of a ground."""
TEXTURES = ("plain", "striped", "checked", "speckled", "shaded")
CONTRAST = (8, 16)
"""The least and the greatest deviation of a texture from its ground's level."""

RELATIONS: Mapping[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Each relation and its inverse."""

_FINE = 16  # subpixels per pixel and axis, whose mean is the coverage


@functools.lru_cache(maxsize=4096)
def stamp(shape: Shape, side: int) -> Float[np.ndarray, "side side"]:
    """How much of each pixel of its box a shape covers, 0..1; read-only."""
    points = (np.arange(side * _FINE) + 0.5) * (2 / (side * _FINE)) - 1
    inside = _INSIDE[shape](points[None, :], points[:, None]) & np.ones((side * _FINE,) * 2, bool)
    covered = inside.reshape(side, _FINE, side, _FINE).mean((1, 3), dtype=np.float64).astype(np.float32)
    covered.flags.writeable = False
    return covered


@functools.lru_cache(maxsize=1024)
def sides(size: Size, picture: int) -> tuple[int, int]:
    """The least and the greatest side in pixels of a shape's box, in a picture of this side."""
    least, most = (round(share * picture) for share in SIZES[size])
    return least, most


def size_of(side: float, picture: int) -> Size:
    """The size whose range of sides is nearest."""

    def distance(size: Size) -> float:
        least, most = sides(size, picture)
        return max(least - side, side - most, 0)

    return min(SIZES, key=distance)


Inside = Callable[[np.ndarray, np.ndarray], Bool[np.ndarray, "y x"]]


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points, inner radius 0.45 of the outer, stretched to fill the box; even-odd rule."""
    angles = np.arange(10) * (np.pi / 5)
    radii = np.where(np.arange(10) % 2, 0.45, 1.0)
    corners = np.stack([radii * np.sin(angles), -radii * np.cos(angles)])
    low, high = corners.min(1, keepdims=True), corners.max(1, keepdims=True)
    xs, ys = 2 * (corners - low) / (high - low) - 1
    inside = np.zeros((len(y), x.shape[1]), bool)
    for x0, y0, x1, y1 in zip(xs, ys, np.roll(xs, 1), np.roll(ys, 1), strict=True):
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0 + (y1 == y0)) + x0)
    return inside


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x^2 + y^2 - 1)^3 <= x^2 y^3, with width 2 * 1.139 and height 1 + 1.236."""
    x, y = 1.139 * x, 0.118 - 1.118 * y
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


_INSIDE: Mapping[str, Inside] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: abs(x) + 0 * y <= 1,
    "triangle": lambda x, y: abs(x) <= (y + 1) / 2,
    "star": _star,
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.55**2),
    "cross": lambda x, y: (abs(x) <= 0.34) | (abs(y) <= 0.34),
    "diamond": lambda x, y: abs(x) + abs(y) <= 1,
    "heart": _heart,
}
SHAPES: tuple[str, ...] = tuple(_INSIDE)
