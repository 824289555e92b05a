"""A data set encoded by a first stage, as a data set of latents (`experiments.prepare_latents` writes it).

<folder>/info.json                       the splits, the data, the first stage's fingerprint, the number format
         <split>/00000.npy ...           mean and standard deviation, [n, rows, columns, 2 x latent], float32 or float16
                 00000.<field>.npy       a further field of the same examples, such as "label"
                 00000.<field>.json      the same of text: a list of strings

Every file but a split's last holds `shard_size` examples, in the order of the data. info.json is written last: without
it the data set is not finished. `LatentWriter` writes shard by shard, each complete or not at all, so that a killed
preparation continues where it was and gives the same bytes.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, plain_name, read_json, read_npy, replace_file
from diffusion_jax.registry import unknown_name
from diffusion_jax.specs import DataSpec

INFO, BEGUN = "info.json", ".begun.json"
FORMATS = ("float32", "float16")
_AGAIN = "remove that folder and prepare the latents again"


@dataclasses.dataclass(frozen=True)
class LatentSource:
    """Examples of one split; "image" is float32 [rows, columns, 2 x latent], mean and standard deviation."""

    root: str
    counts: tuple[int, ...]
    shard_size: int
    fields: tuple[str, ...]
    texts_of: tuple[str, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> Example:
        shard, row = divmod(int(index), self.shard_size)
        opened = _open_shard(self.root, shard, self.fields, self.texts_of, self.counts[shard])
        example: Example = {"image": np.asarray(opened["image"][row], np.float32)}
        for name in self.fields:
            value = opened[name][row]
            example[name] = value.item() if np.ndim(value) == 0 else np.asarray(value)
        return example | {name: opened[name][row] for name in self.texts_of}

    def texts(self, indices: Sequence[int]) -> list[str]:
        """The captions."""
        found = []
        for index in indices:
            shard, row = divmod(int(index), self.shard_size)
            found.append(_open_shard(self.root, shard, self.fields, self.texts_of, self.counts[shard])["text"][row])
        return found


@functools.lru_cache(maxsize=64)
def _open_shard(root: str, shard: int, fields: tuple[str, ...], texts: tuple[str, ...], count: int) -> dict[str, Any]:
    """The arrays of a shard, on disk, and its texts.

    Raises:
      UserError: a file is missing, damaged, or has another number of examples.
    """
    folder = Path(root)
    found: dict[str, Any] = {"image": read_npy(folder / f"{shard:05d}.npy", mmap=True)}
    found |= {name: read_npy(folder / f"{shard:05d}.{name}.npy", mmap=True) for name in fields}
    found |= {name: read_json(folder / f"{shard:05d}.{name}.json", list) for name in texts}
    short = [name for name, values in found.items() if len(values) != count]
    if short:
        raise UserError(f"{folder}/{shard:05d}: {short[0]} has {len(found[short[0]])} examples, not {count}: {_AGAIN}")
    return found


@datasets.register("latents")
def open_latents(*, path: str | None = None, split: str = "train", data_dir: str | None = None) -> Dataset:
    """Open prepared latents: dataset='latents:/path/to/folder'.

    Args:
      path: the folder that `experiments.prepare_latents` wrote.
      split: one of the prepared splits.
      data_dir: not used.

    Raises:
      UserError: there is no such folder or split, or it is not finished or damaged.
    """
    if not path or not isinstance(path, str):
        raise UserError("dataset 'latents' needs a path: dataset='latents:/path/to/folder'")
    about = read_about(path)
    if split not in about["splits"]:
        raise UserError(unknown_name(f"split of {path}", split, list(about["splits"])))
    part = about["splits"][split]
    source = LatentSource(
        root=str(expanded(path) / split),
        counts=tuple(part["counts"]),
        shard_size=about["shard_size"],
        fields=tuple(part["fields"]),
        texts_of=tuple(part["texts"]),
    )
    info = DatasetInfo(
        name="latents",
        split=split,
        num_examples=len(source),
        spec=DataSpec(kind="latents", shape=tuple(part["shape"])),
        num_classes=about["pictures"]["num_classes"],
        class_names=tuple(about["pictures"]["class_names"]),
        first_stage=about["first_stage"],
        fields=tuple(name for name in (*part["fields"], *part["texts"]) if name != "label"),
        fingerprint=hashlib.sha256(f"{part['sha256']} {about['first_stage']}".encode()).hexdigest(),
    )
    return Dataset(info=info, source=source)


def read_about(path: str | os.PathLike) -> dict[str, Any]:
    """The content of info.json of prepared latents.

    Raises:
      UserError: there is none, or it is damaged; the message says what is missing.
    """
    folder = expanded(path)
    if not (folder / INFO).is_file():
        begun = (folder / BEGUN).is_file()
        why = "they are not finished: run experiments.prepare_latents again" if begun else f"it has no {INFO}"
        raise UserError(f"no latents in {folder}: {why}")
    about = read_json(folder / INFO)
    try:
        for name, kind in (("first_stage", str), ("shard_size", int), ("splits", dict), ("pictures", dict)):
            if not isinstance(about[name], kind):
                raise TypeError(f"{name} is {about[name]!r}")
        DatasetInfo.from_json(about["pictures"])
        for part in about["splits"].values():
            counts, shape = part["counts"], part["shape"]
            whole = all(isinstance(n, int) and 0 < n <= about["shard_size"] for n in counts) and counts
            if not whole or len(shape) != 3 or any(n != about["shard_size"] for n in counts[:-1]):
                raise TypeError(f"counts {counts} of shape {shape}")
            _ = (list(part["fields"]), list(part["texts"]), part["sha256"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INFO} is damaged: {error}; {_AGAIN}") from error
    return about


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentWriter:
    """Writes one folder of prepared latents.

    Attributes:
      folder: where to write.
      of: description of the latents as plain JSON: data, first stage, format. A folder with another one is refused.
      shard_size: examples in a file.
      number_format: type of the stored numbers.
    """

    folder: Path
    of: Mapping[str, Any]
    shard_size: int
    number_format: Literal["float32", "float16"] = "float32"

    def begin(self) -> bool:
        """Claim the folder; False if it is complete already.

        Raises:
          UserError: it holds other latents, or something else.
        """
        wanted = json.loads(json.dumps(dict(self.of)))
        if (self.folder / INFO).is_file():
            if read_about(self.folder).get("of") != wanted:
                raise UserError(self._other(read_about(self.folder).get("of", {})))
            return False
        if (self.folder / BEGUN).is_file():
            begun = read_json(self.folder / BEGUN)
            if begun != wanted:
                raise UserError(self._other(begun))
            return True
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} holds something else: give another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / BEGUN, json.dumps(wanted, indent=2).encode())
        return True

    def _other(self, there: Mapping[str, Any]) -> str:
        differing = sorted(name for name in {*there, *self.of} if there.get(name) != self.of.get(name))
        return (
            f"{self.folder} holds latents of another {', '.join(differing) or 'kind'}: give another --out, or remove it"
        )

    def missing(self, split: str, count: int) -> Iterator[tuple[int, range]]:
        """Number and examples of each missing shard of a split."""
        for shard in range(-(-count // self.shard_size)):
            if not (self.folder / split / f"{shard:05d}.npy").is_file():
                yield shard, range(shard * self.shard_size, min((shard + 1) * self.shard_size, count))

    def write(self, split: str, shard: int, latents: np.ndarray, fields: Mapping[str, Iterable[Any]]) -> None:
        """Write one shard; the latents come last, so that their presence means that the shard is complete.

        Raises:
          UserError: the latents are not finite, or too large for the format.
        """
        with np.errstate(over="ignore"):  # numbers that are too large become infinite, and are refused
            kept = np.asarray(latents, self.number_format)
        if not np.isfinite(kept).all():
            raise UserError(
                f"latents of shard {shard} of {split} are not finite in {self.number_format}: use --format=float32, or "
                "look for pictures that the first stage encodes as not-a-number"
            )
        folder = self.folder / plain_name("a split", split)
        for name, values in fields.items():
            values, stem = list(values), f"{shard:05d}.{plain_name('a field', name)}"
            if all(isinstance(value, str) for value in values):
                replace_file(folder / f"{stem}.json", json.dumps(values, ensure_ascii=False).encode())
            else:
                array = np.stack([np.asarray(value) for value in values])
                whole = np.issubdtype(array.dtype, np.integer)
                replace_file(folder / f"{stem}.npy", _npy(array.astype(np.int32) if whole else array))
        replace_file(folder / f"{shard:05d}.npy", _npy(kept))

    def finish(self, pictures: DatasetInfo, first_stage: str, counts: Mapping[str, int], **more: Any) -> None:
        """Write info.json, which marks the data set as finished."""
        splits = {split: self._described(split, count) for split, count in counts.items()}
        about = {
            "of": json.loads(json.dumps(dict(self.of))),
            "first_stage": first_stage,
            "format": self.number_format,
            "shard_size": self.shard_size,
            "pictures": dataclasses.asdict(pictures),
            "splits": splits,
            **more,
        }
        replace_file(self.folder / INFO, (json.dumps(about, indent=2) + "\n").encode())
        (self.folder / BEGUN).unlink(missing_ok=True)

    def _described(self, split: str, count: int) -> dict[str, Any]:
        folder, digest = self.folder / split, hashlib.sha256()
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        for file in files:
            digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        first = [file.name.removeprefix("00000.") for file in files if file.name.startswith("00000.")]
        shape = read_npy(folder / "00000.npy", mmap=True).shape[1:]
        return {
            "counts": [min(self.shard_size, count - start) for start in range(0, count, self.shard_size)],
            "shape": list(shape),
            "fields": [name.removesuffix(".npy") for name in first if name.endswith(".npy") and name != "npy"],
            "texts": [name.removesuffix(".json") for name in first if name.endswith(".json")],
            "sha256": digest.hexdigest(),
        }


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
