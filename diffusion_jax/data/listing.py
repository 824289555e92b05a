"""The pictures of a folder and the class of each, every picture once, without decoding them.

Names that begin with a dot, and names that systems create for themselves, are skipped. Links to folders and files are
followed when directories are searched; `metadata.jsonl` may only name files inside its folder.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from diffusion_jax.data.pictures import FORMATS
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json_rows
from diffusion_jax.specs import CONTROL

EXTENSIONS = frozenset(ending for endings in FORMATS.values() for ending in endings)
METADATA = "metadata.jsonl"
_FIELDS = ("file_name", "label", "text", CONTROL)
_SHOWN = 3  # names in a remark
_UNREAD = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".tga", ".psd"})
_UNREAD_METADATA = frozenset({"metadata.csv", "metadata.parquet", "metadata.json", "metadata.jsonl"})
MOST_CLASSES = 2**16  # that integer labels may number; no published set comes near it
USUAL_SPLITS = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "holdout", "unlabeled", "all"}
)
_OF_SYSTEMS = frozenset(
    {
        "__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler",
        "system volume information", "lost+found", "thumbs", "thumbs.db", "desktop.ini", "__pycache__",
    }
)  # fmt: skip
_ALL_BYTES = 2**28  # total bytes up to which all content is hashed
_SAMPLE, _START = 1024, 2**16  # for larger folders: number of files whose content counts, and bytes of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """Pictures in their order.

    Attributes:
      files: their paths below the folder, with "/".
      sizes: their bytes.
      classes: the name or the number of each picture's class, or None.
      texts: the caption of each; () if there are none.
      controls: the path of each picture's control picture; () if there are none.
      remarks: what is in the folder and not read, to be printed before training.
    """

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: tuple[str | int | None, ...]
    texts: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def list_pictures(root: Path) -> Listing:
    """The pictures of a folder, with classes from its metadata.jsonl or else from its sub-directories.

    Raises:
      UserError: a picture is listed twice, empty, missing or no file, the metadata is wrong, or there are pictures both
        in class directories and beside them.
    """
    rows = tuple(_rows(root)) if has_metadata(root) else None
    found = _from_directories(root) if rows is None else _from_metadata(root, rows)
    numbers: dict[tuple[int, int], str] = {}
    names: dict[str, str] = {}
    for file, state, *_ in found:
        if state.st_size == 0:
            raise UserError(f"image {root / file} is empty (0 bytes); repair or remove the file")
        if (first := numbers.setdefault((state.st_dev, state.st_ino), file)) != file:
            raise UserError(f"{root / first} and {root / file} are one file through a link: list each picture once")
        if names.setdefault(alike(file), file) != file:
            raise UserError(f"{root / names[alike(file)]} and {root / file} are one name if case is ignored")
    files, states, classes, texts, controls = zip(*found, strict=True) if found else ((),) * 5
    texts, controls = (() if None in column else column for column in (texts, controls))
    sizes = tuple(state.st_size for state in states)
    remarks = () if rows is None else _not_read(root, rows, {*files, *controls})
    return Listing(files=files, sizes=sizes, classes=classes, texts=texts, controls=controls, remarks=remarks)


def held_out_rows(names: Sequence[str], classes: Sequence[Any] | None, share: float, *, taken: bool) -> list[int]:
    """The positions of the pictures that are held out, or of the others: of each class by the hashes of their names.

    A class of two pictures or more gives one at least, and keeps one.
    """
    groups = itertools.repeat(None) if classes is None else classes
    keys = [
        (str(name), hashlib.sha256(file.encode("utf-8", "surrogateescape")).digest(), i)
        for i, (file, name) in enumerate(zip(names, groups, strict=False))
    ]
    away: set[int] = set()
    for _, group in itertools.groupby(sorted(keys), key=lambda key: key[0]):
        members = [i for _, _, i in group]
        away.update(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    return [i for i in range(len(names)) if (i in away) == taken] if away else []


def has_metadata(root: Path) -> bool:
    """Whether the folder has a metadata.jsonl."""
    return os.path.lexists(root / METADATA)


def classes_below(root: Path) -> list[str | int]:
    """The classes of a folder's pictures, found by looking at as few pictures as possible."""
    if has_metadata(root):
        return [row.label for row in _rows(root) if row.label is not None]
    return [name for name in sub_directories(root) if holds_pictures(root / name)]


def sub_directories(root: Path) -> list[str]:
    """Names of the directories in a folder, sorted, without hidden ones and those of systems."""
    return [name for name, is_directory in _entries(root) if is_directory]


def holds_pictures(root: Path, *, directly: bool = False) -> bool:
    """Whether there is a picture in a folder, or below it unless `directly`."""
    if directly:
        return any(_is_picture(name) for name, is_directory in _entries(root) if not is_directory)
    return next(_walk(root), None) is not None


def require_shown(origin: object, names: Sequence[str]) -> None:
    """Raise UserError if the name of a class is empty, or has control characters or bytes that are not UTF-8."""
    for name in names:
        if not name.strip():
            raise UserError(f"{origin}: the name of a class is {name!r}: name the class")
        if any(unicodedata.category(c) == "Cs" or c < " " or c == "\x7f" for c in name):
            raise UserError(f"{origin}: class {name!r} has characters that cannot be shown: give it another name")


def alike(name: str) -> str:
    """A form of a name that is equal for names which some file systems do not distinguish."""
    return unicodedata.normalize("NFC", name).casefold()


def content_hash(root: Path, listing: Listing, labels: Sequence[int] | None) -> str:
    """A hash of the pictures that does not depend on where their folder lies.

    It covers path, size, label and caption of every picture in order, and all bytes up to 256 MiB in total; in a larger
    folder the first 64 KiB of 1024 files, evenly spread over the list.

    Raises:
      UserError: a file cannot be read.
    """
    digest, count = hashlib.sha256(), len(listing.files)
    beside = [column for column in (listing.texts, listing.controls) if column]
    columns = (listing.files, listing.sizes, labels or [None] * count, *beside)
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row).encode() + b"\n")
    whole = sum(listing.sizes) <= _ALL_BYTES
    chosen = range(count) if whole else (i * count // _SAMPLE for i in range(min(_SAMPLE, count)))
    for name in (column[i] for i in chosen for column in (listing.files, listing.controls) if column):
        try:
            with open(root / name, "rb") as file:
                digest.update(file.read() if whole else file.read(_START))
        except OSError as error:
            raise UserError(f"cannot read {root / name}: {error.strerror}") from error
    return digest.hexdigest()


def _from_directories(root: Path) -> list[tuple[str, os.stat_result, str | None, None, None]]:
    """Files below `root` with the first directory on their path (None for those in `root` itself)."""
    if other := next((name for name, _ in _entries(root) if name.casefold() in _UNREAD_METADATA), None):
        raise UserError(f"{root / other} is not read, {METADATA} is: write it as that, or move it away")
    found = [
        (file, state, file.partition("/")[0] if "/" in file else None, None, None)
        for file, state in sorted(_walk(root), key=lambda one: one[0])
    ]
    stray = next((file for file, _, name, *_ in found if name is None), None)
    if stray and any(name for _, _, name, *_ in found):
        raise UserError(f"image folder {root} has images both in class directories and outside ({stray})")
    return found


def _from_metadata(
    root: Path, rows: Iterable["_Row"]
) -> list[tuple[str, os.stat_result, str | int | None, str | None, str | None]]:
    """Files, labels, captions and control pictures that the folder's metadata.jsonl lists."""
    found: dict[str, tuple[os.stat_result, str | int | None, str | None, str | None]] = {}
    for row in rows:
        path, state = _inside(root, row.name)
        control = None if row.control is None else str(_inside(root, row.control)[0])
        if found.setdefault(str(path), (state, row.label, row.text, control))[0] is not state:
            raise UserError(f"{root / METADATA} lists {path} twice")
    return [(name, *rest) for name, rest in found.items()]


def _not_read(root: Path, rows: Iterable["_Row"], listed: Collection[str]) -> tuple[str, ...]:
    """Remarks on the fields of metadata.jsonl that are not read, and on the folder's pictures that it does not list."""
    fields = sorted({field for row in rows for field in row.others})
    left = sorted(set(_pictures_in(root)).difference(listed))
    remarks = []
    if fields:
        remarks.append(f"{root / METADATA}: its {_some(fields)} is not read; {', '.join(_FIELDS)} are")
    if left:
        number = "a picture" if len(left) == 1 else f"{len(left):,} pictures"
        remarks.append(f"{root / METADATA} does not list {number} of its folder, left out: {_some(left)}")
    return tuple(remarks)


def _pictures_in(root: Path) -> Iterator[str]:
    """Paths of the pictures below a folder; links to directories are not followed."""
    for folder, directories, files in os.walk(root):
        directories[:] = filter(_is_shown, directories)
        yield from (
            PurePosixPath(folder, name).relative_to(root).as_posix()
            for name in files
            if _is_picture(name) and _is_shown(name)
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(ascii, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _inside(root: Path, name: str) -> tuple[PurePosixPath, os.stat_result]:
    """A file named in metadata.jsonl, and its state; UserError if it is not inside the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(f"{root / METADATA} names {name!r}: it may only name files inside its folder")
    try:
        state = os.stat(root / path)
        real = os.path.realpath(root / path)
    except (OSError, ValueError) as error:  # ValueError: a null byte, or half a character
        raise UserError(f"{root / METADATA} names {name}, which does not exist") from error
    if not real.startswith(os.path.join(os.path.realpath(root), "")):
        raise UserError(f"{root / METADATA} names {name!r}, a link to a file outside its folder: {real}")
    _require_file(root / path, state)
    return path, state


class _Row(NamedTuple):
    name: str
    label: str | int | None
    text: str | None
    control: str | None
    others: tuple[str, ...]


def _rows(root: Path) -> Iterator[_Row]:
    """The rows of metadata.jsonl: the name of a file, its label, its caption and its control picture."""
    path, kinds, captioned, steered = root / METADATA, set(), None, None
    for number, row in read_json_rows(path):
        name, label, text, control = (row.get(field) for field in _FIELDS)
        captioned = "text" in row if captioned is None else captioned
        steered = CONTROL in row if steered is None else steered
        if not isinstance(name, str):
            raise UserError(f'{path} line {number} is not {{"file_name": ..., "label": ...}}')
        kinds.add(type(label))
        if len(kinds) > 1 or not kinds <= {str, int, type(None)}:  # a bool is no int here
            raise UserError(f"{path} line {number}: labels must be all strings, all integers, or all missing")
        if isinstance(label, str) and not label.strip():
            raise UserError(f"{path} line {number}: the label of {name} is {label!r}: name the class, or drop the row")
        if isinstance(label, int) and not 0 <= label < MOST_CLASSES:
            wrong = "must not be negative" if label < 0 else f"must be below {MOST_CLASSES:,}"
            raise UserError(f"{path} line {number}: labels {wrong}")
        if captioned != ("text" in row):
            has, had = ("has", "have none") if "text" in row else ("has no", "have one")
            raise UserError(f"{path} line {number}: {name} {has} text, but the rows before it {had}: give all rows one")
        if captioned and not (isinstance(text, str) and text.strip()):
            raise UserError(f"{path} line {number}: the text of {name} is {text!r}: write a caption, or drop the row")
        if steered != (CONTROL in row) or (steered and not isinstance(control, str)):
            raise UserError(
                f"{path} line {number}: {name} must have a {CONTROL} picture, the name of a file, as all rows have, or "
                "none of them has one"
            )
        yield _Row(name, label, text, control, tuple(field for field in row if field not in _FIELDS))


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The pictures below a folder, unordered; each directory once."""
    been: dict[tuple[int, int], str] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        state = _state(root / folder)
        if (first := been.setdefault((state.st_dev, state.st_ino), folder)) != folder:
            raise UserError(f"{root / folder} is {root / first} through a link: list each picture once")
        for name, is_directory in reversed(_entries(root / folder)):
            if is_directory:
                waiting.append(f"{folder}{name}/")
            elif _is_picture(name):
                state = _state(root / folder / name)
                _require_file(root / folder / name, state)
                yield folder + name, state
            elif os.path.splitext(name)[1].lower() in _UNREAD:
                known = ", ".join(sorted(EXTENSIONS))
                raise UserError(f"{root / folder / name}: pictures are read as {known}: convert it, or move it away")


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """(name, whether it is a directory) for the entries of a folder, sorted, without hidden ones and those of
    systems."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry.name for entry in entries]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    return [(name, os.path.isdir(folder / name)) for name in sorted(filter(_is_shown, seen))]


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _OF_SYSTEMS


def _state(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _require_file(path: Path, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path} is not a regular file, as a picture must be")
