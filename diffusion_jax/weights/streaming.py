"""Tensors that stay in their files until they are accessed, one at a time.

A safetensors file is eight bytes with the length of a header, the header as JSON {name: {dtype, shape, data_offsets}},
and the numbers. Files are read, not memory-mapped, so that memory for what has been read is counted once.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.files import parse_json, regular_file
from diffusion_jax.weights.folders import weight_files
from diffusion_jax.weights.reading import read_weights

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_MOST_HEADER = 2**27


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
            for name, place in _header(file).items():
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


def _header(file: Path) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """The type, the shape and the place of every tensor of a file."""
    size = regular_file(file).stat().st_size
    try:
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(_MOST_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = parse_json(opened.read(length).decode(), f"the header of {file}")
        found = {name: _place(about, 8 + length, size) for name, about in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} is truncated or no safetensors file: {error}") from error
    return found


def _place(about: Any, base: int, size: int) -> tuple[np.dtype, tuple[int, ...], int]:
    dtype, shape = DTYPES[about["dtype"]], tuple(int(length) for length in about["shape"])
    start, end = about["data_offsets"]
    count = math.prod(shape) * dtype.itemsize  # Python's integers do not overflow
    if min(shape, default=0) < 0 or start < 0 or end - start != count or base + end > size:
        raise ValueError(f"it has {size} bytes, and a tensor ends at {base + end}")
    return dtype, shape, base + start


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
