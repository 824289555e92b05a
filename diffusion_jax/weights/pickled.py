"""The building blocks of a pickle of weights: tensors, arrays, modules, and inert objects in place of all others."""

import collections
import dataclasses
import math
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.errors import UserError

STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "UntypedStorage": np.dtype(np.uint8),
}
_EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
DTYPES = {
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _EXTENDED},
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "uint64", "uint32", "uint16", "uint8")},
    **{name: np.dtype(name) for name in ("int64", "int32", "int16", "int8", "bool", "complex64", "complex128")},
}
"""Types of numbers by the names that PyTorch and ml_dtypes give them."""

_EXPANDED = 2**20  # numbers to which a smaller storage may be expanded


def is_number(dtype: np.dtype) -> bool:
    """Whether a type is numeric; NumPy treats the types of `ml_dtypes` as void."""
    return dtype.kind in "fiubc" or dtype in DTYPES.values()


@dataclasses.dataclass(eq=False)
class Storage:
    """Consecutive numbers; in PyTorch's older form they follow whatever refers to them. `base` and `start` are set if
    it is a part of another storage."""

    dtype: np.dtype
    numel: int
    values: np.ndarray | None = None
    base: "Storage | None" = None
    start: int = 0

    def numbers(self) -> np.ndarray | None:
        """The numbers, once they have been read."""
        if self.base is None:
            return self.values
        whole = self.base.numbers()
        return None if whole is None else whole[self.start : self.start + self.numel]


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage; `dtype` reads its bytes as another type."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype | None = None

    def array(self) -> np.ndarray:
        """The numbers, as a read-only view of the storage: nothing is allocated.

        Raises:
          UserError: the view reaches outside its storage.
        """
        values = self.storage.numbers()
        numbers = (self.offset, *self.shape, *self.strides)
        if values is None or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise UserError("a tensor of the file has no storage or a negative shape")
        if len(self.shape) != len(self.strides):
            raise UserError(f"a tensor of the file has shape {self.shape} and strides {self.strides}")
        if self.dtype is not None:
            values = values.view(self.dtype)
        size = len(values)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and last >= size:
            raise UserError(f"a tensor of the file reads element {last} of a storage of {size}")
        if math.prod(self.shape) > max(size, _EXPANDED):
            raise UserError(f"a tensor of the file repeats a storage of {size} to shape {list(self.shape)}")
        if 0 in self.shape:
            return np.zeros(0, values.dtype).reshape(self.shape)
        steps = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps, writeable=False)


class Module:
    """The attributes of a torch.nn.Module, without the module."""

    attributes: Mapping[str, Any] = types.MappingProxyType({})  # of a module without any

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise UserError("a module of the file has no attributes by name")
        self.attributes = dict(state)


def state_dict(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A module's tensors under their names in PyTorch. TorchScript keeps them among the other attributes; Python's
    modules keep them in tables, together with buffers that are not saved."""
    own = dict(attributes)
    if "_modules" in own:
        unsaved = own.get("_non_persistent_buffers_set", ())
        kept = {k: v for k, v in own.get("_buffers", {}).items() if k not in unsaved}
        own = {**own.get("_parameters", {}), **kept, **own["_modules"]}
    found = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    for name, value in own.items():
        inner = module_attributes(value)
        if inner is not None:
            found.update({f"{name}.{part}": tensor for part, tensor in state_dict(inner).items()})
    return found


def module_attributes(value: Any) -> Mapping[str, Any] | None:
    """The attributes of a module, of PyTorch's own class or the authors'; None if it is no module."""
    if isinstance(value, Module):
        return value.attributes
    if isinstance(value, Inert) and isinstance(value.attributes.get("_modules"), Mapping):
        return value.attributes
    return None


_HARMLESS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "argparse": "Namespace",
        "types": "SimpleNamespace MappingProxyType",
        "datetime": "datetime date time timedelta timezone",
        "pathlib": "Path PurePath PosixPath WindowsPath PurePosixPath PureWindowsPath",
        "pathlib._local": "Path PurePath PosixPath WindowsPath PurePosixPath PureWindowsPath",
        "functools": "partial",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "uuid": "UUID SafeUUID",
        "re": "_compile",
        "random": "Random",
        "zoneinfo": "ZoneInfo",
        "builtins": "complex slice range xrange int float str bool bytes type",
        "collections": "ChainMap UserDict UserList",
        "logging": "Logger getLogger",
        "numpy": "bool_ float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8",
        "torch.serialization": "_get_layout",
    }.items()
    for name in names.split()
)
"""Names that become inert objects although they name functions or belong to Python's own library."""


def is_harmless(origin: str) -> bool:
    """Whether a name is one of `_HARMLESS`, or of NumPy's generators of random numbers."""
    return origin in _HARMLESS or origin.startswith("numpy.random.")


class InertType(type):
    """The type of inert classes; a pickle calls them where it calls a class or a function."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        cls.require_class()
        return super().__call__(*args, **kwargs)


class Inert(dict, metaclass=InertType):
    """An object stored beside the weights, without its class: it keeps what the file puts into it.

    Attributes:
      origin: module and name in the file.
      attributes: attributes set after its creation.
      rows: appended values.
    """

    origin: str = "Inert"
    refusal: Callable[[str], UserError] = UserError

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        if cls.origin.split(".")[0] in sys.stdlib_module_names and not is_harmless(cls.origin):
            raise cls.refusal(cls.origin)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()
        self.attributes: dict[Any, Any] = {}
        self.rows: list[Any] = []

    @classmethod
    def require_class(cls) -> None:
        """Refuse to call a name that looks like a function's."""
        name = cls.origin.rpartition(".")[2].lstrip("_")
        if not name[:1].isupper() and not is_harmless(cls.origin):
            raise cls.refusal(cls.origin)

    def __getattr__(self, name: str) -> Any:  # objects made only by `__new__` lack them
        if name in ("attributes", "rows"):
            value: Any = {} if name == "attributes" else []
            object.__setattr__(self, name, value)
            return value
        raise AttributeError(name)

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.attributes.update(part)

    def append(self, value: Any) -> None:
        self.rows.append(value)

    def extend(self, values: Any) -> None:
        self.rows.extend(values)

    add = append
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Dtype(Inert):
    """NumPy's record of a type of numbers."""

    def __init__(self, code: Any = "", *rest: Any):
        super().__init__()
        name = code.origin.rpartition(".")[2] if isinstance(code, type) and issubclass(code, Inert) else str(code)
        try:
            self.dtype = DTYPES[name] if name in DTYPES else np.dtype(name)
        except TypeError:
            self.dtype = np.dtype(object)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in (">", "<") and self.dtype.kind in "fiuc":
            self.dtype = self.dtype.newbyteorder(state[1])


class Array(Inert):
    """NumPy's record of an array."""

    data: Any = b""
    shape: tuple = ()
    dtype: np.dtype = np.dtype(object)
    order: str = "C"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], Dtype):
            _, self.shape, kind, fortran, self.data = state
            self.dtype, self.order = kind.dtype, "F" if fortran else "C"

    def array(self) -> np.ndarray | None:
        """The numbers; None if they are objects, or their count does not fit the shape."""
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        whole = isinstance(self.shape, tuple) and all(isinstance(n, int) and n >= 0 for n in self.shape)
        if not whole or not is_number(self.dtype) or not isinstance(data, (bytes, bytearray)):
            return None
        if len(data) != math.prod(self.shape) * self.dtype.itemsize:
            return None
        values = np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order)
        return values.astype(values.dtype.newbyteorder("=")) if values.dtype.byteorder == ">" else values


def array_of_bytes(data: Any, dtype: Any, shape: Any, order: Any = "C", *rest: Any) -> Array:
    array = Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def scalar(dtype: Any = None, data: Any = b"", *rest: Any) -> Any:
    value = array_of_bytes(data, dtype, ()).array() if isinstance(dtype, Dtype) else None
    return Array() if value is None else value.item()


def jax_array(build: Any, arguments: Any, state: Any, *rest: Any) -> Array:
    array = Array()
    array.__setstate__(state)
    return array


def rebuild_tensor(storage: Any, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise UserError("a tensor of the file refers to something that is not a storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def rebuild_typed(storage: Any, offset: int, shape: tuple, strides: tuple, grad: Any, hooks: Any, dtype: Any, *_: Any):
    """Tensors of types without their own storage class, such as those with 8 bits."""
    tensor = rebuild_tensor(storage, offset, shape, strides)
    name = dtype.origin.rpartition(".")[2] if isinstance(dtype, type) and issubclass(dtype, Inert) else ""
    if name not in DTYPES:
        raise UserError(f"a tensor of the file has numbers of an unknown type {name or dtype!r}")
    tensor.dtype = DTYPES[name]
    return tensor


def rebuild_subclass(build: Any, kind: Any, arguments: Any, *rest: Any) -> Tensor:
    if build not in (rebuild_tensor, rebuild_typed, rebuild_parameter) or not isinstance(arguments, tuple):
        raise UserError("a tensor of the file is of a class that has its own way to be built")
    return build(*arguments)


def rebuild_parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


def rebuild_persistent(meta: Any) -> Module | Inert:
    """The state of an object of `torch_utils.persistence`. `meta` also has the source of its class, which is not
    used."""
    state = meta.get("state") if isinstance(meta, dict) else None
    if not isinstance(state, dict):
        raise UserError("a persistent object of the file has no state by name")
    found: Module | Inert = Module() if "_modules" in state else Inert()
    found.__setstate__(state)
    return found


def new(kind: Any, *rest: Any) -> Any:
    """`object.__new__`, as older protocols call it."""
    if isinstance(kind, type) and issubclass(kind, (Inert, Module, collections.OrderedDict)):
        return kind.__new__(kind)
    raise UserError("an object of the file has no class")


def attribute(owner: Any, name: Any) -> Inert:
    """A member of an enumeration, as Python 3.11 writes it; only members of a class are allowed."""
    if not (isinstance(owner, type) and issubclass(owner, Inert)):
        raise UserError("the file asks for an attribute of something that is not a class")
    owner.require_class()
    return owner()


def encode(text: Any, encoding: Any = "utf-8", *rest: Any) -> bytes:
    return text.encode(encoding if encoding in ("latin1", "utf-8", "ascii") else "utf-8")


def items(values: Any = (), *rest: Any) -> list:
    return list(values) if isinstance(values, (list, tuple, set, dict)) else []


def table(values: Any = (), *rest: Any) -> dict:
    return collections.OrderedDict(values if isinstance(values, (dict, list, tuple)) else ())


def first(value: Any = None, *rest: Any) -> Any:
    return value
