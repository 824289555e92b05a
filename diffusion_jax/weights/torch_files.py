"""Reads tensors from PyTorch's files without PyTorch, by an unpickler that only builds tensors (`pickles.py`).

It reads the zip archive of PyTorch 1.6 and later, also TorchScript's; the older sequence of pickles and raw storages;
the tar archive of PyTorch before 0.1.10; and plain pickles: arrays by name, and those of NVIDIA's
`torch_utils.persistence` (StyleGAN, EDM, EDM2), modules with their source, which is ignored. A module is returned as
the tensors of its `state_dict`.

Nothing is allocated because a number in the file asks for it: the data must exist, and a tensor is a view of it.
"""

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.files import regular_file
from diffusion_jax.weights.pickled import Array, Inert, Storage, Tensor, module_attributes, state_dict
from diffusion_jax.weights.pickles import Bounded, Unpickler

_MAGIC = 0x1950A86A20F9469CFC6C  # marks the older form
_EXPANSION, _ALLOWANCE = 32, 2**26  # an archive may hold this many times its own bytes, and so many more
_DEPTH = 64  # of containers in containers


def read_torch_file(path: Path | str) -> Any:
    """Read the output of `torch.save`, `torch.jit.save` or `pickle.dump`, with numpy arrays for tensors, tables of
    tensors by name for modules, and tables of their content for other objects.

    Raises:
      UserError: no such file, a damaged one, or one that would call a function.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            found = _read(file, path)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle or archive can raise anything
        raise UserError(f"{path} is damaged or not a PyTorch file: {type(error).__name__}: {error}") from error
    return found


def _read(file: BinaryIO, path: Path) -> Any:
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK"):
        reader = _read_zip(file, path)
    elif start[257:262] == b"ustar" or (start[:100].rstrip(b"\0") == b"sys_info"):
        reader = _read_tar(file, path)
    else:
        reader = _read_sequence(file, path)
    found, unpickler = reader
    tree = _Plain().tree(found)
    if unpickler.named and not _holds_arrays(tree):
        raise unpickler.refuse(", ".join(list(unpickler.named)[:4]))
    return tree


def _inner(path: Path) -> Callable[[bytes], Storage]:
    """Reads a storage inside a plain pickle, which is a separate file in the older form."""

    def read(data: Any) -> Storage:
        found, _ = _read_sequence(io.BytesIO(data), path)
        if not isinstance(found, Storage):
            raise UserError(f"a tensor of {path} refers to something that is not a storage")
        return found

    return read


def _read_zip(file: BinaryIO, path: Path) -> tuple[Any, Unpickler]:
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive, but not one of PyTorch's weights")
        promised = sum(info.file_size for info in archive.infolist())
        if promised > _EXPANSION * size + _ALLOWANCE:
            raise UserError(f"{path} is damaged: its {size:,} bytes promise {promised:,}")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big":
            raise UserError(f"{path} was written on a machine of the other byte order: save it as safetensors there")
        read: dict[str, Storage] = {}

        def storage(key: str, dtype: np.dtype, numel: int) -> Storage:
            if key not in read:
                data = archive.read(f"{folder}data/{key}")
                if len(data) != numel * dtype.itemsize:
                    raise UserError(f"{path} is damaged: storage {key} has {len(data)} bytes, not {numel} {dtype}")
                read[key] = Storage(dtype, numel, np.frombuffer(data, dtype))
            return read[key]

        unpickler = Unpickler(Bounded(io.BytesIO(archive.read(pickles[0]))), path, storage, _inner(path))
        return unpickler.load(), unpickler


def _read_sequence(file: BinaryIO, path: Path) -> tuple[Any, Unpickler]:
    read: dict[str, Storage] = {}
    bounded = Bounded(file)

    def storage(key: str, dtype: np.dtype, numel: int) -> Storage:
        return read.setdefault(key, Storage(dtype, numel))

    unpickler = Unpickler(bounded, path, storage, _inner(path))

    def load() -> Any:
        nonlocal unpickler
        named = unpickler.named
        unpickler = Unpickler(bounded, path, storage, _inner(path))
        unpickler.named = named
        return unpickler.load()

    first = load()
    if not isinstance(first, int) or first != _MAGIC:  # a plain pickle
        return first, unpickler
    load(), load()  # protocol version; sizes of integers on the machine that wrote it
    found = load()
    for key in load():
        _fill(read.get(str(key)), key, bounded, path)
    return found, unpickler


def _fill(stored: Storage | None, key: Any, bounded: Bounded, path: Path) -> None:
    """Read the numbers of a storage, which follow their count."""
    header = bounded.read(8)
    if len(header) < 8:
        raise UserError(f"{path} is truncated before storage {key}")
    (numel,) = struct.unpack("<q", header)
    if stored is None or numel != stored.numel:
        raise UserError(f"{path} is damaged: storage {key} has {numel} numbers")
    stored.values = bounded.numbers(stored.dtype, numel)
    if stored.values is None:
        raise UserError(f"{path} is truncated in storage {key}")


def _read_tar(file: BinaryIO, path: Path) -> tuple[Any, Unpickler]:
    """Storages, tensors as views of them, and a pickle that refers to tensors by number."""
    storages: dict[str, Storage] = {}
    tensors: dict[str, Tensor] = {}

    def nothing(*pid: Any) -> Storage:
        raise UserError(f"{path} refers to a storage outside its list of storages")

    def load(bounded: Bounded) -> Any:
        return Unpickler(bounded, path, nothing, _inner(path)).load()

    with tarfile.open(fileobj=file, mode="r:") as archive:
        part = _member(archive, "storages", path)
        for _ in range(_count(load(part))):
            key, _, dtype = load(part)
            header = part.read(8)
            (numel,) = struct.unpack("<q", header)
            values = bounded_values = part.numbers(dtype, numel) if isinstance(dtype, np.dtype) else None
            if bounded_values is None:
                raise UserError(f"{path} is truncated in storage {key}")
            storages[str(key)] = Storage(dtype, numel, values)
        for target, root, start, count in load(part):
            storages[str(target)] = Storage(storages[str(root)].dtype, count, base=storages[str(root)], start=start)
        part = _member(archive, "tensors", path)
        for _ in range(_count(load(part))):
            key, storage, _ = load(part)
            (ndim, _) = struct.unpack("<ii", part.read(8))
            shape = struct.unpack(f"<{min(ndim, 64)}q", part.read(8 * ndim))
            strides = struct.unpack(f"<{min(ndim, 64)}q", part.read(8 * ndim))
            (offset,) = struct.unpack("<q", part.read(8))
            tensors[str(key)] = Tensor(storages[str(storage)], offset, shape, strides)
        unpickler = _ByNumber(_member(archive, "pickle", path), path, nothing, _inner(path))
        unpickler.tensors = tensors
        return unpickler.load(), unpickler


class _ByNumber(Unpickler):
    """The pickle of a tar archive, where a tensor is a number."""

    tensors: dict[str, Tensor]

    def persistent_load(self, pid: Any) -> Any:
        return self.tensors[str(pid)] if not isinstance(pid, tuple) else pid


def _count(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number < 2**24:
        raise UserError(f"a list of the file has the length {number!r}")
    return number


def _member(archive: tarfile.TarFile, name: str, path: Path) -> Bounded:
    info = archive.getmember(name)
    if info.issparse() or not info.isfile() or info.size > path.stat().st_size:
        raise UserError(f"{path} is damaged: its part {name} claims {info.size:,} bytes")
    return Bounded(io.BytesIO(archive.extractfile(info).read()))


class _Plain:
    """The content read, with arrays for tensors, in all containers; each object is converted once."""

    def __init__(self):
        self._done: dict[int, tuple[Any, Any]] = {}  # keeps the object, so that its id is not used again

    def tree(self, found: Any, depth: int = 0) -> Any:
        """The plain form of one object."""
        if depth > _DEPTH:
            return None  # training programs write nothing as deep as this
        if isinstance(found, Tensor):
            return found.array()
        if isinstance(found, Array):
            return found.array()
        if not isinstance(found, (dict, list, tuple)) and module_attributes(found) is None:
            return found
        if id(found) in self._done:
            return self._done[id(found)][1]
        self._done[id(found)] = (found, None)  # a circle ends here
        self._done[id(found)] = (found, self._container(found, depth + 1))
        return self._done[id(found)][1]

    def _container(self, found: Any, depth: int) -> Any:
        attributes = module_attributes(found)
        if attributes is not None:
            return {name: self.tree(value, depth) for name, value in state_dict(attributes).items()}
        if isinstance(found, Inert):
            found = {**found.attributes, **found, **dict(enumerate(found.rows))}
        if isinstance(found, dict):
            return {key: self.tree(value, depth) for key, value in found.items()}
        return [self.tree(value, depth) for value in found]


def _holds_arrays(tree: Any) -> bool:
    waiting, seen = [tree], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, np.ndarray):
            return True
        if isinstance(value, (dict, list)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return False
