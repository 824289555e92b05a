"""Random-access sources of examples, and the function that opens any of them by name.

A source has `__len__` and `__getitem__(i) -> {"image": uint8 [height, width, channels], "label": int}`; a data set
without classes has no "label". Latents are float32 instead of uint8; text is int32 [length, 1, 1], the numbers of its
tokens. Captioned data has "text", a str. Names registered here (`arrow`, `digits`, `folder`, `glyphs`, `latents`,
`parquet`, `scenes`, `scene_edits`, `subject`, `synthetic_latents`, `text`, `webdataset`) are our own; every other name
is a data set of TensorFlow Datasets.
"""

import dataclasses
import errno
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, Shaped

from diffusion_jax.domains import check_arguments
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded
from diffusion_jax.registry import Registry, unknown_name
from diffusion_jax.specs import DataSpec

Example = dict[str, Any]
Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to examples. `__getitems__(indices) -> list`, if it exists, reads many at once, and
    `texts(indices) -> list[str]` only their captions.

    An OSError means that the storage failed temporarily: the pipeline tries again. Lasting errors, such as a damaged
      file,
    are a UserError.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Tokenizer(Protocol):
    """Text to numbers and back.

    Attributes:
      size: size of the vocabulary.
      begin, end: tokens that frame an example; `end` also ends a document; None if there are none.
    """

    size: int
    begin: int | None
    end: int | None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of these tokens."""


def storage_failed(error: Exception) -> bool:
    """Whether the system reported a failed read, rather than a missing file or wrong content."""
    wrong = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
    lasting = (None, errno.ELOOP, errno.ENAMETOOLONG)
    return isinstance(error, OSError) and error.errno not in lasting and not isinstance(error, wrong)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The description of a split, known before any example is read.

    Attributes:
      name: name of the data set.
      split: the split as requested.
      num_examples: number of examples in the split.
      spec: kind and shape of an example.
      num_classes: number of classes, 0 if the data has none.
      class_names: their names, () if the data has no classes.
      first_stage: for prepared latents, the fingerprint of the first stage that made them; else "".
      fields: raw fields of an example besides image and label, such as "text", a caption.
      num_prior: how many of the examples, at the end, show the class of a subject and not the subject itself; the two
        alternate, so that they are every second example of a batch.
      fingerprint: a hash of the content, wherever the data lies; "" if it is not known, as for data that is not
        prepared and in what earlier versions wrote.
    """

    name: str
    split: str
    num_examples: int
    spec: DataSpec
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    first_stage: str = ""
    fingerprint: str = ""
    fields: tuple[str, ...] = ()
    num_prior: int = 0

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "DatasetInfo":
        """Read the JSON of `dataclasses.asdict`, also in the form of earlier versions.

        Raises:
          TypeError, KeyError or AttributeError: the fields or their types are wrong.
        """
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        if "spec" not in given:  # earlier versions described an example by three fields
            kind = {"uint8": "pixels", "float32": "latents", "int32": "tokens"}[given.pop("dtype", "uint8")]
            shape, values = given.pop("image_shape"), given.pop("vocabulary", 0)
            given["spec"] = {"kind": kind, "shape": shape, "num_values": values}
        spec = dict(given.pop("spec").items())
        return cls(**given, spec=DataSpec(**{**spec, "shape": tuple(spec["shape"])}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """An opened split: its description, its examples and, for text, the meaning of the tokens.

    `prompts` are texts to draw samples for, each with what a picture must show; their `requires` says whether that is a
    "scene" or a "word"; () if the data has none.
    `edits` describes the edits of its pairs (`scenes.edits.EditSource`); None if the data has none.
    `remarks` are notes on the data, to be printed before training.
    `sizes` gives height and width of every picture, [examples, 2]; None if all have one size.
    `kinds` numbers what pictures show, for judges of data without classes: indices -> int32 [n]; None if it is unknown.
    """

    info: DatasetInfo
    source: Source
    tokenizer: "Tokenizer | None" = None
    prompts: Sequence[Any] = ()
    edits: Any = None
    remarks: tuple[str, ...] = ()
    sizes: Callable[[], np.ndarray] | None = None
    kinds: Callable[[Sequence[int]], np.ndarray] | None = None


AT_A_PATH = ("folder", "latents", "parquet", "arrow", "webdataset")
"""Data sets that lie where their name says: "folder:/path/to/images", "latents:/path/to/folder", "parquet:/path"."""

datasets: Registry[Dataset] = Registry("dataset")
"""Our own data sets: name -> opener(split, data_dir, **options) -> Dataset."""

describers: dict[str, Callable[..., DatasetInfo]] = {}
"""Those that can be described before they are prepared: name -> describe(split, data_dir, **options)."""


def default_data_dir() -> str:
    """The directory of prepared data: the environment's TFDS_DATA_DIR, else `data` in the current directory."""
    return os.environ.get("TFDS_DATA_DIR") or "data"


def open_dataset(name: str, *, split: str = "train", data_dir: str | None = None, **options: Any) -> Dataset:
    """Open one split of a data set; this is cheap and reads no example.

    Args:
      name: one of `datasets`, `folder:/path/to/images` (so for all of `AT_A_PATH`), or any TFDS name ("cifar10",
        "lsun/bedroom", "mnist:3.0.1").
      split: a split, or a slice of one in TFDS notation ("train[:90%]").
      data_dir: TFDS directory; None takes `default_data_dir()`.
      **options: arguments of the opener, for example `path` of "folder" or `label_key` of TFDS data.

    Raises:
      UserError: the name, option or split is unknown, or the data is missing or not prepared.
    """
    name, data_dir, options = resolved(name, data_dir, options)
    if name in datasets:
        return datasets.build({"name": name, **options}, split=split, data_dir=data_dir)
    from diffusion_jax.data import tfds_source  # imports TFDS

    return tfds_source.open_tfds(name, split=split, data_dir=data_dir, **options)


def describe_dataset(name: str, *, split: str = "train", data_dir: str | None = None, **options: Any) -> DatasetInfo:
    """The description of a split, like `open_dataset`; a data set of TFDS, or a text, need not be prepared."""
    name, data_dir, options = resolved(name, data_dir, options)
    describe = describers.get(name)
    if describe:
        known = [key for key in inspect.signature(datasets[name]).parameters if key not in ("split", "data_dir")]
        for key in options:
            if key not in known:
                raise UserError(unknown_name(f"option of dataset {name!r}", key, known))
        check_arguments(f"dataset {name!r}", datasets[name], options)
        return describe(split=split, data_dir=data_dir, **options)
    if name in datasets:
        return open_dataset(name, split=split, data_dir=data_dir, **options).info
    from diffusion_jax.data import tfds_source  # imports TFDS

    return tfds_source.describe_tfds(name, split=split, data_dir=data_dir, **options)


def resolved(name: str, data_dir: str | None, options: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Name, directory and options without abbreviations; options of TFDS data are checked."""
    for kind in AT_A_PATH:
        if name.startswith(f"{kind}:"):
            name, options = kind, {"path": name.removeprefix(f"{kind}:"), **options}
    if name not in datasets and options:
        from diffusion_jax.data import tfds_source  # imports TFDS

        known = [key for key in inspect.signature(tfds_source.open_tfds).parameters if key.endswith("_key")]
        for key in options:
            if key not in known:
                raise UserError(unknown_name(f"option of dataset {name!r}", key, known))
    return name, str(expanded(data_dir or default_data_dir())), options


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Examples in memory; a whole batch is read with one indexing operation.

    Attributes:
      images: all images.
      labels: their classes, if they have any.
      fields: prepared raw fields by name, [examples, ...].
    """

    images: Shaped[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"] | None = None
    fields: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        example: Example = {"image": self.images[index]}
        return example if self.labels is None else {**example, "label": int(self.labels[index])}

    def read(self, indices: Sequence[int] | Int[np.ndarray, " batch"]) -> Batch:
        """The examples at `indices`, stacked."""
        batch = {"image": self.images[indices], **{name: values[indices] for name, values in self.fields.items()}}
        return batch if self.labels is None else {**batch, "label": self.labels[indices]}


@dataclasses.dataclass(frozen=True)
class SyntheticLatents:
    """A class-conditional Gaussian mixture in latent space: synthetic data for planning and timing.

    Example i has label i mod num_classes and is mean[label] / sqrt(2) + noise / sqrt(2), both unit Gaussian, so the
    whole has unit variance. Every example is a function of (seed, index).
    """

    num_examples: int
    size: int
    channels: int
    num_classes: int
    seed: int

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Example:
        label = index % self.num_classes
        latent = (self._normal(0, label) + self._normal(1, index)) * np.float32(0.5**0.5)
        return {"image": latent, "label": label}

    def _normal(self, stream: int, index: int) -> np.ndarray:
        bits = np.random.Philox(key=self.seed + (stream << 64), counter=index << 128)
        return np.random.Generator(bits).standard_normal((self.size, self.size, self.channels), np.float32)


@datasets.register("synthetic_latents", example={"num_examples": 8, "size": 4, "num_classes": 3})
def open_synthetic_latents(
    *,
    split: str = "train",
    data_dir: str | None = None,
    num_examples: int = 1024,
    size: int = 32,
    channels: int = 4,
    num_classes: int = 1000,
    seed: int = 0,
) -> Dataset:
    """Synthetic latents [size, size, channels] with labels (see `SyntheticLatents`); splits differ only in their
    seed."""
    if min(num_examples, size, channels, num_classes) < 1:
        raise UserError("synthetic_latents: num_examples, size, channels and num_classes must be at least 1")
    if split not in ("train", "test"):
        raise UserError(f"synthetic_latents has the splits 'train' and 'test', not {split!r}")
    source = SyntheticLatents(num_examples, size, channels, num_classes, seed=2 * seed + (split == "test"))
    info = DatasetInfo(
        name="synthetic_latents",
        split=split,
        num_examples=num_examples,
        spec=DataSpec(kind="latents", shape=(size, size, channels)),
        num_classes=num_classes,
        class_names=tuple(str(i) for i in range(num_classes)),
        fingerprint=hashlib.sha256(repr(source).encode()).hexdigest(),
    )
    return Dataset(info=info, source=source)


@dataclasses.dataclass(frozen=True)
class Inverted:
    """A source with inverted pictures, light where they were dark."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Many at once."""
        read_many = getattr(self.source, "__getitems__", None)
        examples = read_many(indices) if read_many else [self.source[int(i)] for i in indices]
        return [{**example, "image": 255 - example["image"]} for example in examples]


@datasets.register("digits")
def open_digits(*, split: str = "train", data_dir: str | None = None, inverted: bool = False) -> Dataset:
    """scikit-learn's 1797 real 8x8 digits; prepared on the spot if necessary (about 2 s, no network).

    Args:
      split: "train", "test", or a slice of one in TFDS notation.
      data_dir: directory in which they are prepared.
      inverted: draw dark digits on a light ground instead of light on dark: another data set of the same subjects.
    """
    from diffusion_jax.data import builders, tfds_source  # imports TFDS, and registers "digits" there

    data_dir = str(expanded(data_dir or default_data_dir()))
    if not tfds_source.is_prepared(tfds_source.get_builder("digits", data_dir)):
        builders.prepare("digits", data_dir, progress=False)
    opened = tfds_source.open_tfds("digits", split=split, data_dir=data_dir)
    if not inverted:
        return opened
    of = f"{opened.info.fingerprint} inverted"
    info = dataclasses.replace(opened.info, fingerprint=hashlib.sha256(of.encode()).hexdigest())
    return dataclasses.replace(opened, info=info, source=Inverted(opened.source))
