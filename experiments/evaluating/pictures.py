"""Grids of images as files: samples by class, samples beside their nearest training images, samples that move."""

import io
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from diffusion_jax.data.grids import Images, as_bytes, make_captioned, make_grid, stacked
from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file


def balanced_labels(num_images: int, num_classes: int) -> Int[np.ndarray, " n"]:
    """Labels 0, 1, ..., K-1, 0, 1, ..., which give a grid with one class in each column."""
    return np.arange(num_images, dtype=np.int32) % num_classes


def save_grid(images: Images, path: str | os.PathLike, *, make_folder: bool = True, **layout) -> None:
    """Write `make_grid(images, **layout)` as a PNG file, completely or not at all, in a folder that is created if
    missing.

    Raises:
      UserError: the images make no grid (see `make_grid`).
      RunError: the file could not be written.
    """
    _save(make_grid(images, **layout), path, make_folder=make_folder)


def save_animation(
    frames: Sequence[Images], path: str | os.PathLike, *, seconds: float = 2.5, hold: float = 1.5, **layout
) -> None:
    """Write grids one after the other as a lossless animated WebP file that loops.

    Args:
      frames: images of each moment, as for `make_grid`, which takes `layout`.
      path: path of the file, which is written completely or not at all.
      seconds: duration of all frames together.
      hold: additional duration of the last frame.

    Raises:
      UserError: there are no frames, or the images make no grid (see `make_grid`).
      RunError: the file could not be written.
    """
    if not len(frames):
        raise UserError("an animation needs at least one frame")
    first, *others = (Image.fromarray(make_grid(images, **layout)) for images in frames)
    each = max(20, round(1000 * seconds / len(frames)))
    lasts = [each] * len(others) + [each + round(1000 * hold)]
    buffer = io.BytesIO()
    first.save(
        buffer, format="WEBP", save_all=True, append_images=others, duration=lasts, loop=0, lossless=True, method=4
    )
    replace_file(path, buffer.getvalue())


def save_captioned(
    images: Images, captions: Sequence[str], path: str | os.PathLike, *, columns: int = 8, make_folder: bool = True
) -> None:
    """`make_captioned(images, captions)` as a PNG file.

    Raises:
      UserError: no images, or captions of another number.
      RunError: the file could not be written.
    """
    _save(make_captioned(images, captions, columns=columns), path, make_folder=make_folder)


def save_neighbours(
    samples: Images,
    neighbours: Images,
    path: str | os.PathLike,
    *,
    distances: Float[np.ndarray, " n"] | None = None,
    columns: int = 10,
    scale: int | None = None,
) -> None:
    """Pairs of a sample, above, and its nearest training image, below, with the distance as caption.

    If distances are given, the pairs are sorted, the closest first: the ones to check for copying.
    """
    samples, neighbours = as_bytes(samples), as_bytes(neighbours)
    if samples.shape != neighbours.shape:
        raise UserError(f"samples {list(samples.shape)} and neighbours {list(neighbours.shape)} make no pairs")
    order = np.arange(len(samples)) if distances is None else np.argsort(distances, kind="stable")
    blocks = []
    for start in range(0, len(order), columns):
        part = order[start : start + columns]
        pairs = np.stack([samples[part], neighbours[part]], axis=1).reshape(-1, *samples.shape[1:])
        names = None if distances is None else [f"{distances[i]:.3f}" for i in part]
        position = np.repeat(np.arange(len(part)), 2)
        block = make_grid(pairs, labels=position, class_names=names or [""] * len(part), columns=len(part), scale=scale)
        blocks.append(block)
    _save(stacked(blocks, 12), path)


def _save(grid: np.ndarray, path: str | os.PathLike, *, make_folder: bool = True) -> None:
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG", optimize=True)
    replace_file(path, buffer.getvalue(), make_folder=make_folder)
