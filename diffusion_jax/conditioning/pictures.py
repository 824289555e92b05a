"""A picture beside the input, as additional channels: one to be edited, or the rest of one that has a hole.

    source  "image" = the source                       (InstructPix2Pix, Brooks et al. 2022, arXiv:2211.09800)
    hole    "image" = [mask, (1 - mask) picture]       (inpainting, Rombach et al. 2022, arXiv:2112.10752)

A source has the role "asked": it is dropped in training and guided in sampling with its own scale (`two_scales`). A
hole has the role "told": what is known of the picture is never dropped. By default there is no source, and the hole is
the whole picture.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Batch, Conditioner, Conditions, Form
from diffusion_jax.domains import SHARE
from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.specs import DATA, MASK, SOURCE, ConditionSpec

SLOT = "image"
Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BesidePicture(Conditioner):
    """A picture beside the input, aligned pixel by pixel.

    Attributes:
      shape: height, width and channels of a picture.
      dropout: share of examples that lose only the picture in training, besides those that lose everything asked.
    """

    needs_holes: ClassVar[bool] = False

    shape: Shape
    dropout: Annotated[float, SHARE] = 0.0

    def beside(self, shape: tuple[int, ...]) -> "BesidePicture":
        return dataclasses.replace(self, shape=tuple(shape))

    @property
    def for_network(self) -> dict[str, Any]:
        """The arguments of a network that takes this picture."""
        slot = self.gives[SLOT]
        return {"extra_channels": slot.shape[-1], "image_role": slot.role}


PICTURES: Registry[BesidePicture] = Registry("picture beside the input")
"""The pictures that a config can name in conditioning.picture."""


@PICTURES.register("source", example={"shape": (4, 4, 2)})
@CONDITIONERS.register("source", example={"shape": (4, 4, 2)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(BesidePicture):
    """The picture to be edited: bytes, or numbers in [-1, 1]; zeros if there is none."""

    @property
    def fields(self) -> Mapping[str, Form]:
        return {SOURCE: (self.shape, "uint8")}

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        return {SLOT: ConditionSpec(shape=(None, None, self.shape[-1]), is_aligned=True)}

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Check pictures and stack them as bytes."""
        found = [np.asarray(picture) for picture in raw[SOURCE]]
        for picture in found:
            if picture.dtype != np.uint8 or picture.shape != self.shape:
                raise UserError(
                    f"a source must be a picture of bytes {list(self.shape)}, but this one is {picture.dtype} "
                    f"{list(picture.shape)}"
                )
        return {SOURCE: np.stack(found)}

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        if SOURCE not in batch:
            return self.null(params, size)
        return {SLOT: in_unit_range(batch[SOURCE])}

    def null(self, params: PyTree, size: int) -> Conditions:
        return {SLOT: jnp.zeros((size, *self.shape), jnp.float32)}


@PICTURES.register("hole", example={"shape": (4, 4, 2)})
@CONDITIONERS.register("hole", example={"shape": (4, 4, 2)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hole(BesidePicture):
    """The rest of a picture with a hole: the mask, 1 where something is to be drawn, and the picture, zero there."""

    needs_holes: ClassVar[bool] = True

    def __post_init__(self):
        if self.dropout:
            raise UserError("a hole describes the input and is never dropped: leave conditioning.picture.dropout at 0")

    @property
    def fields(self) -> Mapping[str, Form]:
        return {DATA: (self.shape, "float32"), MASK: ((*self.shape[:2], 1), "float32")}

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        return {SLOT: ConditionSpec(shape=(None, None, 1 + self.shape[-1]), role="told", is_aligned=True)}

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Turn pictures, which are bytes or in [-1, 1], and masks into numbers."""
        found = {DATA: np.stack([numbers(picture) for picture in raw[DATA]]), MASK: np.asarray(raw[MASK], np.float32)}
        for name, (shape, _) in self.fields.items():
            if found[name].shape[1:] != shape:
                raise UserError(
                    f"{name} should be {list(shape)} beside such pictures, it is {list(found[name].shape[1:])}"
                )
        return found

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        if MASK not in batch:
            return self.null(params, size)
        hidden = (batch[MASK] > 0).astype(jnp.float32)
        return {SLOT: jnp.concatenate([hidden, (1 - hidden) * self.field(batch, DATA)], axis=-1)}

    def null(self, params: PyTree, size: int) -> Conditions:
        shape = (size, *self.shape[:2])
        return {SLOT: jnp.concatenate([jnp.ones((*shape, 1)), jnp.zeros((*shape, self.shape[-1]))], axis=-1)}


def numbers(picture: Any) -> np.ndarray:
    """Bytes as float32 in [-1, 1]; other numbers as they are."""
    array = np.asarray(picture)
    return array.astype(np.float32) / np.float32(127.5) - np.float32(1) if array.dtype == np.uint8 else array


def in_unit_range(picture: Array) -> Array:
    """Like `numbers`, for a traced array."""
    return picture.astype(jnp.float32) / 127.5 - 1.0 if picture.dtype == jnp.uint8 else picture
