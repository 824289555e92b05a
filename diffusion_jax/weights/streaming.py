"""Tensors that stay in their files until they are accessed, one at a time.

A safetensors file is eight bytes with the length of a header, the header as JSON {name: {dtype, shape, data_offsets}},
and the numbers. Files are read, not memory-mapped, so that memory for what has been read is counted once.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.weights.folders import weight_files
from diffusion_jax.weights.reading import read_weights
from diffusion_jax.weights.safetensors_header import DTYPES, header

__all__ = ["DTYPES", "Streamed", "stream"]


class Streamed(Mapping[str, np.ndarray]):
    """The tensors of safetensors files by name; a value is read on access.

    Args:
      files: all shards.

    Raises:
      UserError: a file is truncated or damaged, or two files have the same name.
    """

    def __init__(self, files: list[Path]):
        self._places: dict[str, tuple[Path, np.dtype, tuple[int, ...], int]] = {}
        for file in files:
            for name, place in header(file).items():
                if name in self._places:
                    raise UserError(f"{file} and {self._places[name][0].name} both have {name}")
                self._places[name] = (file, *place)

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The type of every tensor."""
        return {name: place[1] for name, place in self._places.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        file, dtype, shape, start = self._places[name]
        found = np.empty(shape, dtype)
        with open(file, "rb") as opened:
            opened.seek(start)
            count = opened.readinto(found.reshape(-1).view(np.uint8)) if found.size else 0
        if count != found.nbytes:
            raise UserError(f"{file} ended while {name} was read")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def stream(folder: Path) -> tuple[Mapping[str, np.ndarray], dict[str, np.dtype]]:
    """The tensors of a folder and their types: left in their files if these are safetensors, else read.

    Raises:
      UserError: no weights, or damaged ones.
    """
    files, _ = weight_files(folder)
    if all(file.suffix == ".safetensors" for file in files):
        streamed = Streamed(files)
        return streamed, streamed.dtypes
    state = read_weights(folder).tensors
    return state, {name: value.dtype for name, value in state.items()}
