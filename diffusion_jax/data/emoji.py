"""Emoji in three styles with captions in 28 languages, and how they become pictures.

The pictures are the SVG files of three icon sets, matched by their code points with the labels and tags of emojibase. A
subject, which is an emoji without its skin tone, belongs to one split in all of its styles and tones.
"""

import dataclasses
import hashlib
import importlib.util
import io
import json
from collections.abc import Iterator, Mapping

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from diffusion_jax.data.packages import Package, contents
from diffusion_jax.errors import UserError

VERSION = 1
SIZES = (32, 64, 128)
SPLITS = ("train", "validation", "test")
STYLES: Mapping[str, Package] = {
    "noto": Package(
        name="@iconify-json/noto",
        version="1.2.9",
        sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        licence="Apache-2.0",
    ),
    "fluent": Package(
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        licence="MIT",
    ),
    "openmoji": Package(
        name="@iconify-json/openmoji",
        version="1.2.29",
        sha256="03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        licence="CC-BY-SA-4.0",
    ),
}
"""The styles, in the order of their class numbers, and the icon sets that they come from."""
WORDS = Package(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    licence="MIT",
)
PACKAGES = (*STYLES.values(), WORDS)
LANGUAGES = (
    "en", "bn", "da", "de", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja", "ko", "lt", "ms", "nb",
    "nl", "pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant",
)  # fmt: skip
_SHARES = {"validation": 0.05, "test": 0.1}  # shares of the subjects
_ENGLISH = (
    "{label}, {style} style",
    "an emoji of {label} in the style of {style}",
    "{style} emoji: {label}",
    "{label} ({tags}), {style} style",
)
_OTHER = ("{label}, {style}", "{label} ({tags}), {style}")
_MOST_TAGS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji in one style.

    Attributes:
      code: its code points in hexadecimal digits, such as "1f44b-1f3fb", without variation selectors.
      subject: code points of the emoji without skin tone.
      style: one of `STYLES`.
      label: its name.
      tags: words associated with it.
      svg: the drawing.
    """

    code: str
    subject: str
    style: str
    label: str
    tags: tuple[str, ...]
    svg: str

    @property
    def split(self) -> str:
        """The split that it belongs to, which depends only on its subject."""
        place, low = _share(self.subject), 0.0
        for split, share in _SHARES.items():
            if low <= place < low + share:
                return split
            low += share
        return "train"

    def caption(self, language: str) -> str:
        """A caption in one of several wordings, chosen by code and style; styles keep their names in all languages."""
        wordings = _ENGLISH if language == "en" else _OTHER
        wordings = wordings if self.tags else [wording for wording in wordings if "{tags}" not in wording]
        drawn = _share(f"{self.code} {self.style}")
        first = int(drawn * 997) % max(1, len(self.tags) - _MOST_TAGS + 1)
        tags = ", ".join(self.tags[first : first + _MOST_TAGS])
        return wordings[int(drawn * len(wordings))].format(label=self.label, tags=tags, style=self.style)


def _share(text: str) -> float:
    """A number in [0, 1) computed from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def read_emoji(folder: str, language: str = "en", package_dir: str | None = None) -> list[Emoji]:
    """All emoji in all styles, by style and in the order of emojibase.

    Args:
      folder: a directory to fetch into; nothing remains there.
      language: one of `LANGUAGES`.
      package_dir: a folder with the packages' archives, which are then not fetched.

    Raises:
      UserError: a package cannot be fetched, is not the expected one, or lacks expected content.
    """
    wanted = {"icons.json", "chars.json", f"{language}/data.json"}
    found = contents(PACKAGES, folder, wanted.__contains__, package_dir)
    try:
        words = dict(_words(json.loads(found[WORDS][f"{language}/data.json"])))
        return [
            Emoji(code=code, subject=subject, style=style, label=label, tags=tags, svg=drawings[code])
            for style, package in STYLES.items()
            for drawings in [_drawings(found[package])]
            for code, (subject, label, tags) in words.items()
            if code in drawings
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"the emoji packages lack expected content: {error!r}; get them again") from error


def _plain(code: str) -> str:
    """Code points without the selector that chooses between text and picture."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _words(entries: list[dict]) -> Iterator[tuple[str, tuple[str, str, tuple[str, ...]]]]:
    """Subject, label and tags by code; an emoji is followed by its skin tones."""
    for entry in entries:
        subject = _plain(entry["hexcode"])
        for one in (entry, *entry.get("skins", ())):
            yield _plain(one["hexcode"]), (subject, one["label"], tuple(entry.get("tags", ())))


def _drawings(files: Mapping[str, bytes]) -> dict[str, str]:
    """SVG by code."""
    icons, names = json.loads(files["icons.json"]), json.loads(files["chars.json"])
    found = {}
    for code, name in names.items():
        icon = icons["icons"].get(name)
        if icon:
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            side = max(width, height)  # a drawing that is not square is centred
            left = icon.get("left", 0) - (side - width) / 2
            top = icon.get("top", 0) - (side - height) / 2
            found[_plain(code)] = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left:g} {top:g} {side:g} {side:g}">{icon["body"]}</svg>'
            )
    return found


def require_renderer() -> None:
    """Raise UserError, with the install command, if there is no renderer for SVG."""
    if importlib.util.find_spec("resvg_py") is None:
        raise UserError("emoji are drawn by resvg-py, which is not installed: `pip install '.[emoji]'`")


def picture(svg: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """A drawing on a white background.

    Raises:
      UserError: there is no renderer, or the drawing is invalid.
    """
    require_renderer()
    import resvg_py

    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"a drawing cannot be rendered: {error}") from error
    drawn = PIL.Image.open(io.BytesIO(png)).convert("RGBA")
    below = PIL.Image.new("RGBA", drawn.size, "white")
    below.alpha_composite(drawn)
    return np.asarray(below.convert("RGB"))
