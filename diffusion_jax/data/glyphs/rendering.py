"""Letters as pixels.

FreeType draws a text at four times the size and the result is averaged, so a pixel is the share that letters cover.
The same versions of Pillow and of the fonts give the same bytes.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import UInt8

from diffusion_jax.data.glyphs import fonts
from diffusion_jax.data.glyphs.strings import COLOURS, GROUNDS
from diffusion_jax.errors import UserError

FINE = 4  # subpixels per pixel and axis
MARGIN = 0.05  # margin on every side, as a share of the picture's side
LARGEST = 0.6  # of a font's em, as a share of the picture's side
LEAST_HEIGHT = 7.0  # pixels of the font's em: smaller letters cannot be read
_REFERENCE = 128  # size at which a text is measured
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lettering:
    """The text of a picture and how it is drawn.

    Attributes:
      text: one line.
      kind: "word" or "line".
      family: name of the font.
      colour, ground: names in `COLOURS` and `GROUNDS`.
      em: size of the font in pixels of the picture.
      box: bounding box of the letters.
      words: bounding box of each word.
    """

    text: str
    kind: str
    family: str
    colour: str
    ground: str
    em: float
    box: Box
    words: tuple[Box, ...]


def room(size: int) -> float:
    """The largest width or height in pixels of a text in a square picture."""
    return size * (1 - 2 * MARGIN)


def largest_em(text: str, path: Path, size: int) -> float:
    """The largest size of a font, in pixels, at which a text fits into a square picture."""
    left, top, right, bottom = fonts.load(path, _REFERENCE).getbbox(text)
    return room(size) * _REFERENCE / max(right - left, bottom - top, 1)


def coverage(text: str, path: Path, size: int, em: float, place: tuple[float, float]) -> UInt8[np.ndarray, "size size"]:
    """How much of each pixel a text covers, 0 to 255.

    Args:
      text: one line.
      path: path of the font.
      size: side of the picture.
      em: size of the font in pixels of the picture.
      place: position between the left and right edge, and between the upper and lower edge, each 0 to 1.
    """
    font = fonts.load(path, max(1, int(em * FINE)))
    left, top, right, bottom = font.getbbox(text)
    edge = MARGIN * size * FINE
    free = [size * FINE - 2 * edge - extent for extent in (right - left, bottom - top)]
    x, y = (edge + share * max(0.0, extent) for share, extent in zip(place, free, strict=True))
    canvas = PIL.Image.new("L", (size * FINE, size * FINE), 0)
    PIL.ImageDraw.Draw(canvas).text((round(x) - left, round(y) - top), text, fill=255, font=font)
    return np.asarray(canvas.reduce(FINE))


def paint(covered: UInt8[np.ndarray, "size size"], colour: str, ground: str) -> UInt8[np.ndarray, "size size 3"]:
    """Letters of a colour on a plain ground."""
    return _ramp(colour, ground)[covered]


@functools.lru_cache(maxsize=256)
def _ramp(colour: str, ground: str) -> UInt8[np.ndarray, "256 3"]:
    """The colour of a pixel as a function of its coverage."""
    share = np.arange(256, dtype=np.float32)[:, None] / 255
    letters, below = (np.array(found, np.float32) for found in (COLOURS[colour], GROUNDS[ground]))
    return np.rint(below + share * (letters - below)).astype(np.uint8)


def boxes(covered: UInt8[np.ndarray, "size size"], text: str, path: Path, em: float) -> tuple[Box, tuple[Box, ...]]:
    """The box of a text and those of its words, from its coverage.

    Raises:
      UserError: nothing is covered.
    """
    whole = _box(covered, 0)
    words = text.split()
    if len(words) == 1:
        return whole, (whole,)
    font, found, start = fonts.load(path, max(1, int(em * FINE))), [], 0
    origin = whole[0] - font.getbbox(text)[0] / FINE
    half_blank = font.getlength(" ") / 2 / FINE
    for word in words:
        begin = text.index(word, start)
        start = begin + len(word)
        ends = [font.getlength(text[:end]) / FINE for end in (begin, start)]
        left = 0 if begin == 0 else round(origin + ends[0] - half_blank)
        right = covered.shape[1] if start == len(text) else round(origin + ends[1] + half_blank)
        found.append(_box(covered[:, left:right], left))
    return whole, tuple(found)


def _box(covered: np.ndarray, offset: int) -> Box:
    rows, columns = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise UserError("a text of only blanks has no letters to draw")
    return offset + int(columns[0]), int(rows[0]), offset + int(columns[-1]) + 1, int(rows[-1]) + 1
