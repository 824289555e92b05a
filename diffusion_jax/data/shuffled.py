"""A control for models that draw from text: captions that belong to other examples.

Example i keeps its picture and gets the caption of example (i + s) mod n, where s is drawn once from 1 ... n - 1. Every
caption is as frequent as before, and says nothing about its picture. A network then learns of pictures what it can
learn without words, and its samples fit their prompts only by chance.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from diffusion_jax.data.sources import Dataset, Example, Source
from diffusion_jax.errors import UserError

_STREAM = 3  # (seed, stream), which the pipeline does not use


@dataclasses.dataclass(frozen=True)
class ShuffledCaptions:
    """A source whose examples have the captions of other examples.

    Attributes:
      source: source of examples with the field "text".
      distance: distance to the example whose caption is taken, 1 ... len - 1.
    """

    source: Source
    distance: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Many at once."""
        read_many = getattr(self.source, "__getitems__", None)
        examples = read_many(indices) if read_many else [self.source[int(i)] for i in indices]
        captions = self.texts(indices)
        return [{**example, "text": text} for example, text in zip(examples, captions, strict=True)]

    def texts(self, indices: Sequence[int]) -> list[str]:
        """The captions."""
        others = (np.asarray(indices, np.int64) + self.distance) % len(self)
        alone = getattr(self.source, "texts", None)
        return alone(others) if alone else [self.source[int(i)]["text"] for i in others]


def shuffled_captions(opened: Dataset, seed: int) -> Dataset:
    """The data set with shuffled captions, and with another fingerprint.

    Raises:
      UserError: it has no captions, or only one.
    """
    info = opened.info
    if "text" not in info.fields or info.num_examples < 2:
        raise UserError(
            f"data.shuffle_captions needs data with several captions; {info.name}, split {info.split!r}, has "
            "none: set it to False"
        )
    word = np.random.Philox(key=seed + (_STREAM << 64)).random_raw(1)[0]
    distance = 1 + int(word % np.uint64(info.num_examples - 1))
    of = f"{info.fingerprint} captions of {distance} further on"
    info = dataclasses.replace(info, fingerprint=hashlib.sha256(of.encode()).hexdigest())
    return dataclasses.replace(opened, info=info, source=ShuffledCaptions(opened.source, distance))
