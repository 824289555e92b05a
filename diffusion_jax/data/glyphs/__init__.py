"""Glyphs: words and lines of letters and digits in many fonts, with captions, boxes and true renders of any prompt.

options -> strings: the text, and captions -> rendering: pixels and boxes
fonts: families by set, seen and held out; experiments.prepare_data fetches them

`source` makes the data set "glyphs" of them; `prompts` asks for strings and fonts that the training never shows.
"""

from diffusion_jax.data.glyphs.canvas import canvases
from diffusion_jax.data.glyphs.fonts import BUNDLED, FETCHED, PreparedFonts, prepare_fonts
from diffusion_jax.data.glyphs.prompts import WordPrompt, WordSuite
from diffusion_jax.data.glyphs.rendering import Lettering
from diffusion_jax.data.glyphs.source import SPLITS, VERSION, GlyphOptions, GlyphSource
from diffusion_jax.data.glyphs.strings import CLEAR, quoted

__all__ = [
    "BUNDLED",
    "CLEAR",
    "FETCHED",
    "SPLITS",
    "VERSION",
    "GlyphOptions",
    "GlyphSource",
    "Lettering",
    "PreparedFonts",
    "WordPrompt",
    "WordSuite",
    "canvases",
    "prepare_fonts",
    "quoted",
]
