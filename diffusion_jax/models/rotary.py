"""Rotary position embeddings (Su et al. 2021, RoFormer, arXiv:2104.09864): channels of queries and keys rotate in
pairs.

A pair of channels is rotated by the product of the token's position and the pair's frequency, so the product of a query
and a key depends on their distance. If a position has several axes, each axis rotates its own pairs. Positions,
frequencies and angles are at least float32: in bfloat16 neighbours would coincide.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Turns = tuple[Float[Array, "*batch tokens pairs"], Float[Array, "*batch tokens pairs"]]
"""Cosine and sine of every token's angles."""


def rotary_frequencies(dim: int, theta: float) -> Float[np.ndarray, " pairs"]:
    """theta ** (-2 i / dim) for the pairs i = 0 ... dim / 2 - 1, float64."""
    return theta ** (-np.arange(0, dim, 2) / dim)


def grid_positions(height: int, width: int, first: int = 0) -> Float[np.ndarray, "tokens 3"]:
    """(first, row, column) of the tokens of an image, row by row."""
    row, column = np.mgrid[:height, :width].reshape(2, -1)
    return np.stack([np.full_like(row, first), row, column], axis=-1).astype(np.float64)


def axial_turns(
    positions: Float[np.ndarray, "tokens axes"], dims: Sequence[int], theta: float, dtype: np.dtype
) -> Turns:
    """The rotations for known positions, computed on the host: axis i rotates dims[i] / 2 pairs, one axis after the
    other."""
    angles = [positions[:, axis, None] * rotary_frequencies(dim, theta) for axis, dim in enumerate(dims)]
    angle = np.concatenate(angles, axis=-1)
    return jnp.asarray(np.cos(angle), dtype), jnp.asarray(np.sin(angle), dtype)


def turn_pairs(x: Float[Array, "batch tokens heads dim"], turns: Turns) -> Float[Array, "batch tokens heads dim"]:
    """Rotate channels 2 i and 2 i + 1 by angle i."""
    cos, sin = (part[..., :, None, :] for part in turns)
    first, second = x[..., ::2].astype(cos.dtype), x[..., 1::2].astype(cos.dtype)
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def turn_halves(x: Float[Array, "batch tokens heads dim"], turns: Turns) -> Float[Array, "batch tokens heads dim"]:
    """Rotate channels i and i + dim / 2 by angle i."""
    cos, sin = (part[..., :, None, :] for part in turns)
    first, second = (half.astype(cos.dtype) for half in jnp.split(x, 2, axis=-1))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
