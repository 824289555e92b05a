"""A folder of images as a data set.

Classes come from `metadata.jsonl` (lines {"file_name": "a.png", "label": "cat" or 3}), which may also give each image a
caption (`"text": "a cat on a mat"`), or else from the names of the sub-directories, or else there are none. A class has
the same number in all splits of the folder: classes are numbered over the split "train", and no other split may have a
class that "train" lacks. A folder without splits may hold out a share of its pictures. `listing` says which files
count, `pictures` how one is decoded."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Int

from diffusion_jax.data.listing import (
    EXTENSIONS,
    METADATA,
    USUAL_SPLITS,
    Listing,
    alike,
    classes_below,
    content_hash,
    has_metadata,
    held_out_rows,
    holds_pictures,
    list_pictures,
    require_shown,
    sub_directories,
)
from diffusion_jax.data.pictures import read_image, read_size
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets
from diffusion_jax.domains import Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, plain_name
from diffusion_jax.specs import CONTROL, DataSpec

HELD_OUT = "held_out"


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files, read on access; RGB, or grey if `channels` is 1."""

    root: str
    files: tuple[str, ...]
    labels: tuple[int, ...] | None
    channels: int
    captions: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path = os.path.join(self.root, self.files[index])
        example: Example = {"image": read_image(path, self.channels)}
        if self.captions:
            example["text"] = self.captions[index]
        if self.controls:
            example[CONTROL] = read_image(os.path.join(self.root, self.controls[index]), self.channels)
        return example if self.labels is None else {**example, "label": self.labels[index]}

    def sizes(self) -> Int[np.ndarray, "examples 2"]:
        """Height and width of every picture, as it stands when it is read; only the beginnings of files are read."""
        return np.array([read_size(os.path.join(self.root, file)) for file in self.files], np.int64).reshape(-1, 2)

    def texts(self, indices: Sequence[int]) -> list[str]:
        return [self.captions[int(index)] for index in indices]


@datasets.register("folder")
def open_folder(
    *,
    path: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    channels: int = 3,
    held_out: Annotated[float, Bounds(low=0.0, high=0.9)] = 0.0,
) -> Dataset:
    """Open a folder of images, including sub-directories, in the order of their names.

    Args:
      path: the folder. If it has a sub-directory named like the split, that is the split, and the other sub-directories
        are splits too; otherwise the split must be "train" or "all" and is the whole folder.
      split: see `path`.
      data_dir: not used.
      channels: 3 (RGB) or 1 (grey).
      held_out: share of the pictures of every class that are only in the split "held_out", chosen by their names.

    Raises:
      UserError: there is no such folder, no image in it, an image that is empty or listed twice, wrong metadata,
        sub-directories that could be splits or classes, or too few pictures to hold one out.
    """
    if not path or not isinstance(path, str):
        raise UserError("dataset 'folder' needs a path: dataset='folder:/path/to/images'")
    if channels not in (1, 3):
        raise UserError(f"dataset 'folder': channels must be 1 or 3, not {channels}")
    whole = expanded(path)
    if not os.path.isdir(whole):
        raise UserError(f"image folder {whole} does not exist")
    root, splits = _find_split(whole, "train" if held_out and split == HELD_OUT else split)
    listing = list_pictures(root)
    if not listing.files:
        raise UserError(f"no image in folder {root} (looked for {', '.join(sorted(EXTENSIONS))})")
    class_names, labels = _numbered(root, listing.classes, splits)
    if held_out:
        kept = held_out_rows(listing.files, listing.classes, held_out, taken=split == HELD_OUT)
        if not kept:
            raise UserError(
                f"image folder {root} has too few pictures, {len(listing.files)}, to hold out {held_out:g} of a class: "
                "add some, or set data.options.held_out=0 and data.validation_split=''"
            )
        listing, labels = _part(listing, kept), labels and tuple(labels[i] for i in kept)
    info = DatasetInfo(
        name="folder",
        split=split,
        num_examples=len(listing.files),
        spec=DataSpec(kind="pixels", shape=(None, None, channels)),
        num_classes=len(class_names),
        class_names=class_names,
        fingerprint=content_hash(root, listing, labels),
        fields=tuple(n for n, column in (("text", listing.texts), (CONTROL, listing.controls)) if column),
    )
    source = FolderSource(str(root), listing.files, labels, channels, listing.texts, listing.controls)
    return Dataset(info=info, source=source, sizes=source.sizes, remarks=listing.remarks)


def _part(listing: Listing, kept: Sequence[int]) -> Listing:
    columns = {name: getattr(listing, name) for name in ("files", "sizes", "classes", "texts", "controls")}
    chosen = {name: tuple(values[i] for i in kept) if values else () for name, values in columns.items()}
    return dataclasses.replace(listing, **chosen)


def _find_split(whole: Path, split: str) -> tuple[Path, list[Path]]:
    """The directory of a split, and the directories of all splits.

    Raises:
      UserError: there is no such split, or sub-directories could be splits or classes.
    """
    plain_name(f"the split of image folder {whole}", split)
    inside = sub_directories(whole)
    if split in inside:
        if has_metadata(whole):
            raise UserError(
                f"image folder {whole} has {METADATA} and a sub-directory {split!r}: give split 'all' for what the "
                f"file lists, or folder:{whole / split} for the sub-directory"
            )
        if split in USUAL_SPLITS and holds_pictures(whole / split, directly=True):
            for other in inside:
                if other not in USUAL_SPLITS and holds_pictures(whole / other, directly=True):
                    raise UserError(
                        f"image folder {whole}: {split!r} may be a split, or a class like {other!r}: give split 'all' "
                        f"for classes, or folder:{whole / split} for that directory alone"
                    )
        return whole / split, [whole / name for name in inside]
    if split not in ("train", "all"):
        raise UserError(f"image folder {whole} has no split {split!r}: it needs a sub-directory of that name")
    if inside and not has_metadata(whole) and USUAL_SPLITS.issuperset(inside):
        raise UserError(f"image folder {whole} has no split {split!r}; its splits are {', '.join(inside)}")
    return whole, [whole]


def _numbered(
    root: Path, classes: Sequence[str | int | None], splits: Sequence[Path]
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names of the classes of all splits, and the label of every file of the split `root`.

    Strings are numbered in sorted order, integers are kept. The classes are those of the split "train"; another split
    may have fewer. Without such a split they are those of all splits together.
    """
    if classes[0] is None:
        return (), None
    first = [split for split in splits if split.name == "train"]
    known = {name for split in first or splits for name in (classes if split == root else classes_below(split))}
    if not known:
        raise UserError(f"image folder {first[0]} has no classes, but {root} has")
    if len({type(name) for name in [*known, classes[0]]}) > 1:
        raise UserError(f"image folder {root.parent}: the classes are names in some splits, and numbers in others")
    if isinstance(classes[0], int):
        known = set(range(max(known) + 1))
    if unknown := set(classes) - known:
        raise UserError(f"{root} has the class {min(unknown)!r}, which {first[0]} lacks")
    names = sorted(known)
    require_shown(f"image folder {root}", [name for name in names if isinstance(name, str)])
    if not any(map(has_metadata, splits)):
        twins = {alike(name): name for name in names}
        if twin := next((name for name in names if twins[alike(name)] != name), None):
            raise UserError(f"image folder {root}: classes {twin!r} and {twins[alike(twin)]!r} differ in case only")
    number = {name: i for i, name in enumerate(names)}
    return tuple(map(str, names)), tuple(number[name] for name in classes)
