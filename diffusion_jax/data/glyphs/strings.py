"""Strings of letters and digits, and captions that contain them.

Whether a string is held out depends only on the string: its hash falls into a share. Only strings of at least three
characters are held out, because there are too few shorter ones. Every caption has its string in straight quotation
marks, so that `quoted` finds the text to draw in any prompt.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

CLEAR = "abcdefghijkmnpqrstuvwxyz23456789"
"""Small letters and digits without l, o, 0 and 1, which look alike in many fonts."""

Kind = Literal["word", "line"]
KINDS = ("word", "line")
LEAST_HELD_OUT = 3  # characters of a string that may be held out

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "red": (205, 30, 40),
    "green": (20, 120, 50),
    "blue": (30, 60, 200),
    "yellow": (250, 220, 40),
    "orange": (245, 130, 25),
    "purple": (110, 40, 150),
    "pink": (250, 150, 195),
    "brown": (105, 60, 25),
}
GROUNDS: Mapping[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "grey": (150, 150, 150),
    "cream": (250, 238, 205),
    "sky blue": (165, 210, 245),
    "mint": (175, 235, 200),
    "navy": (20, 30, 85),
    "dark green": (15, 70, 40),
}
_CONTRAST = 90  # least difference in luminance, of 255, between letters and ground

TEMPLATES = (
    'the word "{text}"',
    '"{text}"',
    'a sign that says "{text}"',
    'the word "{text}" in {colour}',
    '"{text}" written in {colour} letters on a {ground} ground',
    'the word "{text}" in {colour}, set in {family}, on {ground}',
    'a {ground} card with "{text}" in {colour} {family}',
    '"{text}" in {family}',
)
"""Wordings; for a line, "the word" becomes "the line"."""
_FULL = TEMPLATES[5]  # names everything

_QUOTED = re.compile('"([^"]*)"|\u201c([^\u201d]*)\u201d')


def luminance(colour: tuple[int, int, int]) -> float:
    """Luma of ITU-R BT.601, 0 to 255."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


PAIRS = tuple(
    (colour, ground)
    for colour, of_letters in COLOURS.items()
    for ground, below in GROUNDS.items()
    if abs(luminance(of_letters) - luminance(below)) >= _CONTRAST
)
"""(colour of the letters, ground) with enough contrast."""


def is_held_out(text: str, share: float) -> bool:
    """Whether the training never shows a string, which depends only on the string."""
    if len(text) < LEAST_HELD_OUT:
        return False
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < share * 2**64


def caption(template: str, *, text: str, kind: Kind, colour: str, ground: str, family: str) -> str:
    """A wording, filled in."""
    return template.replace("the word", f"the {kind}").format(text=text, colour=colour, ground=ground, family=family)


def full_caption(*, text: str, kind: Kind, colour: str, ground: str, family: str) -> str:
    """The wording that names everything."""
    return caption(_FULL, text=text, kind=kind, colour=colour, ground=ground, family=family)


def quoted(prompt: str) -> str:
    """The parts of a prompt in quotation marks, joined to one line; "" if there are none."""
    found = [(straight or curly).strip() for straight, curly in _QUOTED.findall(prompt)]
    return " ".join(filter(None, found))


def family_named(prompt: str, names: Sequence[str]) -> str:
    """The longest of these names that a prompt mentions outside its quotation marks, in small letters; "" if there is
    none."""
    rest = _QUOTED.sub(" ", prompt).lower()
    found = [name for name in names if re.search(rf"\b{re.escape(name)}\b", rest)]
    return max(found, key=len, default="")
