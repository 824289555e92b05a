"""Examples from storage: decoded and cropped on access, read again if storage fails, many at once."""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging
from jaxtyping import Int

from diffusion_jax.data import transforms
from diffusion_jax.data.sources import ArraySource, Batch, Example, Source
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.specs import CONTROL, FRAME


class Preparation(Protocol):
    """Turns raw fields of examples into arrays [examples, ...], each example by itself.

    Attributes:
      reads: names of the raw fields.
    """

    reads: tuple[str, ...]

    def __call__(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]: ...

    def beside(self, shape: tuple[int, ...]) -> "Preparation":
        """The same beside pictures of this shape."""
        ...


PAUSES = (0.1, 1.0, 5.0)  # seconds before a failed read is repeated


@dataclasses.dataclass(frozen=True, eq=False)
class TransformedSource:
    """A source whose images are converted and cropped on access, and whose other raw fields are prepared.

    Attributes:
      source: source of the examples.
      crop: the crop for images.
      shape, dtype: form of a cropped image.
      prepare: prepares raw fields such as texts; without it they are dropped.
    """

    source: Source
    crop: transforms.Crop
    shape: tuple[int, int, int]
    dtype: np.dtype
    prepare: Preparation | None = None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int] | Int[np.ndarray, " batch"]) -> Batch:
        """The examples at `indices`, stacked."""
        examples = _patiently(self._examples, indices)
        images = np.empty((len(examples), *self.shape), self.dtype)
        for image, example in zip(images, examples, strict=True):
            image[...] = self._converted(example["image"])
        batch = {"image": images}
        if self.prepare is not None:
            batch |= self.prepare({name: self._raw(name, examples) for name in self.prepare.reads})
        if not examples or "label" not in examples[0]:
            return batch
        return {**batch, "label": np.array([example["label"] for example in examples], np.int32)}

    def _raw(self, name: str, examples: Sequence[Example]) -> list[Any]:
        """One raw field of the examples; pictures are cropped."""
        if name == FRAME:
            return [self._frame(example) for example in examples]
        values = [example[name] for example in examples]
        what = {"image": "an image", CONTROL: "a control picture"}.get(name)
        return values if what is None else [self._converted(value, what) for value in values]

    def texts(self, indices: Sequence[int] | Int[np.ndarray, " batch"]) -> list[str]:
        """The unchanged captions of the examples at `indices`."""
        alone = getattr(self.source, "texts", None)
        if alone is not None:
            return alone(indices)
        return [example["text"] for example in _patiently(self._examples, indices)]

    def read_whole(self, indices: Sequence[int] | Int[np.ndarray, " batch"]) -> list[Example]:
        """The examples at `indices` with every field of the source."""
        examples = _patiently(self._examples, indices)
        shown = [name for name in ("image", CONTROL) if examples and name in examples[0]]
        return [{**one, **{name: self._raw(name, [one])[0] for name in shown}} for one in examples]

    def _frame(self, example: Example) -> tuple[int, ...]:
        """How a picture was cropped, computed here if the source does not say it."""
        if FRAME in example:
            return example[FRAME]
        height, width = example["image"].shape[:2]
        return (height, width, *self.crop.start(height, width))

    def _converted(self, image: np.ndarray, what: str = "an image") -> np.ndarray:
        converted = self.crop(transforms.with_channels(image, self.shape[-1]))
        if converted.shape != self.shape or converted.dtype != self.dtype:
            raise UserError(
                f"{what} is {converted.dtype} {converted.shape} where {self.dtype} {self.shape} is expected"
            )
        return converted

    def _examples(self, indices: Sequence[int] | Int[np.ndarray, " batch"]) -> list[Example]:
        read_many = getattr(self.source, "__getitems__", None)
        return read_many(indices) if read_many else [self.source[int(i)] for i in indices]


def _patiently(read: Callable[[Any], list[Example]], indices: Any) -> list[Example]:
    """Read from storage that may fail temporarily, as network file systems do.

    Raises:
      RunError: it failed repeatedly.
    """
    for pause in PAUSES:
        try:
            return read(indices)
        except OSError as error:
            logging.warning("the data could not be read, trying again in %g s: %s", pause, error)
            time.sleep(pause)
    try:
        return read(indices)
    except OSError as error:
        raise RunError(f"the data could not be read, {len(PAUSES) + 1} times in {sum(PAUSES):g} s: {error}") from error


def read_all(
    source: ArraySource | TransformedSource,
    indices: Int[np.ndarray, " n"],
    chunk: int = 256,
    *,
    file: Path | None = None,
) -> Batch:
    """The examples at `indices`, decoded by several threads; the images go into a file if one is named."""
    if file is None and (isinstance(source, ArraySource) or len(indices) <= chunk):
        return source.read(indices)
    example = source.read(indices[:1])

    def room(key: str, value: np.ndarray) -> np.ndarray:
        shape = (len(indices), *value.shape[1:])
        if file is None or key != "image":
            return np.empty(shape, value.dtype)
        file.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(file, mode="w+", dtype=value.dtype, shape=shape)

    whole = {key: room(key, value) for key, value in example.items()}

    def fill(start: int) -> None:
        for key, value in source.read(indices[start : start + chunk]).items():
            whole[key][start : start + chunk] = value

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(0, len(indices), chunk)):
            pass  # raises the exception of a thread
    return whole


def held(source: TransformedSource) -> ArraySource:
    """All examples, in memory."""
    batch = read_all(source, np.arange(len(source)))
    fields = {name: values for name, values in batch.items() if name not in ("image", "label")}
    return ArraySource(batch["image"], batch.get("label"), fields)
