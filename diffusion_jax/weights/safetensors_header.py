"""The header of a safetensors file: eight bytes with its length, then JSON {name: {dtype, shape, data_offsets}}."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.files import parse_json, regular_file

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


def header(file: Path) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """The type, the shape and the place of every tensor of a file.

    Raises:
      UserError: it is truncated or damaged.
    """
    size = regular_file(file).stat().st_size
    try:
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(_MOST_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            found = parse_json(opened.read(length).decode(), f"the header of {file}")
        return {name: _place(about, 8 + length, size) for name, about in found.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} is truncated or no safetensors file: {error}") from error


def _place(about: Any, base: int, size: int) -> tuple[np.dtype, tuple[int, ...], int]:
    dtype, shape = DTYPES[about["dtype"]], tuple(int(length) for length in about["shape"])
    start, end = about["data_offsets"]
    count = math.prod(shape) * dtype.itemsize  # Python's integers do not overflow
    if math.prod(filter(None, shape)) >= 2**60:  # NumPy takes no such shape, though it may be of no bytes
        raise ValueError(f"a tensor has the shape {list(shape)}")
    if min(shape, default=0) < 0 or start < 0 or end - start != count or base + end > size:
        raise ValueError(f"it has {size} bytes, and a tensor ends at {base + end}")
    return dtype, shape, base + start
