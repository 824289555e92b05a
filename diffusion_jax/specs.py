"""The form of data and of a network's conditions: two descriptions that every room shares."""

import dataclasses
from typing import Literal

import numpy as np

DATA = "data"
"""The field of a batch that is diffused; the other fields keep the data's own names."""
FRAME = "frame"
"""The raw field that says how a picture was cut: its original height and width, and the pixels cut off at the top and
left after resizing."""
MASK = "mask"
"""The field of a batch that says where a picture has a hole."""
SOURCE = "source"
"""The field of a batch with the picture to edit."""
GUIDANCE = "guidance"
"""The slot for a guidance scale, which saves the second evaluation of the network."""
FEATURES = "features"
"""The field of a batch with another network's features, and the name under which a network sows its own for
alignment."""
CONTROL = "control"
"""The raw field with a picture of the same size that steers the result: edges, masks, depth."""
PRIOR = "prior"
"""The field of a batch that is 1 for pictures of a subject's class, and 0 for those of the subject itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The form of one example.

    Attributes:
      kind: "pixels", [height, width, channels]; "latents", the same in a compressed space; "tokens", whole numbers,
        [length] or of any other shape.
      shape: the shape of one example; None where it differs between examples.
      num_values: for tokens, the number of possible values; 0 if it is not known, and for the other kinds.
    """

    kind: Literal["pixels", "latents", "tokens"]
    shape: tuple[int | None, ...]
    num_values: int = 0

    @property
    def dtype(self) -> np.dtype:
        """The type of a batch: float32, or int32 for tokens."""
        return np.dtype(np.int32 if self.kind == "tokens" else np.float32)

    @property
    def stored_dtype(self) -> np.dtype:
        """The type of an example as it is stored and shown: bytes for pixels, else as in a batch."""
        return np.dtype(np.uint8) if self.kind == "pixels" else self.dtype

    @property
    def unit(self) -> str:
        """The word for examples after a number."""
        return {"pixels": "images", "latents": "latents", "tokens": "sequences"}[self.kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionSpec:
    """One slot of a network: a condition under its name.

    Attributes:
      shape: the shape for one example; None for an axis of any length. A sequence of any length, [None, width], may
        have a mask beside it, "<name>_mask", bool [batch, length], that says which positions count; without it all do.
      dtype: the array's type.
      role: "asked", what the sample shall be: dropped in training, guided in sampling; "told", what is known of the
        input, such as an augmentation or a second time: never dropped.
      num_values: for whole numbers, how many values there are, the last of them the null value; 0 for floats.
      is_aligned: whether the first two axes are always the height and the width of the data.
    """

    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    role: Literal["asked", "told"] = "asked"
    num_values: int = 0
    is_aligned: bool = False

    @property
    def has_mask(self) -> bool:
        """Whether the slot may have a mask beside it."""
        return self.shape[:1] == (None,) and None not in self.shape[1:]

    def beside(self, data_shape: tuple[int, ...]) -> "ConditionSpec":
        """The spec that goes with an example of this shape."""
        if not self.is_aligned:
            return self
        return dataclasses.replace(self, shape=(*data_shape[:2], *self.shape[2:]), is_aligned=False)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape, without the batch axis, may fill the slot."""
        same = len(shape) == len(self.shape)
        return same and all(want in (None, have) for want, have in zip(self.shape, shape, strict=True))


def mask_name(slot: str) -> str:
    """The name of the mask that belongs to a slot of any length."""
    return f"{slot}_mask"
