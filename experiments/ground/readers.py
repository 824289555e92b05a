"""Readers of flag values: each returns the meaning of a text, or raises ValueError."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from diffusion_jax.errors import UserError
from experiments.ground.config_files import expanded


class Because(ValueError):
    """A value outside a domain, for a reason that the domain does not explain."""


def plain_text(text: str) -> str:
    """A text that can be shown in one line and written to a file.

    Raises:
      ValueError: it is empty, very long, not Unicode, or has control characters.
    """
    if not text.strip():
        raise ValueError
    if len(text) > 4096:
        raise Because(f"{len(text):,} characters")
    if any(not c.isprintable() for c in text):  # this includes the surrogates of bytes that are not UTF-8
        raise Because("it holds characters that cannot be shown")
    return text


def path_of(text: str) -> str:
    """A path with ~ expanded.

    Raises:
      ValueError: there is no text, an unknown user, or another flag instead of the path.
    """
    if plain_text(text).startswith("-"):
        raise Because("a path that begins with - is written ./-")
    return expanded(text)


def whole_number(lower: int, upper: int) -> Callable[[str], int]:
    """A reader of a number in [lower, upper], which raises ValueError for everything else."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,40}\s*", text) or not lower <= int(text) <= upper:
            raise ValueError
        return int(text)

    return read


def number_text(lower: int, upper: int) -> Callable[[str], str]:
    """Like `whole_number`, but returns the number as a text without leading zeros."""
    read = whole_number(lower, upper)
    return lambda text: str(read(text))


def assignment(text: str) -> str:
    """A text NAME=VALUE, where the value may be empty; raises ValueError for others."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*=.*", text):
        raise ValueError
    return text


def require_once(assignments: Sequence[str]) -> None:
    """Raise UserError if two texts NAME=VALUE have one name."""
    names = [text.partition("=")[0] for text in assignments]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--set={twice}=... is given {names.count(twice)} times: give it once")


def finite_number(text: str) -> float:
    """A number in digits, from -1e6 to 1e6; raises ValueError for others."""
    if not re.fullmatch(r"[-+]?(\d{1,9}\.?\d{0,9}|\.\d{1,9})", text) or abs(float(text)) > 1e6:
        raise ValueError
    return float(text)


def weight(text: str) -> float:
    """A number in digits, from 0 to 1e6; raises ValueError for others."""
    if finite_number(text) < 0:
        raise ValueError
    return finite_number(text)


def path_and_scale(text: str) -> tuple[str, float]:
    """A text PATH or PATH:NUMBER; raises ValueError for others. The number is 1 where there is none."""
    head, _, tail = text.rpartition(":")
    try:
        return (path_of(head), finite_number(tail)) if head else (path_of(text), 1.0)
    except ValueError:
        return path_of(text), 1.0


def path_and_word(text: str) -> tuple[str, str]:
    """A text PATH or PATH:WORD; raises ValueError for others."""
    head, _, tail = text.rpartition(":")
    if head and tail and "/" not in tail:
        return path_of(head), tail
    return path_of(text), ""


def folder_and_picture(text: str) -> tuple[str, str, float]:
    """A text FOLDER:PICTURE or FOLDER:PICTURE:NUMBER; raises ValueError for others."""
    paths, scale = path_and_scale(text)
    folder, _, picture = paths.rpartition(":")
    if not folder or not picture:
        raise ValueError
    return path_of(folder), path_of(picture), scale


def template(text: str) -> str:
    """A text that contains {} at least once, and no other braces; raises ValueError for others."""
    if "{}" not in text or {"{", "}"} & set(text.replace("{}", "")):
        raise ValueError
    return text


def host_and_port(text: str) -> str:
    """A text HOST:PORT; raises ValueError for others."""
    host, _, port = text.rpartition(":")
    whole_number(1, 65535)(port)
    if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.%\w]+\]", host):
        raise ValueError
    return text


def repository(text: str) -> str:
    """A text OWNER/NAME, the name of a repository on the hub; raises ValueError for others."""
    name = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
    if not re.fullmatch(f"{name}/{name}", text) or ".." in text or "--" in text:
        raise ValueError
    return text


def data_set_at(path: str) -> str:
    """The data set of pictures at a path, as `data.dataset` names it: what lies there says of which kind it is."""
    place = Path(path)
    suffixes = {".parquet": "parquet", ".tar": "webdataset"}
    if any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return f"arrow:{path}"
    if place.is_dir():
        levels = ("*", "*/*")
        found = [kind for end, kind in suffixes.items() if any(any(place.glob(level + end)) for level in levels)]
    else:
        found = [kind for end, kind in suffixes.items() if place.suffix == end]
    return f"{found[0] if len(found) == 1 else 'folder'}:{path}"
