"""Pictures that lie many in a file, with classes and captions beside them: what such data sets have in common.

Files are found below a folder. The name of a file says which split it is of: the first of these words that is a usual
name of a split, those of its folders, from the outermost, and the one that its own name begins with
("data/train-00000-of-00002.parquet"). Where no name has such a word all files are the split "train". Pictures are
decoded when they are asked for.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int

from diffusion_jax.data.listing import MOST_CLASSES, USUAL_SPLITS, held_out_rows, require_shown
from diffusion_jax.data.pictures import decode_image
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, sampled_digest
from diffusion_jax.specs import DataSpec

HELD_OUT = "held_out"
_WHOLE, _SAMPLE, _START = 64, 1024, 2**16  # files that are hashed well; of more: how many count, and bytes of each


class Rows(Protocol):
    """The examples of some files; pickled without what they have read.

    Attributes:
      names: one for each row, the same wherever the files lie.
      classes: a name or a number for each row; None if there are none.
      class_names: the names of all classes, where the files say them; else ().
      has_texts: whether each row has a caption.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def classes(self) -> Sequence[str] | Int[np.ndarray, " rows"] | None: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def has_texts(self) -> bool: ...

    def picture(self, row: int) -> bytes:
        """The encoded picture of a row."""

    def texts(self, rows: Sequence[int]) -> list[str]:
        """The captions of rows."""


@dataclasses.dataclass(frozen=True, eq=False)
class PackedSource:
    """Rows as examples.

    Attributes:
      rows: rows of the files.
      kept: the rows that are examples.
      labels: their classes, or None.
      channels: 3 (RGB) or 1 (grey).
    """

    rows: Rows
    kept: Int[np.ndarray, " examples"]
    labels: Int[np.ndarray, " examples"] | None
    channels: int

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Example:
        row = int(self.kept[index])
        example: Example = {"image": decode_image(self.rows.picture(row), self.rows.names[row], self.channels)}
        if self.rows.has_texts:
            (example["text"],) = self.rows.texts([row])
        return example if self.labels is None else {**example, "label": int(self.labels[index])}

    def texts(self, indices: Sequence[int]) -> list[str]:
        return self.rows.texts([int(self.kept[int(index)]) for index in indices])


def find_files(what: str, path: str | None, ending: str) -> tuple[Path, list[str]]:
    """The folder of a data set, and its files below it by their relative names, in order; of a file, it alone.

    Raises:
      UserError: no such folder, or no such file in it.
    """
    if not path or not isinstance(path, str):
        raise UserError(f"dataset {what!r} needs a path: dataset='{what}:/path/to/folder'")
    root = expanded(path)
    if root.is_file():
        return root.parent, [root.name]
    if not root.is_dir():
        raise UserError(f"{what}: folder {root} does not exist")
    found = [file.relative_to(root).as_posix() for file in sorted(root.rglob(f"*{ending}")) if file.is_file()]
    found = [name for name in found if not any(part.startswith((".", "_")) for part in name.split("/"))]
    if not found:
        raise UserError(f"{what}: no file *{ending} in folder {root}")
    return root, found


def split_files(root: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """The files of every split.

    Raises:
      UserError: some files are of a split by their names, and others of none.
    """
    found: dict[str, list[str]] = {}
    for file in files:
        *folders, own = file.lower().split("/")
        words = [*folders, re.split(r"[^a-z]", own)[0]]
        found.setdefault(next((word for word in words if word in USUAL_SPLITS), ""), []).append(file)
    if "" in found and len(found) > 1:
        others = ", ".join(sorted(set(found) - {""}))
        raise UserError(
            f"{root}: {found[''][0]} has no split in its name, but others have {others}: add the split to its name, or "
            "move it away"
        )
    return {name or "train": names for name, names in found.items()}


def of_split(root: Path, splits: dict[str, list[str]], split: str) -> list[str]:
    """The files of a split, or of all of them for "all".

    Raises:
      UserError: there is no such split.
    """
    if split == "all" and "all" not in splits:
        return [file for files in splits.values() for file in files]
    if split not in splits:
        raise UserError(f"{root} has no split {split!r}; its splits are {', '.join(sorted(splits))}")
    return splits[split]


def opened(
    what: str,
    root: Path,
    splits: dict[str, list[str]],
    rows_of: Callable[[list[str]], Rows],
    *,
    split: str,
    channels: int,
    held_out: float,
) -> Dataset:
    """The data set of a split.

    Args:
      what: its name in the registry.
      root: the folder.
      splits: the files of every split.
      rows_of: the rows of files.
      split: which one; with `held_out` also "held_out".
      channels: channels of a picture.
      held_out: the share of "train" that "held_out" has, and "train" then has not.

    Raises:
      UserError: no such split, no rows, wrong classes, or too few pictures to hold one out.
    """
    if channels not in (1, 3):
        raise UserError(f"dataset {what!r}: channels must be 1 or 3, not {channels}")
    base = "train" if held_out and split == HELD_OUT else split
    files = of_split(root, splits, base)
    rows = rows_of(files)
    if not len(rows.names):
        raise UserError(f"{what}: no picture in the split {base!r} of {root}")
    class_names, labels = _numbered(
        root, rows, rows if base == "train" or "train" not in splits else None, lambda: rows_of(splits["train"])
    )
    kept = np.arange(len(rows.names))
    if held_out:
        chosen = held_out_rows(rows.names, labels, held_out, taken=split == HELD_OUT)
        if not chosen:
            raise UserError(
                f"{root} has too few pictures, {len(kept)}, to hold out {held_out:g} of a class: add some, or set "
                "data.options.held_out=0 and data.validation_split=''"
            )
        kept = np.asarray(chosen)
    info = DatasetInfo(
        name=what,
        split=split,
        num_examples=len(kept),
        spec=DataSpec(kind="pixels", shape=(None, None, channels)),
        num_classes=len(class_names),
        class_names=class_names,
        fingerprint=_fingerprint(root, files, kept, None if labels is None else labels[kept], rows.has_texts),
        fields=("text",) if rows.has_texts else (),
    )
    return Dataset(info=info, source=PackedSource(rows, kept, None if labels is None else labels[kept], channels))


def _numbered(
    root: Path, rows: Rows, first: Rows | None, read_first: Callable[[], Rows]
) -> tuple[tuple[str, ...], Int[np.ndarray, " rows"] | None]:
    """Names of the classes, and the number of every row's: as the files say them, else over the split "train"."""
    if rows.classes is None:
        return (), None
    said = rows.classes
    numbers = isinstance(said, np.ndarray)
    if numbers and len(said) and int(said.min()) < 0:
        row = int(np.argmin(said))
        raise UserError(f"{rows.names[row]} has the label {int(said[row])}: labels are numbers from 0 on")
    if rows.class_names:
        require_shown(root, rows.class_names)
        if numbers and int(said.max(initial=0)) >= len(rows.class_names):
            raise UserError(f"{root}: a label is {int(said.max())}, but there are {len(rows.class_names)} classes")
        return rows.class_names, said
    known = (first or read_first()).classes
    if known is None or isinstance(known, np.ndarray) != numbers:
        raise UserError(f"{root}: the classes are names in some splits, and numbers or missing in others")
    if numbers:
        count = int(known.max(initial=0)) + 1
        if count > MOST_CLASSES:
            raise UserError(f"{root}: a label is {count - 1}, and must be below {MOST_CLASSES:,}")
        if int(said.max(initial=0)) >= count:
            raise UserError(f"{root} has the class {int(said.max())}, which its split 'train' lacks")
        return tuple(map(str, range(count))), said.astype(np.int32)
    names = sorted(set(known))
    require_shown(root, names)
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted(set(said) - set(names)):
        raise UserError(f"{root} has the class {unknown[0]!r}, which its split 'train' lacks")
    return tuple(names), np.array([number[name] for name in said], np.int32)


def files_digest(root: Path, files: Sequence[str]) -> str:
    """A hash of files that does not depend on where their folder lies.

    It covers their names and sizes, and their content: of up to 64 files as `sampled_digest` says, of more the first 64
    KiB of 1024 of them, evenly spread.
    """
    digest, count = hashlib.sha256(), len(files)
    for file in files:
        digest.update(json.dumps([file, os.path.getsize(root / file)]).encode())
    if count <= _WHOLE:
        digest.update("".join(sampled_digest(root / file) for file in files).encode())
        return digest.hexdigest()
    for i in range(min(count, _SAMPLE)):
        with open(root / files[i * count // min(count, _SAMPLE)], "rb") as opened:
            digest.update(opened.read(_START))
    return digest.hexdigest()


def _fingerprint(
    root: Path,
    files: Sequence[str],
    kept: Int[np.ndarray, " examples"],
    labels: Int[np.ndarray, " examples"] | None,
    has_texts: bool,
) -> str:
    """A hash of the data that does not depend on where it lies: of its files, and of which rows it has."""
    digest = hashlib.sha256(json.dumps([len(kept), has_texts, files_digest(root, files)]).encode())
    for numbers in (kept, labels):
        digest.update(b"" if numbers is None else np.ascontiguousarray(numbers, np.int64).tobytes())
    return digest.hexdigest()
