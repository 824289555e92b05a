"""A glyph canvas: the letters that a text asks for, drawn plainly as a picture that a network sees beside its input.

A network that reads words as numbers has to learn each letter's shape and place. A network that sees the drawn letters
only has to learn how to paint them. The idea follows GlyphControl (Yang et al. 2023, arXiv:2305.18259), which shows a
rendered picture of the text, and TextDiffuser (Chen et al. 2023, arXiv:2305.10855).
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.data.glyphs import fonts, rendering, strings
from diffusion_jax.data.sources import default_data_dir
from diffusion_jax.errors import UserError

_NAMES = tuple(fonts.BY_NAME)
MIDDLE = (0.5, 0.5)


def canvases(texts: Sequence[str], size: int, data_dir: str | None = None) -> UInt8[np.ndarray, "n size size 1"]:
    """For each text a drawing of its words in quotation marks, centred and as large as fits, 0 (ground) to 255
    (letter).

    The font is the one that the text names outside the quotation marks, held out or not; else DejaVu Sans. A text
    without quotation marks has an empty canvas.

    Raises:
      UserError: the font lacks a character, the letters would be too small to read, or the font is missing.
    """
    folder = data_dir or default_data_dir()
    return np.stack([_canvas(text, size, folder) for text in texts])


@functools.lru_cache(maxsize=65536)
def _drawn(word: str, family: fonts.Family, size: int, folder: str) -> bytes:
    """The coverage of the pixels; cached, because captions repeat."""
    fonts.check_characters(word, (family,), folder)
    path = fonts.path_of(family, folder)
    em = min(rendering.largest_em(word, path, size), rendering.LARGEST * size)
    if em < rendering.LEAST_HEIGHT / 2:
        raise UserError(
            f"{word!r} is too long for a canvas of {size} pixels: its letters would be {em:.1f} pixels high"
        )
    return rendering.coverage(word, path, size, em, MIDDLE).tobytes()


def _canvas(text: str, size: int, folder: str) -> UInt8[np.ndarray, "size size 1"]:
    word = " ".join(strings.quoted(text).split())
    if not word:
        return np.zeros((size, size, 1), np.uint8)
    named = strings.family_named(text, _NAMES)
    family = fonts.BY_NAME[named] if named else fonts.PLAIN
    return np.frombuffer(_drawn(word, family, size, folder), np.uint8).reshape(size, size, 1)
