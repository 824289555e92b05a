"""Where the tokens of an image stand, and waves that say it, for images of the training's size and of others."""

import functools

import numpy as np
from jaxtyping import Float


@functools.lru_cache
def position_embedding(size: int, dim: int) -> Float[np.ndarray, "tokens dim"]:
    """Fixed sine-cosine embedding of a size x size grid, row by row: the first half of `dim` tells the column."""
    return sine_embedding(np.mgrid[:size, :size].reshape(2, -1).T, dim)


def sine_embedding(positions: Float[np.ndarray, "tokens 2"], dim: int) -> Float[np.ndarray, "tokens dim"]:
    """The same for any (row, column), whole or not."""
    frequencies = 10_000.0 ** (-np.arange(dim // 4) / (dim / 4))
    row, column = (positions[:, axis, None] * frequencies for axis in range(2))
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=-1)


def spread_positions(height: int, width: int, side: int) -> Float[np.ndarray, "tokens 2"]:
    """(row, column) of the tokens of an image, row by row, on the scale of a training with side x side tokens:

        row' = (row - (height - 1) / 2) s + (side - 1) / 2,    s = side / sqrt(height width)

    and columns alike. So its area takes the range that the network knows, about the same middle (positional
    interpolation, Chen et al. 2023, arXiv:2306.15595); an image of the training's own area keeps its distances.
    """
    scale = side / (height * width) ** 0.5
    row, column = np.mgrid[:height, :width].reshape(2, -1)
    both = ((place - (length - 1) / 2) * scale + (side - 1) / 2 for place, length in ((row, height), (column, width)))
    return np.stack(list(both), axis=-1)
