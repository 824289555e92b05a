"""One host's rows of the batch for any step, computed from the step and the seed."""

import dataclasses
import functools
import sys

import numpy as np
from jaxtyping import Int

from diffusion_jax.data import transforms
from diffusion_jax.data.augmentation import WORDS, Augmentation
from diffusion_jax.data.holes import Holes, NoHoles, hole_words
from diffusion_jax.data.order import AUGMENT, in_order, in_turns, random_bits
from diffusion_jax.data.reading import TransformedSource
from diffusion_jax.data.sources import ArraySource, Batch
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_npy
from diffusion_jax.specs import PRIOR


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchReader:
    """Random-access source: element s is one host's rows of the global batch for step s."""

    source: ArraySource | TransformedSource
    num_examples: int
    batch_size: int
    first_row: int
    num_rows: int
    seed: int
    shuffle: bool
    flip: bool
    augmentation: Augmentation
    augment: bool = True
    features: str = ""
    holes: Holes = dataclasses.field(default_factory=NoHoles)
    num_positions: int | None = None  # None: infinitely many
    num_prior: int = 0

    @property
    def in_memory(self) -> bool:
        """Whether no example is decoded when it is read; then threads would cost more than they save."""
        return isinstance(self.source, ArraySource)

    def __len__(self) -> int:
        return sys.maxsize if self.num_positions is None else -(-self.num_positions // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        start = int(step) * self.batch_size + self.first_row
        stop = start + self.num_rows
        if self.num_positions is not None:
            start, stop = min(start, self.num_positions), min(stop, self.num_positions)
        examples = self.examples(start, stop)
        read = self.source.read(examples)
        image = read["image"]
        if self.flip and self.augment:
            image = transforms.random_flip(image, random_bits(self.seed, start, stop)[:, 0])
        if image.dtype == np.uint8:
            image = transforms.to_unit_range(image)
        batch = {}
        if labels := self.augmentation.num_labels:
            batch["augment"] = np.zeros((stop - start, labels), np.float32)
            if self.augment:
                words = random_bits(self.seed, start, stop, stream=AUGMENT, words=WORDS)
                image, batch["augment"] = self.augmentation(image, words)
        batch["data"] = np.ascontiguousarray(image)
        if self.holes.any:
            batch["mask"] = self.holes(hole_words(self.seed, start, stop), *image.shape[1:3])
        if self.features:
            batch["features"] = open_features(self.features)[examples].astype(np.float32)
        batch |= {name: values for name, values in read.items() if name not in ("image", "label")}
        if self.num_prior:
            batch[PRIOR] = (np.arange(start, stop) % 2).astype(np.float32)
        return {**batch, "label": read["label"].astype(np.int32)} if "label" in read else batch

    def examples(self, start: int, stop: int) -> Int[np.ndarray, " positions"]:
        """The examples at the global positions start..stop-1, equation (1)."""
        positions, seed = np.arange(start, stop, dtype=np.int64), self.seed if self.shuffle else None
        if self.num_prior:
            return in_turns(positions, (self.num_examples - self.num_prior, self.num_prior), seed)
        return in_order(positions, self.num_examples, seed)


@functools.lru_cache(maxsize=4)
def open_features(path: str) -> np.ndarray:
    """Open a file of features on disk; raises UserError if it has another form."""
    try:
        found = read_npy(path, mmap=True)
    except UserError as error:
        raise UserError(f"cannot read data.features={path}: {error}") from error
    if found.ndim != 3 or found.dtype.kind != "f":
        raise UserError(
            f"data.features={path} is {found.dtype} of shape {found.shape}, not floats [examples, tokens, channels]"
        )
    return found
