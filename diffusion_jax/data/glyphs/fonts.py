"""Fonts for letters: the available ones, the held-out ones, and the characters of each.

There are two sets. "fetched": 18 families of the npm registry, with many designs, fetched once by
`experiments.prepare_data --dataset=glyphs`. "bundled": the four families that come with matplotlib, for trials and
tests without a network. In both sets some families are held out: only the split "held_out" shows them.
"""

import dataclasses
import functools
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import PIL.ImageFont

from diffusion_jax.data.packages import Package, contents
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, locked, remove_ours, sampled_digest, whole_directory

FontSet = Literal["fetched", "bundled"]
FOLDER = "glyphs/fonts"
"""The folder for fetched fonts, below the data directory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A font family.

    Attributes:
      name: name in captions.
      file: file with its upright face of normal weight.
      held_out: whether only the split "held_out" shows it.
      package: the package it is fetched from; None if it comes with matplotlib.
    """

    name: str
    file: str
    held_out: bool = False
    package: Package | None = None


def _npm(name: str, licence: str, sha256: str, *, held_out: bool = False) -> Family:
    stem = name.lower().replace(" ", "-")
    package = Package(name=f"@fontsource/{stem}", version="5.3.0", sha256=sha256, licence=licence)
    return Family(name=name, file=f"{stem}.ttf", held_out=held_out, package=package)


FETCHED = (
    _npm("Lato", "OFL-1.1", "50db251f16e9a6c35fe0177b4692b7ec78478b9734c9272d980a75343638aa5c"),
    _npm("Oswald", "OFL-1.1", "27bf46420288bb65bd186638cde54686aa8f9d5dc975b1d597dfe81a7dd472cb"),
    _npm("PT Sans", "OFL-1.1", "cbec3ad81a400a5398612dc77dda7416b40135950931819b4eee1e2c133a360e"),
    _npm("PT Serif", "OFL-1.1", "656a3f5ab62846715a6e933a1a850514c6b7aed018de6b0443f1a44ee77d7fd5"),
    _npm("Inconsolata", "OFL-1.1", "d34e446cb20ca819c3bc2795ff7dd1f071a4a7a6f8a38518af3b47144b5e06d9"),
    _npm("Arvo", "OFL-1.1", "619c0fe2044237e0acb68c1b7139c53d2060b5189c789066c8af7960d26ceb53"),
    _npm("Cabin", "OFL-1.1", "4734d4962801bf995ee96f4c3d47bba1d8c3302b1d7b47c9ecec69cdd75a21ac"),
    _npm("Josefin Sans", "OFL-1.1", "a89f83ae9d414f027af83546b84e09ac81e960024dfdeea3bcb491e8ed52a962"),
    _npm("Quicksand", "OFL-1.1", "237b3cc84bf92c235e17f11fcb54e8a889efeaed9a7bff4bacce8cb422e0a403"),
    _npm("Crimson Text", "OFL-1.1", "9ca1f89ed823a36d15fdb8d4883798955cd43b4ead4a15b305e76cf8429f0ca4"),
    _npm("Space Mono", "OFL-1.1", "e0cd78cb7aa93e772905297d8d5ad2a3d9eea7a6a12f281a3940a28ec01c19eb"),
    _npm("Karla", "OFL-1.1", "c7f1cdea4f386d5a9f259c6b01fa46412a3955110ecc56d886a3e4c5b8d67b8e"),
    _npm("Roboto Slab", "Apache-2.0", "45d42c2f30be7fa361c673a297cb75e151e977a57905e449d25875adf97e77f5"),
    _npm("Zilla Slab", "OFL-1.1", "b7db2f40f3aaeb44c0e1dfe3da1e5de96d177a674ffe5e5e012c59b6a01e8aab", held_out=True),
    _npm("Courier Prime", "OFL-1.1", "fd204a077d81426e1425baed6d471ad78a8eccca931091e661637bb10b5f2724", held_out=True),
    _npm("Work Sans", "OFL-1.1", "b1b1c5a7d7ae2a721e0a9235bfa294281d161a20934e9ede01e0aec2bdb2373a", held_out=True),
    _npm("Cardo", "OFL-1.1", "82bdeea698f102bc634507af4a6ba6cd4f2c4bd1dd332f5854d1eda39e3889bf", held_out=True),
    _npm("Anonymous Pro", "OFL-1.1", "946b468dd00419fa20c4c60d6be6d3ef254cbc54afbfae5290488d801d884df8", held_out=True),
)
BUNDLED = (
    Family(name="DejaVu Sans", file="DejaVuSans.ttf"),
    Family(name="DejaVu Sans Mono", file="DejaVuSansMono.ttf"),
    Family(name="STIX General", file="STIXGeneral.ttf"),
    Family(name="DejaVu Serif", file="DejaVuSerif.ttf", held_out=True),
)
PLAIN = BUNDLED[0]
"""The font of a canvas if the text names no family."""
SETS: dict[str, tuple[Family, ...]] = {"fetched": FETCHED, "bundled": BUNDLED}
BY_NAME = {family.name.lower(): family for family in (*FETCHED, *BUNDLED)}


def families(font_set: FontSet, *, held_out: bool) -> tuple[Family, ...]:
    """The families of a set that are held out, or those that are not."""
    return tuple(family for family in SETS[font_set] if family.held_out == held_out)


def path_of(family: Family, data_dir: str) -> Path:
    """The path of a family's file.

    Raises:
      UserError: it is missing; the message gives the command that fetches it.
    """
    if family.package is None:
        spec = importlib.util.find_spec("matplotlib")
        folder = Path(spec.origin).parent / "mpl-data/fonts/ttf" if spec and spec.origin else Path()
    else:
        folder = expanded(data_dir) / FOLDER
    if not (folder / family.file).is_file():
        raise UserError(
            f"the font {family.name} is not in {folder}; run: python -m experiments.prepare_data --dataset=glyphs "
            f"--data_dir={data_dir}"
        )
    return folder / family.file


def require(font_set: FontSet, data_dir: str) -> None:
    """Raise UserError, with the command that fetches them, unless all fonts of a set exist."""
    for family in SETS[font_set]:
        path_of(family, data_dir)


def digest(font_set: FontSet, data_dir: str) -> str:
    """A hash that identifies the fonts of a set, from their files, or for fetched ones from their packages."""
    if font_set == "fetched":
        return " ".join(family.package.sha256 for family in FETCHED)
    return " ".join(sampled_digest(path_of(family, data_dir)) for family in BUNDLED)


@functools.lru_cache(maxsize=4096)
def load(path: Path, size: int) -> PIL.ImageFont.FreeTypeFont:
    """A font at a size in pixels, laid out letter by letter with kerning.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return PIL.ImageFont.truetype(str(path), size, layout_engine=PIL.ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(f"{path} is not a readable font: {error}; remove it and prepare it again") from error


@functools.lru_cache(maxsize=64)
def characters(path: Path) -> frozenset[int]:
    """The code points that a font has glyphs for.

    Raises:
      UserError: the file is damaged.
    """
    from fontTools.ttLib import TTFont, TTLibError  # slow to import

    try:
        with TTFont(path, lazy=True) as font:
            return frozenset(font.getBestCmap() or {})
    except (OSError, TTLibError, KeyError, AssertionError) as error:
        raise UserError(f"{path} is not a readable font: {error}; remove it and prepare it again") from error


def lacking(text: str, family: Family, data_dir: str) -> str:
    """The characters of a text for which a family has no glyph, each once, in order; blanks need none."""
    there = characters(path_of(family, data_dir))
    return "".join(dict.fromkeys(c for c in text if not c.isspace() and ord(c) not in there))


def check_characters(text: str, chosen: Sequence[Family], data_dir: str) -> None:
    """Raise UserError if one of these families has no glyph for a character of a text."""
    for family in chosen:
        missing = lacking(text, family, data_dir)
        if missing:
            raise UserError(
                f"the font {family.name} has no {'character' if len(missing) == 1 else 'characters'} {missing!r}: "
                "leave it out or name another font"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedFonts:
    """The result of a preparation.

    Attributes:
      directory: the folder with the fonts.
      packages: the packages that they were fetched from.
      was_there: whether they existed before.
    """

    directory: str
    packages: tuple[Package, ...]
    was_there: bool


def prepare_fonts(data_dir: str, package_dir: str | None = None) -> PreparedFonts:
    """Fetch the families into the data directory, once; if several processes call this, one fetches and the others
    wait.

    Raises:
      UserError: a package cannot be fetched, or is not the expected one.
    """
    directory, packages = expanded(data_dir) / FOLDER, tuple(family.package for family in FETCHED)

    def there() -> bool:
        return all((directory / family.file).is_file() for family in FETCHED)

    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        was_there = there()
        if not was_there:
            with locked(directory.parent / ".fonts.lock", "process {holder} prepares it", wait=True):
                was_there = there()
                if not was_there:
                    _bring(directory, str(directory.parent), package_dir)
    except OSError as error:
        raise UserError(f"cannot write the fonts to {directory}: {error}") from error
    return PreparedFonts(directory=str(directory), packages=packages, was_there=was_there)


def _bring(directory: Path, folder: str, package_dir: str | None) -> None:
    """Fetch and check the families' files and licences, and put all of them in place at once."""
    members = {family: f"files/{Path(family.file).stem}-latin-400-normal.woff" for family in FETCHED}
    wanted = {"LICENSE", *members.values()}
    found = contents((family.package for family in FETCHED), folder, wanted.__contains__, package_dir)
    remove_ours(directory)  # left incomplete, with a file missing
    with whole_directory(directory) as staging:
        for family in FETCHED:
            files = found[family.package]
            if members[family] not in files:
                raise UserError(f"{family.package} holds no {members[family]}")
            (staging / family.file).write_bytes(_unpacked(files[members[family]]))
            (staging / f"{Path(family.file).stem}-LICENSE").write_bytes(files.get("LICENSE", b""))
        said = {str(family.package): family.package.licence for family in FETCHED}
        (staging / "licences.json").write_text(json.dumps(said, indent=2) + "\n")


def _unpacked(woff: bytes) -> bytes:
    """A font as TrueType, which opens ten times as fast."""
    from fontTools.ttLib import TTFont

    plain = io.BytesIO()
    with TTFont(io.BytesIO(woff), recalcTimestamp=False) as font:
        font.flavor = None
        font.save(plain)
    return plain.getvalue()
