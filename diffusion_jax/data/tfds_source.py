"""Any data set of TensorFlow Datasets as a random-access source, read from array_record files without TensorFlow.

Opening never downloads and never prepares (TFDS's own `tfds.data_source` would, and fails half-way without TensorFlow):
missing data is a UserError that names the command which prepares it.
"""

import dataclasses
import difflib
import glob
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format, message
from tensorflow_datasets.core import read_only_builder

from diffusion_jax.data import emoji_builder as _emoji  # noqa: F401  registers "emoji" with TFDS
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets, storage_failed
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json, regular_file, sampled_digest
from diffusion_jax.specs import DataSpec


def _is_not_tfds_noise(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or "tensorflow_datasets" not in record.pathname


logging.getLogger("absl").addFilter(_is_not_tfds_noise)

_MOST_PER_BYTE = 8  # examples per byte; a description of more than files can hold is refused
_MEND = "remove the directory of that dataset and prepare it again"
_DAMAGED = (
    ValueError, RuntimeError, AssertionError, KeyError, IndexError, TypeError, AttributeError, OverflowError,
    MemoryError, SyntaxError, OSError, message.Error,
)  # fmt: skip
"""The exceptions of TFDS, protobuf, array_record and picture decoders for damaged files."""


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """Examples of a TFDS data source with its features renamed to "image", "label" and "text"."""

    records: Sequence[dict[str, Any]]
    directory: str
    image_key: str
    label_key: str | None
    text_key: str | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        try:
            records = self.records.__getitems__([int(i) for i in indices])
        except _DAMAGED as error:
            if storage_failed(error):
                raise
            raise UserError(
                f"cannot read the data in {self.directory}: {_first_line(error)}; "
                "if a file is damaged, remove that directory and prepare it again"
            ) from error
        return [self._rename(record) for record in records]

    def _rename(self, record: dict[str, Any]) -> Example:
        example: Example = {"image": record[self.image_key]}
        if self.text_key is not None:
            example["text"] = record[self.text_key].decode(errors="replace")
        return example if self.label_key is None else {**example, "label": int(record[self.label_key])}


def open_tfds(
    name: str,
    *,
    split: str = "train",
    data_dir: str,
    image_key: str = "image",
    label_key: str | None = "label",
    text_key: str | None = "text",
) -> Dataset:
    """Open one split of a prepared TFDS data set.

    Args:
      name: TFDS name, optionally with config and version: "lsun/church_outdoor:3.1.0".
      split: TFDS split: "train", "train[:90%]".
      data_dir: directory in TFDS's layout, data_dir/name/[config/]version.
      image_key: the feature that holds the image.
      label_key: the feature that holds the class; a data set without a feature "label" has no classes.
      text_key: the feature that holds the caption; a data set without a feature "text" has no captions.

    Raises:
      UserError: the data set, split or feature is unknown, or the data is not prepared as array_record.
    """
    builder = get_builder(name, data_dir)
    info, label_key, text_key = _describe(builder, name, split, image_key, label_key, text_key)
    _require_regular(str(builder.data_dir))
    try:
        records = builder.as_data_source(split)
    except _DAMAGED as error:
        require_prepared(name, builder, data_dir)
        raise UserError(f"dataset {name!r}, split {split!r}, in {builder.data_dir}: {_first_line(error)}") from error
    if len(records) > _MOST_PER_BYTE * _bytes_in(str(builder.data_dir)):
        raise UserError(
            f"{builder.data_dir} is described as {len(records):,} examples, which its files cannot hold; {_MEND}"
        )
    info = dataclasses.replace(info, num_examples=len(records), fingerprint=_fingerprint(builder, split))
    return Dataset(info=info, source=TfdsSource(records, str(builder.data_dir), image_key, label_key, text_key))


def describe_tfds(
    name: str,
    *,
    split: str = "train",
    data_dir: str,
    image_key: str = "image",
    label_key: str | None = "label",
    text_key: str | None = "text",
) -> DatasetInfo:
    """The description of a TFDS data set from its code, prepared or not; arguments and errors are those of `open_tfds`.

    `num_examples` is 0 if only the files would tell.
    """
    builder = get_builder(name, data_dir)
    info, _, _ = _describe(builder, name, split, image_key, label_key, text_key)
    try:
        number = builder.info.splits[split].num_examples
        return dataclasses.replace(info, num_examples=number, fingerprint=_fingerprint(builder, split))
    except (KeyError, ValueError):
        return info


def _describe(
    builder: tfds.core.DatasetBuilder,
    name: str,
    split: str,
    image_key: str,
    label_key: str | None,
    text_key: str | None,
) -> tuple[DatasetInfo, str | None, str | None]:
    """All but the number of examples, and the features that hold class and caption, if any."""
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise UserError(f"dataset {name!r} in {builder.data_dir} has no features by name: {features}")
    label_key = None if label_key == "label" and "label" not in features else label_key
    has_captions = "text" in features and isinstance(features["text"], tfds.features.Text)
    text_key = None if text_key == "text" and not has_captions else text_key
    for key in (image_key, *(key for key in (label_key, text_key) if key)):
        if not isinstance(key, str) or key not in builder.info.features:
            raise UserError(f"dataset {name!r} has no feature {key!r}; it has {', '.join(builder.info.features)}")
    label = builder.info.features[label_key] if label_key else None
    if label_key and not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"feature {label_key!r} of dataset {name!r} is not a class label: {label}")
    if text_key and not isinstance(features[text_key], tfds.features.Text):
        raise UserError(f"feature {text_key!r} of dataset {name!r} is not a text: {features[text_key]}")
    image = builder.info.features[image_key]
    if not isinstance(image.shape, tuple) or len(image.shape) != 3 or image.np_dtype != np.uint8:
        raise UserError(f"feature {image_key!r} of dataset {name!r} is not an image with 8 bits per channel: {image}")
    info = DatasetInfo(
        name=name,
        split=split,
        num_examples=0,
        spec=DataSpec(kind="pixels", shape=image.shape),
        num_classes=label.num_classes if label else 0,
        class_names=tuple(label.names) if label else (),
        fields=("text",) if text_key else (),
    )
    return info, label_key, text_key


def _fingerprint(builder: tfds.core.DatasetBuilder, split: str) -> str:
    """A hash that identifies the examples and their order.

    It covers name, config and version; the checksums that TFDS requires of the original files or, for a data set
    unknown to TFDS, the content of the files (see `files.sampled_digest`); and how the examples are split into files.
    """
    splits = {name: list(info.shard_lengths) for name, info in sorted(builder.info.splits.items())}
    sources = {url: info.checksum for url, info in sorted((builder.url_infos or {}).items())}
    if isinstance(builder, read_only_builder.ReadOnlyBuilder) and "://" not in str(builder.data_dir):
        directory = Path(str(builder.data_dir))
        shards = [path for path in sorted(directory.iterdir()) if path.suffix != ".json"]
        sources = {path.name: sampled_digest(path) for path in shards if path.is_file()}
    found = [builder.info.full_name, split, splits, sources]
    return hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()


def _require_regular(directory: str) -> None:
    """Refuse anything but a regular file where TFDS would open it, such as a pipe, on which it would wait."""
    if "://" not in directory and os.path.isdir(directory):
        for entry in os.scandir(directory):
            if not os.path.isdir(entry.path):
                regular_file(entry.path)


def _bytes_in(directory: str) -> float:
    """The bytes of the files in a directory; infinite if it is not on this machine."""
    if not os.path.isdir(directory):
        return float("inf")
    return sum(entry.stat().st_size for entry in os.scandir(directory))


def _require_sound(base: str, data_dir: str) -> None:
    """Refuse descriptions of a data set that are no JSON, naming the file, which TFDS does not."""
    if "://" in data_dir or not re.fullmatch(r"\w+", base):
        return
    root = Path(data_dir, base)
    for pattern in ("*/dataset_info.json", "*/*/dataset_info.json"):
        for path in (root / name for name in sorted(glob.glob(pattern, root_dir=root))):
            try:
                _require_regular(str(path.parent))
                for described in (path, path.with_name("features.json")):
                    if described.exists():
                        read_json(described)
            except UserError as error:
                raise UserError(f"{error}; {_MEND}") from error


def get_builder(name: str, data_dir: str, **arguments: Any) -> tfds.core.DatasetBuilder:
    """TFDS's builder of a data set, from its code or from the files in `data_dir`.

    Raises:
      UserError: there is no such data set; the message gives the nearest names.
    """
    base = name.split("/")[0].split(":")[0]
    _require_sound(base, data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir, **arguments)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(_unknown(name, base)) from error
    except json_format.Error as error:
        raise UserError(
            f"the description of dataset {name!r} in {data_dir} is damaged: {_first_line(error)}; {_MEND}"
        ) from error
    except _DAMAGED as error:  # a malformed name, or an unknown config or version
        if base not in tfds.list_builders(with_community_datasets=False):
            raise UserError(_unknown(name, base)) from error
        configs = ", ".join(tfds.builder_cls(base).builder_configs)
        raise UserError(
            f"dataset {name!r}: {_first_line(error)}{f'; its configs are {configs}' if configs else ''}"
        ) from error


def _unknown(name: str, base: str) -> str:
    """One line with the nearest names."""
    known = [*datasets, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(base, known, n=3, cutoff=0.5)
    hint = f"; the nearest are {', '.join(dict.fromkeys(near))}" if near else ""
    return f"unknown dataset {name!r}{hint} (any TFDS name, {', '.join(datasets)})"


def require_prepared(name: str, builder: tfds.core.DatasetBuilder, data_dir: str) -> None:
    """Raise a UserError with the remedy if a data set is not on disk, or in a format without random access."""
    if not is_prepared(builder):
        raise UserError(
            f"dataset {name!r} is not prepared in {data_dir}; run: "
            f"python -m experiments.prepare_data --dataset={name} --data_dir={data_dir}"
        )
    file_format = read_json(str(builder.data_path / "dataset_info.json")).get("fileFormat", "tfrecord")
    if file_format not in ("array_record", "parquet"):
        raise UserError(
            f"dataset {name!r} is in {builder.data_dir} as {file_format}, which has no random access; prepare it "
            "as array_record in another directory: "
            f"python -m experiments.prepare_data --dataset={name} --data_dir=ANOTHER_DIRECTORY"
        )


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the builder's directory holds a finished data set."""
    return (builder.data_path / "dataset_info.json").exists()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
