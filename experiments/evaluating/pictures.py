"""Grids of images as PNG files: samples by class, samples beside their nearest training images.

The gaps are transparent and captions are mid-grey, so a grid suits both a light and a dark page. Small images are
enlarged by whole factors, pixel by pixel, without smoothing.
"""

import io
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.data import to_uint8
from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file

_READABLE = 48  # pixels: the side to which small images are enlarged
_CAPTION = (128, 128, 128, 255)
_CAPTION_SIZE = 13  # smaller for a long name
_CAPTIONED, _SMALL, _MOST_LINES = 128, 11, 5  # pixels of an image with words below it, and of a line; most lines

Images = UInt8[np.ndarray, "n height width channels"] | Float[np.ndarray, "n height width channels"]


def as_bytes(images: Images) -> UInt8[np.ndarray, "n height width channels"]:
    """Images as bytes: uint8 unchanged; floats from [-1, 1], clipped, with nan as black."""
    images = np.asarray(images)
    return images if images.dtype == np.uint8 else to_uint8(np.nan_to_num(images, nan=-1.0))


def balanced_labels(num_images: int, num_classes: int) -> Int[np.ndarray, " n"]:
    """Labels 0, 1, ..., K-1, 0, 1, ..., which give a grid with one class in each column."""
    return np.arange(num_images, dtype=np.int32) % num_classes


def make_grid(
    images: Images,
    *,
    columns: int | None = None,
    scale: int | None = None,
    labels: Int[np.ndarray, " n"] | None = None,
    class_names: Sequence[str] | None = None,
    gap: int = 4,
) -> UInt8[np.ndarray, "height width 4"]:
    """Arrange images on a transparent background.

    Args:
      images: uint8, or floats in [-1, 1]; one channel (grey) or three.
      columns: images in a row; by default the grid is about square. With labels, classes side by side in one block.
      scale: whole factor of enlargement; by default images become about 48 pixels large.
      labels: with labels, each column holds one class, in the order of the labels, with its name above. If there are
        few classes and no `columns`, each class has several adjacent columns, so that the grid is about square.
      class_names: captions by label; the numbers by default.
      gap: transparent pixels between images.

    Raises:
      UserError: images are not [n, height, width, 1 or 3], there are none, or the number of labels differs.
    """
    images = as_bytes(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise UserError(f"a picture needs images [n, height, width, 1 or 3], not {list(images.shape)}")
    if labels is not None and np.shape(labels) != (len(images),):
        raise UserError(f"{len(images)} images, but labels of shape {list(np.shape(labels))}")
    side = max(images.shape[1:3])
    scale = scale or max(1, -(-_READABLE // side))
    tiles = np.repeat(np.repeat(images, scale, axis=1), scale, axis=2)
    tiles = np.broadcast_to(tiles, (*tiles.shape[:3], 3))
    if labels is None:
        columns = min(len(images), columns or int(np.ceil(np.sqrt(len(images)))))
        return _block([list(tiles[c::columns]) for c in range(columns)], None, gap)
    classes = [int(k) for k in np.unique(labels)]
    per_block = min(len(classes), columns or 16)
    blocks = []
    for start in range(0, len(classes), per_block):
        part = classes[start : start + per_block]
        names = [str(k) if class_names is None else class_names[k] for k in part]
        of_class = [tiles[np.asarray(labels) == k] for k in part]
        across = 1 if columns else max(1, int(np.sqrt(max(map(len, of_class)) / len(part))))
        shown = [list(own[c::across]) for own in of_class for c in range(across)]
        captions = [name if c == 0 else "" for name in names for c in range(across)]
        blocks.append(_block(shown, captions, gap))
    return _stack(blocks, gap)


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
    """Write images with their captions below as a PNG file.

    A caption is wrapped to the width of its image, which is enlarged to hold some words, and cut after a few lines.

    Raises:
      UserError: there are no images, or the number of captions differs.
    """
    images = as_bytes(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images) or len(captions) != len(images):
        raise UserError(f"a captioned picture needs images and as many captions: {list(images.shape)}, {len(captions)}")
    scale = max(1, _CAPTIONED // max(images.shape[1:3]))
    tiles = np.repeat(np.repeat(images, scale, axis=1), scale, axis=2)
    tiles = np.broadcast_to(tiles, (*tiles.shape[:3], 3))
    (height, width), font = tiles.shape[1:3], ImageFont.load_default(_SMALL)
    lines = [_wrapped(caption, font, width)[:_MOST_LINES] for caption in captions]
    foot, gap = (_SMALL + 3) * max(map(len, lines)) + 4, 8
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGBA", (columns * (width + gap) - gap, rows * (height + foot + gap) - gap))
    draw = ImageDraw.Draw(canvas)
    for i, (tile, below) in enumerate(zip(tiles, lines, strict=True)):
        left, top = i % columns * (width + gap), i // columns * (height + foot + gap)
        canvas.paste(Image.fromarray(np.ascontiguousarray(tile)), (left, top))
        for number, line in enumerate(below):
            draw.text((left, top + height + 2 + number * (_SMALL + 3)), line, fill=_CAPTION, font=font)
    _save(np.asarray(canvas), path, make_folder=make_folder)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A text in lines of at most this width, where a word that is too wide is cut; at least one line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font.getlength(word) > width:
            word = word[:-1]
        lines = lines[:-1] + [line for line in (lines[-1], word) if line]
    return lines


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
    _save(_stack(blocks, 12), path)


def _block(columns: list[list[np.ndarray]], captions: list[str] | None, gap: int) -> np.ndarray:
    """Columns of RGB tiles of one size, with captions above them if there are any."""
    height, width = next(column for column in columns if column)[0].shape[:2]
    rows = max(len(column) for column in columns)
    head = _CAPTION_SIZE + 6 if captions and any(captions) else 0
    canvas = np.zeros((head + rows * (height + gap) - gap, len(columns) * (width + gap) - gap, 4), np.uint8)
    for c, column in enumerate(columns):
        for r, tile in enumerate(column):
            top, left = head + r * (height + gap), c * (width + gap)
            canvas[top : top + height, left : left + width, :3] = tile
            canvas[top : top + height, left : left + width, 3] = 255
    if not head:
        return canvas
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for c, caption in enumerate(captions):
        size = _CAPTION_SIZE
        while size > 9 and draw.textlength(caption, font=ImageFont.load_default(size)) > width:
            size -= 1
        font = ImageFont.load_default(size)
        while draw.textlength(caption, font=font) > width + gap:
            caption = caption[:-1]
        draw.text((c * (width + gap) + width / 2, head / 2), caption, fill=_CAPTION, font=font, anchor="mm")
    return np.asarray(picture)


def _stack(blocks: list[np.ndarray], gap: int) -> np.ndarray:
    """Blocks below one another, the narrower ones padded with transparency."""
    width = max(block.shape[1] for block in blocks)
    parts = []
    for block in blocks:
        parts.append(np.pad(block, ((0, gap), (0, width - block.shape[1]), (0, 0))))
    return np.concatenate(parts)[:-gap] if gap else np.concatenate(parts)


def _save(grid: np.ndarray, path: str | os.PathLike, *, make_folder: bool = True) -> None:
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG", optimize=True)
    replace_file(path, buffer.getvalue(), make_folder=make_folder)
