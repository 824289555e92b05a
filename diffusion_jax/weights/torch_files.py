"""Tensors out of PyTorch's files without PyTorch, by an unpickler that can build tensors and nothing else.

A pickle is a program. Here it may name the functions that put a tensor together, containers, modules and a few records
of settings, which are read as what they hold; any other name stops the reading. Nothing of the file is ever run.

The zip archive of PyTorch 1.6 and later, also of TorchScript; the older sequence of pickles and raw storages; and the
plain pickles of NVIDIA's `torch_utils.persistence` (StyleGAN, EDM, EDM2), modules with their source: that is not looked
at. A module comes out as the tensors of its `state_dict`.
"""

import collections
import dataclasses
import io
import pickle
import struct
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from diffusion_jax.errors import UserError

_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_MAGIC = 0x1950A86A20F9469CFC6C  # of the older form


@dataclasses.dataclass
class _Storage:
    """Numbers in a row; in the older form they come after whatever refers to them."""

    dtype: np.dtype
    numel: int
    values: np.ndarray | None = None


@dataclasses.dataclass
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The numbers, copied.

        Raises:
          UserError: the view reaches outside its storage.
        """
        values, size = self.storage.values, self.storage.numel
        if values is None or not all(isinstance(n, int) and n >= 0 for n in (self.offset, *self.shape, *self.strides)):
            raise UserError("a tensor of the file has no storage or a negative shape")
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and last >= size:
            raise UserError(f"a tensor of the file reads element {last} of a storage of {size}")
        steps = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps).copy()


class _Module:
    """The attributes of a torch.nn.Module, without the module."""

    attributes: Mapping[str, Any] = types.MappingProxyType({})  # of a module without any

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise UserError("a module of the file has no attributes by name")
        self.attributes = dict(state)

    def state_dict(self) -> dict[str, _Tensor]:
        """The tensors by their names in PyTorch. TorchScript keeps them among the other attributes; Python's modules
        keep them in tables, with buffers that are not saved."""
        own = self.attributes
        if "_modules" in own:
            kept = {k: v for k, v in own["_buffers"].items() if k not in own.get("_non_persistent_buffers_set", ())}
            own = {**own["_parameters"], **kept, **own["_modules"]}
        found = {name: value for name, value in own.items() if isinstance(value, _Tensor)}
        for name, value in own.items():
            if isinstance(value, _Module):
                found.update({f"{name}.{inner}": tensor for inner, tensor in value.state_dict().items()})
        return found


class _Record(dict):
    """Settings kept beside the weights: what an object held, without the object."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(kwargs)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise UserError("a tensor of the file refers to something that is no storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: _Tensor, *rest: Any) -> _Tensor:
    return data


def _rebuild_persistent(meta: Any) -> _Module | _Record:
    """What an object of `torch_utils.persistence` held. `meta` has the source of its class, too."""
    state = meta.get("state") if isinstance(meta, dict) else None
    if not isinstance(state, dict):
        raise UserError("a persistent object of the file has no state by name")
    found: _Module | _Record = _Module() if "_modules" in state else _Record()
    found.__setstate__(state)
    return found


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *args: "device",
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _rebuild_persistent,
    ("dnnlib.util", "EasyDict"): _Record,
    ("argparse", "Namespace"): _Record,
    # numpy's numbers and arrays, of settings: only that there was one
    **{("numpy", name): _Record for name in ("ndarray", "dtype")},
    **{
        (f"numpy.{core}.multiarray", name): _Record for core in ("core", "_core") for name in ("scalar", "_reconstruct")
    },
    **{(builtins, "set"): set for builtins in ("builtins", "__builtin__")},
    **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
    ("torch.jit._pickle", "restore_type_tag"): lambda value, tag: value,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{("torch.storage", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Reads what `_ALLOWED` names."""

    def __init__(self, file: BinaryIO, path: Path, storage: Any):
        super().__init__(file, encoding="latin1")
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._inner_storage
        if module.startswith(("torch.nn.modules.", "__torch__")):
            return _Module
        raise UserError(
            f"{self._path} is a pickle with Python objects ({module}.{name}), which reading would have to run; "
            "nothing was read. Where you trust the file, open it once with the authors' code and save the tensors "
            "alone: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'), and give that file"
        )

    def _inner_storage(self, data: Any) -> _Storage:
        """A storage inside a plain pickle is a file of its own, of the older form."""
        found = _read_sequence(io.BytesIO(data), self._path)
        if not isinstance(found, _Storage):
            raise UserError(f"a tensor of {self._path} refers to something that is no storage")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], np.dtype):
            raise UserError(f"{self._path} refers to something that is no storage of tensors")
        _, dtype, key, _, numel, *rest = pid
        if rest and rest[0] is not None:
            raise UserError(f"{self._path} has views of storages, of a PyTorch before 0.4; save it again")
        return self._storage(str(key), dtype, int(numel))


def read_torch_file(path: Path) -> Any:
    """Whatever `torch.save`, `torch.jit.save` or NVIDIA's `pickle.dump` wrote, with numpy arrays for tensors and tables
    of tensors by name for modules.

    Raises:
      UserError: no such file, a damaged one, or one that holds more than tensors, containers and numbers.
    """
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)
            file.seek(0)
            return _arrays(_read_zip(file, path) if is_zip else _read_sequence(file, path))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle or archive can raise anything; all of it means the same
        raise UserError(f"{path} is damaged or no PyTorch file: {type(error).__name__}: {error}") from error


def _read_zip(file: BinaryIO, path: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive, but not one of PyTorch's weights")
        folder = pickles[0].removesuffix("data.pkl")
        read: dict[str, _Storage] = {}

        def storage(key: str, dtype: np.dtype, numel: int) -> _Storage:
            if key not in read:
                data = archive.read(f"{folder}data/{key}")
                if len(data) != numel * dtype.itemsize:
                    raise UserError(f"{path} is damaged: storage {key} has {len(data)} bytes, not {numel} {dtype}")
                read[key] = _Storage(dtype, numel, np.frombuffer(data, dtype))
            return read[key]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), path, storage).load()


def _read_sequence(file: BinaryIO, path: Path) -> Any:
    read: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype, numel: int) -> _Storage:
        return read.setdefault(key, _Storage(dtype, numel))

    def load() -> Any:
        return _Unpickler(file, path, storage).load()

    first = load()
    if first != _MAGIC:  # a plain pickle
        return first
    load(), load()  # protocol version; sizes of integers on the machine that wrote it
    found = load()
    for key in load():
        header = file.read(8)
        (numel,) = struct.unpack("<q", header)
        stored = read.get(str(key))
        if stored is None or numel != stored.numel:
            raise UserError(f"{path} is damaged: storage {key} has {numel} numbers")
        data = file.read(numel * stored.dtype.itemsize)
        if len(data) != numel * stored.dtype.itemsize:
            raise UserError(f"{path} is truncated in storage {key}")
        stored.values = np.frombuffer(data, stored.dtype)
    return found


def _arrays(found: Any) -> Any:
    """Tensors as arrays, all through the containers."""
    if isinstance(found, _Tensor):
        return found.array()
    if isinstance(found, _Module):
        found = found.state_dict()
    if isinstance(found, dict):
        return {key: _arrays(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_arrays(value) for value in found]
    return found
