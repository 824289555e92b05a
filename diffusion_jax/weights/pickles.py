"""Reads pickles as data: tensors, arrays, containers and modules are built, all other objects become inert settings.

A pickle is a program: it names classes and functions, and says which are called. Nothing that it names is imported. A
name in `_BUILT` stands for one of our own functions, which builds a tensor, an array or a container. Any other class
becomes an `Inert` object, which keeps what the file puts into it; so argparse's namespaces, OmegaConf's nodes,
dataclasses, enums, paths and schedulers can be read. A pickle that would call a function, or make an object of Python's
own library that is not known to be harmless, is refused.

The interpreter is the one that Python implements in Python (`pickle._Unpickler`): the one in C allocates whatever
numbers in the file ask for.
"""

import collections
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.weights import pickled
from diffusion_jax.weights.pickled import STORAGES, Inert, InertType, Module, Storage

_BUILT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *args: pickled.table(*args[1:]),
    ("collections", "Counter"): pickled.table,
    ("collections", "deque"): pickled.items,
    ("torch._utils", "_rebuild_tensor"): pickled.rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): pickled.rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): pickled.rebuild_typed,
    ("torch._utils", "_rebuild_parameter"): pickled.rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): pickled.rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): pickled.rebuild_subclass,
    ("torch", "Size"): pickled.first,
    ("torch", "device"): lambda *args: "device",
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): pickled.rebuild_persistent,
    ("torch.jit._pickle", "restore_type_tag"): pickled.first,
    **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
    **{(module, name): dtype for name, dtype in STORAGES.items() for module in ("torch", "torch.storage")},
    ("numpy", "ndarray"): pickled.Array,
    ("numpy", "dtype"): pickled.Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *args: pickled.Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): pickled.scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): pickled.array_of_bytes for core in ("core", "_core")},
    ("jax._src.array", "_reconstruct_array"): pickled.jax_array,
    ("copyreg", "_reconstructor"): pickled.new,
    ("copyreg", "__newobj__"): pickled.new,
    ("builtins", "set"): pickled.items,
    ("builtins", "frozenset"): lambda *args: tuple(pickled.items(*args)),
    ("builtins", "list"): pickled.items,
    ("builtins", "tuple"): lambda *args: tuple(pickled.items(*args)),
    ("builtins", "dict"): pickled.table,
    ("builtins", "object"): object,
    ("builtins", "getattr"): pickled.attribute,
    ("builtins", "bytearray"): lambda value=b"", *rest: (
        pickled.encode(value, *rest) if isinstance(value, str) else value
    ),
    ("_codecs", "encode"): pickled.encode,
}
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # their names in Python 2
_WAY_OUT = (
    "nothing was read. Where you trust the file, open it once with the authors' code and save the tensors alone: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'), and give that file"
)


class Bounded:
    """A file that is never asked for more than what is left in it."""

    def __init__(self, file: BinaryIO):
        self.file = file
        here = file.tell()
        self.size = file.seek(0, 2)
        file.seek(here)

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return self.size - self.file.tell()

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes."""
        return self.file.read(self.left if count < 0 else min(count, self.left))

    def readline(self) -> bytes:
        return self.file.readline()

    def numbers(self, dtype: np.dtype, count: int) -> np.ndarray | None:
        """`count` numbers; None if the file does not have them."""
        if count < 0 or count * dtype.itemsize > self.left:
            return None
        return np.frombuffer(self.read(count * dtype.itemsize), dtype)


class Unpickler(pickle._Unpickler):
    """Reads one pickle.

    Args:
      file: the file, at the beginning of the pickle.
      path: its name in errors.
      storage: (key, type, count) -> the storage that a tensor refers to.
      inner: (bytes) -> the storage in a file inside the pickle.

    Attributes:
      named: the classes and functions in the file that are not built.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, path: Path, storage: Callable[..., Storage], inner: Callable[[bytes], Any]):
        super().__init__(file, encoding="latin1")
        self._path, self._storage, self._inner = path, storage, inner
        self.named: dict[str, type] = {}

    def refuse(self, origin: str) -> UserError:
        """The error for a pickle that would have to be run."""
        return UserError(
            f"{self._path} is a pickle with Python objects ({origin}), which reading would have to run; {_WAY_OUT}"
        )

    def find_class(self, module: str, name: str) -> Any:
        known = _BUILT.get((_MODULES.get(module, module), name))
        if known is not None:
            return known
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._inner
        if module.startswith(("torch.nn.modules.", "__torch__")):
            return Module
        origin = f"{_MODULES.get(module, module)}.{name}"
        if origin not in self.named:
            own = {"origin": origin, "refusal": staticmethod(self.refuse)}
            self.named[origin] = InertType("Inert", (Inert,), own)
        return self.named[origin]

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, (tuple, list)) and len(pid) == 4 and pid[0] == "module":  # with its source, not looked at
            return pid[1]
        if (
            not isinstance(pid, (tuple, list))
            or len(pid) < 5
            or pid[0] != "storage"
            or not isinstance(pid[1], np.dtype)
        ):
            raise UserError(f"{self._path} refers to something that is not a storage of tensors")
        _, dtype, key, _, numel, *rest = pid
        if not isinstance(numel, int) or numel < 0:
            raise UserError(f"{self._path} refers to a storage of {numel!r} numbers")
        whole = self._storage(str(key), dtype, numel)
        if rest and isinstance(rest[0], (tuple, list)) and len(rest[0]) == 3:  # before PyTorch 0.4: a part of a storage
            _, start, count = rest[0]
            return Storage(dtype, count, base=whole, start=start)
        return whole

    def load_build(self) -> None:
        """Give an object its state; objects shared with this process, such as numeric types, are left unchanged."""
        if isinstance(self.stack[-2], (Inert, Module, collections.OrderedDict)):
            super().load_build()
        else:
            self.stack.pop()

    def load_bytearray8(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(count)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
