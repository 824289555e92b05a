"""A folder of images as a data set, decoded by PIL.

Classes come from `metadata.jsonl` (lines {"file_name": "a.png", "label": "cat" or 3}) if the folder has one, else from
the names of the sub-directories, else there are none.
"""

import dataclasses
import json
import os
from pathlib import Path

import PIL.Image

from diffusion_jax.data import transforms
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets, storage_failed
from diffusion_jax.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
METADATA = "metadata.jsonl"


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files, read when asked for; RGB, or grey if `channels` is 1."""

    root: str
    files: tuple[str, ...]
    labels: tuple[int, ...] | None
    channels: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path = os.path.join(self.root, self.files[index])
        example: Example = {"image": read_image(path, self.channels)}
        return example if self.labels is None else {**example, "label": self.labels[index]}


def read_image(path: str, channels: int = 3) -> transforms.Image:
    """Decode one file to uint8 [height, width, channels].

    Raises:
      UserError: the file is not there, is no image, is damaged, or has more than 8 bits a channel.
      OSError: the storage failed; the next try may succeed.
    """
    try:
        with PIL.Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise UserError(f"{path}: only images of 8 bits a channel are supported, this has mode {picture.mode}")
            return transforms.from_pil(picture.convert("RGB" if channels == 3 else "L"))
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        if storage_failed(error):
            raise
        raise UserError(f"cannot decode the image {path}: {error}; mend or remove the file") from error


@datasets.register("folder")
def open_folder(
    *, path: str | None = None, split: str = "train", data_dir: str | None = None, channels: int = 3
) -> Dataset:
    """Open a folder of images, recursively, in the order of their names.

    Args:
      path: the folder. If it has a sub-directory named like the split, that is the split; otherwise the split must be
        "train" or "all" and is the whole folder.
      split: see `path`.
      data_dir: not used.
      channels: 3 (RGB) or 1 (grey).

    Raises:
      UserError: no such folder, no image in it, an empty file, wrong metadata.
    """
    if not path:
        raise UserError("dataset 'folder' needs a path: dataset='folder:/path/to/images'")
    if channels not in (1, 3):
        raise UserError(f"dataset 'folder': channels must be 1 or 3, not {channels}")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"image folder {root} does not exist")
    if (root / split).is_dir():
        root = root / split
    elif split not in ("train", "all"):
        raise UserError(f"image folder {root} has no split {split!r}: it needs a sub-directory of that name")
    files, names = _from_metadata(root) if (root / METADATA).exists() else _from_directories(root)
    if not files:
        raise UserError(f"no image in folder {root} (looked for {', '.join(sorted(EXTENSIONS))})")
    for file in files:
        if not (root / file).is_file():
            raise UserError(f"{root / METADATA} names {file}, which does not exist")
        if (root / file).stat().st_size == 0:
            raise UserError(f"image {root / file} is empty (0 bytes); mend or remove the file")
    class_names, labels = _classes(names)
    info = DatasetInfo(
        name="folder",
        split=split,
        num_examples=len(files),
        image_shape=(None, None, channels),
        num_classes=len(class_names),
        class_names=class_names,
    )
    return Dataset(info=info, source=FolderSource(str(root), tuple(files), labels, channels))


def _from_directories(root: Path) -> tuple[list[str], list[str | None]]:
    """Files below `root` and the first directory on the way to each (None for those in `root` itself)."""
    files = sorted(
        os.path.relpath(os.path.join(directory, file), root)
        for directory, _, found in os.walk(root, followlinks=True)
        for file in found
        if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith(".")
    )
    names = [Path(file).parts[0] if len(Path(file).parts) > 1 else None for file in files]
    if None in names and any(names):
        stray = files[names.index(None)]
        raise UserError(f"image folder {root} has images both in class directories and outside ({stray})")
    return files, names


def _from_metadata(root: Path) -> tuple[list[str], list[str | int | None]]:
    """Files and labels that the folder's metadata.jsonl lists."""
    files, labels = [], []
    for number, line in enumerate((root / METADATA).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            files.append(row["file_name"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f'{root / METADATA} line {number} is not {{"file_name": ..., "label": ...}}') from error
        labels.append(row.get("label"))
    if len({type(label) for label in labels}) > 1 or (labels and not isinstance(labels[0], str | int | None)):
        raise UserError(f"{root / METADATA}: labels must be all strings, all integers, or all missing")
    return files, labels


def _classes(names: list[str | int | None]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Class names and the label of every file; strings are numbered in sorted order, integers are kept."""
    if names[0] is None:
        return (), None
    if isinstance(names[0], int):
        if min(names) < 0:
            raise UserError(f"{METADATA}: labels must not be negative")
        return tuple(str(i) for i in range(max(names) + 1)), tuple(names)
    known = sorted(set(names))
    number = {name: i for i, name in enumerate(known)}
    return tuple(known), tuple(number[name] for name in names)
