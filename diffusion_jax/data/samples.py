"""Drawn pictures as one value: an array to compute with, a grid to look at, a file to keep."""

import dataclasses
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from diffusion_jax.data.grids import make_captioned, make_grid
from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Pictures and what each was asked for: a notebook shows them as a grid, and `np.asarray` gives the array.

    Attributes:
      images: the pictures.
      labels: the class that each was asked for, if classes were asked for.
      class_names: names of all classes, if they have names.
      captions: the text that each was asked for, if texts were asked for.

    Raises:
      UserError: no pictures [n, height, width, channels], or labels or captions of another number.
    """

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"] | None = None
    class_names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()

    def __post_init__(self):
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            form = f"{self.images.dtype} {list(self.images.shape)}"
            raise UserError(f"samples must be uint8 pictures [n, height, width, channels], these are {form}")
        for what, given in (("labels", self.labels), ("captions", self.captions)):
            if given is not None and len(given) not in (0, len(self.images)):
                raise UserError(f"{len(self.images)} pictures have {len(given)} {what}: give one for each")

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, channels)."""
        return self.images.shape

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return self.images.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.images, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "height width channels"]]:
        return iter(self.images)

    def __getitem__(self, index: int | slice) -> "UInt8[np.ndarray, 'height width channels'] | Samples":
        """One picture as an array, or a slice as `Samples`."""
        if not isinstance(index, slice):
            return self.images[index]
        labels = None if self.labels is None else self.labels[index]
        return dataclasses.replace(self, images=self.images[index], labels=labels, captions=self.captions[index])

    def grid(self) -> Image.Image:
        """All pictures as one: with their captions, or a column for each class, small ones enlarged.

        Raises:
          UserError: there is no picture, or it has neither one channel nor three.
        """
        if self.captions:
            return Image.fromarray(make_captioned(self.images, self.captions))
        return Image.fromarray(make_grid(self.images, labels=self.labels, class_names=self.class_names or None))

    def save(self, path: str | os.PathLike) -> None:
        """Write the grid as a PNG file, whole or not at all.

        Raises:
          RunError: the file could not be written.
        """
        replace_file(path, self._repr_png_())

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.grid().save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        count, height, width, channels = self.shape
        return f"Samples({count} pictures of {height} x {width} x {channels})"
