"""Grids of pictures as one picture: samples by class, samples with what was said of each.

The gaps are transparent and captions are mid-grey, so a grid sits well on a light page and on a dark one. Small
pictures are enlarged by whole factors, pixel by pixel: nothing is smoothed away.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.data.transforms import to_uint8
from diffusion_jax.errors import UserError

_READABLE = 48  # pixels: the side to which small images are enlarged
_CAPTION = (128, 128, 128, 255)
_CAPTION_SIZE = 13  # less where a name is long
_CAPTIONED, _SMALL, _MOST_LINES = 128, 11, 5  # pixels of an image with words below it, of a line, and lines

Images = UInt8[np.ndarray, "n height width channels"] | Float[np.ndarray, "n height width channels"]


def as_bytes(images: Images) -> UInt8[np.ndarray, "n height width channels"]:
    """Images as bytes: uint8 as they are; floats from [-1, 1], cut off beyond it, not-a-number as black."""
    images = np.asarray(images)
    return images if images.dtype == np.uint8 else to_uint8(np.nan_to_num(images, nan=-1.0))


def make_grid(
    images: Images,
    *,
    columns: int | None = None,
    scale: int | None = None,
    labels: Int[np.ndarray, " n"] | None = None,
    class_names: Sequence[str] | None = None,
    gap: int = 4,
) -> UInt8[np.ndarray, "height width 4"]:
    """Lay images out on a transparent ground.

    Args:
      images: uint8, or floats in [-1, 1]; one channel (grey) or three.
      columns: images in a row; about square by default. With labels, classes side by side before a new block begins.
      scale: whole factor of enlargement; by default what brings images to about 48 pixels.
      labels: with them each column holds one class, in the order of the labels, its name above it. Where there are few
        classes and no `columns`, each has several side by side, its name above the first: the grid is about square.
      class_names: captions by label; the numbers by default.
      gap: transparent pixels between images.

    Raises:
      UserError: not [n, height, width, 1 or 3], no images, or labels of another number.
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
    return stacked(blocks, gap)


def make_captioned(images: Images, captions: Sequence[str], *, columns: int = 8) -> UInt8[np.ndarray, "height width 4"]:
    """Images with what was said of each below it, on a transparent ground.

    A caption is wrapped to the width of its image, which is enlarged to hold some words, and cut after a few lines.

    Raises:
      UserError: no images, or captions of another number.
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
    return np.asarray(canvas)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A text in lines that are no wider, a word that is too wide cut; at least one line."""
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


def _block(columns: list[list[np.ndarray]], captions: list[str] | None, gap: int) -> np.ndarray:
    """Columns of RGB tiles of one size, captions above them where there are any."""
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


def stacked(blocks: list[np.ndarray], gap: int) -> np.ndarray:
    """Blocks below one another, the narrower ones filled up with transparency."""
    width = max(block.shape[1] for block in blocks)
    parts = []
    for block in blocks:
        parts.append(np.pad(block, ((0, gap), (0, width - block.shape[1]), (0, 0))))
    return np.concatenate(parts)[:-gap] if gap else np.concatenate(parts)
