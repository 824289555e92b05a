"""Pictures of several shapes: each goes to the bucket whose shape is nearest, and a batch is of one bucket.

So shapes are static, and a step has one compiled program for each bucket. With n_b examples in bucket b, N in all, the
batches of all buckets take turns by when they are due: batch k of bucket b at the time

    (2 k + 1) / (2 n_b)        (1)

counted in batches' worth of epochs, ties to the first bucket. The bucket of step s, and which of its batches it is,
follow from s and the numbers n_b alone, so that a run goes on at any step. After N steps bucket b has had n_b batches:
every example was read equally often, none twice before all of its bucket were read once.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from diffusion_jax.data.batch_reader import BatchReader
from diffusion_jax.data.reading import Preparation, TransformedSource
from diffusion_jax.data.sources import Batch, Dataset, DatasetInfo, Example, Source
from diffusion_jax.data.transforms import Cover
from diffusion_jax.errors import UserError

Sides = tuple[int, int]
"""Height and width in pixels."""
MOST_SIDE = 2**14


def sides_of(texts: Sequence[str], field: str) -> tuple[Sides, ...]:
    """Heights and widths, from texts such as "192x320".

    Raises:
      UserError: a text that is none, or one that is there twice; the message names the field.
    """
    found = []
    for text in texts:
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text) if isinstance(text, str) else None
        if match is None or max(map(int, match.groups())) > MOST_SIDE:
            raise UserError(f"{field} has {text!r}, which is not a height and width in pixels such as '192x320'")
        found.append((int(match[1]), int(match[2])))
    if len(set(found)) < len(found):
        raise UserError(f"{field} has a size twice: name each once")
    return tuple(found)


def nearest(sizes: Int[np.ndarray, "n 2"], buckets: Sequence[Sides]) -> Int[np.ndarray, " n"]:
    """The bucket of every picture: that of the nearest aspect ratio, and of several the one of the nearest area."""
    heights, widths = np.log(np.asarray(sizes, np.float64)).T
    rows, columns = np.log(np.asarray(buckets, np.float64)).T
    shape = np.abs((widths - heights)[:, None] - (columns - rows))
    area = np.abs((widths + heights)[:, None] - (columns + rows))
    return np.where(shape <= shape.min(1, keepdims=True) + 1e-9, area, np.inf).argmin(1)


def turn(step: int, counts: Sequence[int]) -> tuple[int, int]:
    """The bucket of a step, and which of the bucket's batches it is, counted from 0: equation (1)."""
    total = sum(counts)
    done = [(2 * step * count + total) // (2 * total) for count in counts]  # due by step / total, but for a few

    def due(bucket: int, batch: int) -> tuple[Fraction, int]:
        return Fraction(2 * batch + 1, 2 * counts[bucket]), bucket

    while sum(done) > step:
        last = max((bucket for bucket in range(len(counts)) if done[bucket]), key=lambda b: due(b, done[b] - 1))
        done[last] -= 1
    while sum(done) < step:
        done[min(range(len(counts)), key=lambda b: due(b, done[b]))] += 1
    bucket = min(range(len(counts)), key=lambda b: due(b, done[b]))
    return bucket, done[bucket]


def bucket_seed(seed: int, sides: Sides) -> int:
    """The seed of a bucket's order and flips, which the other buckets do not change."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sides[0]}x{sides[1]}".encode()).digest()[:8], "big")


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """Some examples of a source, by their numbers there."""

    source: Source
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[Example]:
        """Many at once, where the source can."""
        there = self.indices[np.asarray(indices, np.int64)]
        if hasattr(self.source, "__getitems__"):
            return self.source.__getitems__(there)
        return [self.source[int(index)] for index in there]


@dataclasses.dataclass(frozen=True, eq=False)
class BucketReader:
    """Random access to batches of several shapes: element s is one host's rows of the batch of step s."""

    readers: tuple[BatchReader, ...]

    def __len__(self) -> int:
        return len(self.readers[0])

    @property
    def counts(self) -> tuple[int, ...]:
        """Examples of each bucket."""
        return tuple(reader.num_examples for reader in self.readers)

    @property
    def in_memory(self) -> bool:
        """Whether no example is decoded when it is read."""
        return all(reader.in_memory for reader in self.readers)

    def __getitem__(self, step: int) -> Batch:
        bucket, batch = turn(int(step), self.counts)
        return self.readers[bucket][batch]


def cover_of(sides: Sides) -> Cover:
    """What brings a picture to the shape of a bucket."""
    return Cover(height=sides[0], width=sides[1])


def bucketed(
    opened: Dataset, info: DatasetInfo, buckets: Sequence[Sides], prepare: Preparation | None
) -> dict[Sides, TransformedSource]:
    """The examples of each bucket that has any, cut to its shape.

    Raises:
      UserError: data that is no pictures, or of a subject and its class.
    """
    if info.spec.kind != "pixels" or info.num_prior:
        what = info.spec.kind if info.spec.kind != "pixels" else "a subject and its class"
        raise UserError(f"data.buckets need pictures, but the data is {what}: leave data.buckets out")
    sizes = np.tile(info.spec.shape[:2], (info.num_examples, 1)) if opened.sizes is None else opened.sizes()
    which, found = nearest(sizes, buckets), {}
    for number, sides in enumerate(buckets):
        indices, shape = np.flatnonzero(which == number), (*sides, info.spec.shape[-1])
        if indices.size:
            told = prepare and prepare.beside(shape)
            source = Chosen(opened.source, indices)
            found[sides] = TransformedSource(source, cover_of(sides), shape, info.spec.stored_dtype, told)
    return found
