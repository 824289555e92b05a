"""Pictures in tar files as webdataset has them, read by the standard library where they lie, in any order.

The files of an example have one name up to the first dot of the last part, and follow each other: "000/17.jpg" is the
picture, "000/17.cls" the number of its class, "000/17.txt" its caption. "000/17.json" may have both, under "label" and
"caption" or "text". Other files are passed over. The headers of the tar files are read when the data set is opened.
"""

import dataclasses
import functools
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from diffusion_jax.data import packed
from diffusion_jax.data.listing import EXTENSIONS
from diffusion_jax.data.sources import Dataset, datasets
from diffusion_jax.domains import Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.files import parse_json

_SMALL = 2**20  # bytes of a class, a caption or a JSON object


class _Example(NamedTuple):
    """Where a picture lies in a file of the split, and what is said of it."""

    file: int
    name: str
    start: int
    size: int
    label: str | int | None
    text: str | None


@dataclasses.dataclass(frozen=True)
class TarRows:
    """Examples of tar files.

    Attributes:
      root: the folder.
      files: below it.
    """

    root: str
    files: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: self.__dict__[field.name] for field in dataclasses.fields(self)}

    @functools.cached_property
    def _examples(self) -> list[_Example]:
        return [one for number, file in enumerate(self.files) for one in _read(number, self.root, file)]

    @functools.cached_property
    def names(self) -> Sequence[str]:
        """Such as "a.tar, 000/17.jpg"."""
        return [f"{self.files[one.file]}, {one.name}" for one in self._examples]

    @functools.cached_property
    def classes(self) -> Sequence[str] | Int[np.ndarray, " rows"] | None:
        """The classes, names or numbers."""
        found = [one.label for one in self._examples]
        if not self._of_all("class", found):
            return None
        kinds = {type(label) for label in found}
        if len(kinds) > 1:
            raise UserError(f"{self.root}: the classes are numbers in some examples, and names in others")
        return np.array(found, np.int64) if kinds == {int} else found

    @functools.cached_property
    def has_texts(self) -> bool:
        """Whether the examples have captions."""
        return self._of_all("caption", [one.text for one in self._examples])

    def _of_all(self, what: str, values: Sequence[Any]) -> bool:
        """Whether all examples have one; UserError where some have."""
        has = [value is not None for value in values]
        if any(has) and not all(has):
            row = has.index(False)
            raise UserError(f"{self.root}/{self.names[row]} has no {what}, but others have one: give all examples one")
        return any(has)

    def picture(self, row: int) -> bytes:
        one = self._examples[row]
        with open(f"{self.root}/{self.files[one.file]}", "rb") as file:
            file.seek(one.start)
            return file.read(one.size)

    def texts(self, rows: Sequence[int]) -> list[str]:
        return [self._examples[row].text or "" for row in rows]


@datasets.register("webdataset")
def open_webdataset(
    *,
    path: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    channels: int = 3,
    held_out: Annotated[float, Bounds(low=0.0, high=0.9)] = 0.0,
) -> Dataset:
    """Open pictures in tar files, with classes and captions beside them, as webdataset writes them.

    Args:
      path: a folder with files *.tar, in it or below it, or one such file.
      split: "train", another one that names of files or folders say, or "all".
      data_dir: not used.
      channels: 3 (RGB) or 1 (grey).
      held_out: share of the pictures of every class that are in the split "held_out" and in no other.

    Raises:
      UserError: no such folder or split, a tar file that is damaged or compressed, an example without a picture, or
        with two; or some examples with a class or a caption, and others without.
    """
    root, files = packed.find_files("webdataset", path, ".tar")
    splits = packed.split_files(root, files)

    def rows_of(names: list[str]) -> TarRows:
        return TarRows(str(root), tuple(names))

    return packed.opened("webdataset", root, splits, rows_of, split=split, channels=channels, held_out=held_out)


def _read(number: int, root: str, file: str) -> Iterator[_Example]:
    """The examples of one tar file, in its order."""
    path = f"{root}/{file}"
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            size = raw.seek(0, 2)
            key, beside = None, {}
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} ends within {member.name}: it is cut off; copy it again")
                own, _, ending = member.name.rpartition("/")[2].partition(".")
                here = f"{member.name.removesuffix(f'{own}.{ending}')}{own}"
                if here != key and key is not None:
                    yield _example(number, path, key, beside)
                if here != key:
                    key, beside = here, {}
                if not own:  # a hidden file, as some systems put beside each
                    continue
                if ending.lower() in beside:
                    raise UserError(f"{path} has {member.name} twice: write each example once")
                beside[ending.lower()] = _member(path, raw, member)
            if key is not None:
                yield _example(number, path, key, beside)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is damaged or not a tar file ({error}): unpack compressed files first") from error


class _Member(NamedTuple):
    name: str
    start: int
    size: int
    content: bytes


def _member(path: str, raw: Any, member: tarfile.TarInfo) -> _Member:
    """Where a file lies, and of a small one that says something of a picture what is in it."""
    content = b""
    if member.name.lower().endswith((".cls", ".txt", ".json")):
        if member.size > _SMALL:
            raise UserError(
                f"{path}: {member.name} has {member.size:,} bytes, too many for the text or label of a picture"
            )
        before = raw.tell()
        raw.seek(member.offset_data)
        content = raw.read(member.size)
        raw.seek(before)
    return _Member(member.name, member.offset_data, member.size, content)


def _example(number: int, path: str, key: str, beside: dict[str, _Member]) -> _Example:
    """One example of its files by their endings."""
    pictures = [one for ending, one in beside.items() if f".{ending.rpartition('.')[2]}" in EXTENSIONS]
    if len(pictures) != 1:
        many = "no picture" if not pictures else f"the pictures {' and '.join(one.name for one in pictures)}"
        raise UserError(f"{path}: example {key} has {many}: give it one")
    (picture,) = pictures
    about = parse_json(_text(path, beside["json"]), f"{path}, {beside['json'].name}") if "json" in beside else {}
    label = about.get("label")
    if "cls" in beside:
        said = _text(path, beside["cls"]).strip()
        label = int(said) if said.isdecimal() else said
    if label is not None and (not isinstance(label, int | str) or isinstance(label, bool) or label == ""):
        raise UserError(f"{path}: the class of {key} is {json.dumps(label)}: it must be a number or a name")
    text = _text(path, beside["txt"]) if "txt" in beside else about.get("caption", about.get("text"))
    if text is not None and not (isinstance(text, str) and text.strip()):
        raise UserError(f"{path}: the caption of {key} is {text!r}: write one, or drop the example")
    return _Example(number, picture.name, picture.start, picture.size, label, text and text.strip())


def _text(path: str, member: _Member) -> str:
    try:
        return member.content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {member.name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
