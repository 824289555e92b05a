"""What data is, and what a network is told beside it: two descriptions that every room shares."""

import dataclasses
from typing import Literal

import numpy as np

DATA = "data"
"""The field of a batch that is diffused; what else a batch has is under the data's own names."""
FRAME = "frame"
"""The raw field of a picture that says how it was cut: height and width as it was, and pixels that were cut off at the
top and at the left of it, once it was resized."""
MASK = "mask"
"""The field of a batch that says where a picture has a hole."""
SOURCE = "source"
"""The field of a batch that is the picture to be edited."""
GUIDANCE = "guidance"
"""The slot of a network that is told the scale of guidance, in the place of two evaluations."""
FEATURES = "features"
"""The field of a batch, and what a network sows, for alignment with another network's features."""
PRIOR = "prior"
"""The field of a batch that says which examples are of a subject's class, 1, and which of the subject, 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The form of one example.

    Attributes:
      kind: "pixels", [height, width, channels]; "latents", the same of a compressed space; "tokens", [length] or any
        other shape of whole numbers.
      shape: of one example; None where it differs from example to example.
      num_values: of tokens, how many there are; 0 where that is not known, and for the other kinds.
    """

    kind: Literal["pixels", "latents", "tokens"]
    shape: tuple[int | None, ...]
    num_values: int = 0

    @property
    def dtype(self) -> np.dtype:
        """Of a batch: float32, or int32 for tokens."""
        return np.dtype(np.int32 if self.kind == "tokens" else np.float32)

    @property
    def stored_dtype(self) -> np.dtype:
        """Of an example as it is stored and shown: bytes for pixels, else as in a batch."""
        return np.dtype(np.uint8) if self.kind == "pixels" else self.dtype

    @property
    def unit(self) -> str:
        """What a number of examples is a number of."""
        return {"pixels": "images", "latents": "latents", "tokens": "sequences"}[self.kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionSpec:
    """One slot of a network: what it is told by that name.

    Attributes:
      shape: of one example; None for an axis of any length. Beside a sequence of any length, [None, width], may stand
        "<name>_mask", bool [batch, length], and says which positions count. Without it all do.
      dtype: of the array.
      role: "asked", what the sample shall be: dropped in training, guided in sampling; "told", what is known of the
        input, such as an augmentation or a second time: never dropped.
      num_values: of whole numbers, how many there are, the last of them the null value; 0 for floats.
      is_aligned: whether the first two axes are the height and the width of the data, whatever these are.
    """

    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    role: Literal["asked", "told"] = "asked"
    num_values: int = 0
    is_aligned: bool = False

    @property
    def has_mask(self) -> bool:
        """Whether a mask may stand beside the slot."""
        return self.shape[:1] == (None,) and None not in self.shape[1:]

    def beside(self, data_shape: tuple[int, ...]) -> "ConditionSpec":
        """The spec beside an example of this shape."""
        if not self.is_aligned:
            return self
        return dataclasses.replace(self, shape=(*data_shape[:2], *self.shape[2:]), is_aligned=False)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape, without the axis of the batch, may fill the slot."""
        same = len(shape) == len(self.shape)
        return same and all(want in (None, have) for want, have in zip(self.shape, shape, strict=True))


def mask_name(slot: str) -> str:
    """The name of the mask beside a slot of any length."""
    return f"{slot}_mask"
