"""Maps between a network's parameters and the names and layouts of tensors elsewhere, exact in both directions.

A map is data: for every parameter it says from which tensors it is read and how it is written back. It is complete: a
tensor that is missing, unexpected or of a wrong shape is an error that lists its name, before anything is built.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from numpy.typing import DTypeLike

from diffusion_jax.errors import UserError

Path = tuple[str, ...]
State = Mapping[str, np.ndarray]
Place = Callable[[Path, np.ndarray], Any]
_LISTED = 12  # names that an error lists


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter: the tensors it is made of, how to read it from them, and how to write it back."""

    names: tuple[str, ...]
    read: Callable[[Sequence[np.ndarray]], np.ndarray]
    write: Callable[[np.ndarray], Sequence[np.ndarray]]

    def then(self, read: Callable[[np.ndarray], np.ndarray], write: Callable[[np.ndarray], np.ndarray]) -> "Entry":
        """The same entry with one more step between its tensors and the parameter."""
        return Entry(self.names, lambda tensors: read(self.read(tensors)), lambda ours: self.write(write(ours)))


@dataclasses.dataclass(frozen=True)
class Cut:
    """A tensor that is several parameters here: entries read and write its parts along an axis under their own
    names."""

    name: str
    axis: int
    sizes: tuple[int, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts."""
        return tuple(f"{self.name}[{i}]" for i in range(len(self.sizes)))

    def part(self, tensor: np.ndarray, number: int) -> np.ndarray:
        """A part of the tensor; ValueError if the sizes do not fit."""
        if tensor.ndim <= self.axis or tensor.shape[self.axis] != sum(self.sizes):
            raise ValueError(f"{self.name} has shape {tensor.shape}")
        start = sum(self.sizes[:number])
        return tensor.take(range(start, start + self.sizes[number]), self.axis)


@dataclasses.dataclass(frozen=True)
class WeightMap:
    """All parameters of a network.

    Attributes:
      entries: the entry for every path in the tree of parameters; a tuple of entries if the parameters of all layers of
        a scan are stacked.
      constants: tensors that are stored elsewhere and computed here; they are compared on reading, and written as
        float32 unless they are whole numbers.
      ignored: patterns of the names of tensors that have no meaning for the network.
      unwritten: constants of older files that newer ones lack: they are compared on reading, and not written.
      cuts: tensors whose parts are named in the entries.
    """

    entries: Mapping[Path, Entry | tuple[Entry, ...]]
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()

    def names(self) -> list[str]:
        """Every tensor that is read."""
        parts = self._parts
        names = [parts[name][0].name if name in parts else name for entry in self._flat() for name in entry.names]
        return list(dict.fromkeys(names))

    @property
    def _parts(self) -> dict[str, tuple[Cut, int]]:
        """The tensor that a named part belongs to, and the index of the part."""
        return {name: (cut, i) for cut in self.cuts for i, name in enumerate(cut.parts)}

    def _flat(self) -> Iterator[Entry]:
        for entry in self.entries.values():
            yield from entry if isinstance(entry, tuple) else (entry,)

    def params(
        self,
        state: State,
        shapes: PyTree,
        *,
        place: Place | None = None,
        held_in: Callable[[Path], DTypeLike] | None = None,
    ) -> PyTree:
        """The parameters, float32, from tensors by name.

        Args:
          state: the tensors; each is accessed when its parameter is made, so that they may stay in files until then.
          shapes: the network's tree of parameters as arrays or ShapeDtypeStruct.
          held_in: path -> the type of the parameter, if not float32.
          place: (path, parameter) -> its replacement in the tree, for example on its devices; by default the parameter.

        Raises:
          UserError: tensors are missing, unexpected, of a wrong shape or not finite.
        """
        wanted = {path: tuple(leaf.shape) for path, leaf in flatten_dict(shapes).items()}
        if set(wanted) != set(self.entries):
            different = sorted("/".join(path) for path in set(wanted) ^ set(self.entries))
            raise UserError(f"the map of names does not fit the network at {_some(different)}")
        needed = self.names()
        known = {*needed, *self.constants}
        missing = [name for name in needed if name not in state]
        unexpected = [
            name for name in state if name not in known and not any(re.fullmatch(p, name) for p in self.ignored)
        ]
        if missing or unexpected:
            raise UserError(
                "these weights are not of this network: "
                + "; ".join(
                    f"{len(names)} {what}: {_some(names)}"
                    for what, names in (("missing", missing), ("unexpected", unexpected))
                    if names
                )
            )
        self._require_constants(state)
        state = _WithParts(state, self._parts)
        params, wrong = {}, []
        for path, entry in self.entries.items():
            found = self._leaf(
                path, entry, wanted[path], state, wrong, np.float32 if held_in is None else held_in(path)
            )
            if found is not None and not wrong:
                params[path] = found if place is None else place(path, found)
        if wrong:
            raise UserError(f"{len(wrong)} tensors do not fit the network: {_some(wrong, '; ')}")
        return unflatten_dict(params)

    def _leaf(
        self,
        path: Path,
        entry: Entry | tuple[Entry, ...],
        shape: tuple[int, ...],
        state: State,
        wrong: list[str],
        dtype: DTypeLike,
    ) -> np.ndarray | None:
        """One parameter; None if a tensor does not fit, which is appended to `wrong`."""
        parts, inner = (entry, shape[1:]) if isinstance(entry, tuple) else ((entry,), shape)
        found = aligned((len(parts), *inner), dtype)
        before = len(wrong)
        for number, part in enumerate(parts):
            value = _read(part, state)
            if value is None or value.shape != inner:
                there = ", ".join(f"{name} {tuple(state.whole(name).shape)}" for name in part.names)
                wrong.append(f"{there} for {'/'.join(path)} {inner}")
            elif value.dtype.kind == "c":
                wrong.append(f"{', '.join(part.names)} holds complex numbers")
            elif not np.isfinite(value).all():
                wrong.append(f"{', '.join(part.names)} is not finite")
            else:
                found[number] = value
        if len(wrong) > before:
            return None
        return found if isinstance(entry, tuple) else found[0]

    def _require_constants(self, state: State) -> None:
        for name, value in self.constants.items():
            if name not in state:
                continue
            there = state[name]  # it may be huge, or a view that repeats a number, so it is checked first
            same_shape = there.shape == value.shape
            if not same_shape or not np.allclose(np.asarray(there, np.float64), value, atol=2e-3 if there.size else 0):
                raise UserError(f"{name} is a constant of this network, but the file has other values")

    def state(self, params: PyTree) -> dict[str, np.ndarray]:
        """The tensors of these parameters, from which `params` reads them back."""
        found: dict[str, np.ndarray] = {}
        flat = flatten_dict(params)
        for path, entry in self.entries.items():
            value = np.asarray(flat[path])
            pairs = zip(entry, value, strict=True) if isinstance(entry, tuple) else [(entry, value)]
            for part, ours in pairs:
                tensors = [np.array(tensor, order="C") for tensor in part.write(ours)]
                found.update(zip(part.names, tensors, strict=True))
        for cut in self.cuts:
            found[cut.name] = np.concatenate([found.pop(name) for name in cut.parts], axis=cut.axis)
        written = {name: value for name, value in self.constants.items() if name not in self.unwritten}
        constants = {
            name: value if value.dtype.kind in "iu" else np.asarray(value, np.float32)
            for name, value in written.items()
        }
        return {**found, **constants}


class _WithParts(Mapping):
    """Tensors by name, and parts of tensors by their own names."""

    def __init__(self, state: State, parts: Mapping[str, tuple[Cut, int]]):
        self._state, self._parts = state, parts

    def whole(self, name: str) -> np.ndarray:
        """The tensor itself, or the tensor that the part belongs to."""
        return self._state[self._parts[name][0].name if name in self._parts else name]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._parts:
            return self._state[name]
        cut, number = self._parts[name]
        return cut.part(np.asarray(self._state[cut.name]), number)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An empty array at an address that XLA for CPU can use without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def _some(names: Sequence[str], separator: str = ", ") -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return separator.join(names[:_LISTED]) + rest


def _read(entry: Entry, state: State) -> np.ndarray | None:
    """The parameter; None if the tensors do not have the form that the entry expects."""
    try:
        return entry.read([np.asarray(state[name]) for name in entry.names])
    except (ValueError, IndexError):  # numpy's, for an impossible transposition or reshape
        return None


# Entries. Names are those of modules: ".weight" and ".bias" are added.


def same(name: str) -> Entry:
    """A tensor as it is."""
    return Entry((name,), lambda t: t[0], lambda ours: [ours])


def ones(shape: tuple[int, ...]) -> Entry:
    """A parameter that the other network lacks, where it is equivalent to 1."""

    def write(ours):
        if not np.all(ours == 1):
            raise UserError("the network there has no such scale, and here it is not 1")
        return []

    return Entry((), lambda tensors: np.ones(shape, np.float32), write)


def transposed(name: str, ndim: int = 2) -> Entry:
    """[out, in, 1 ...] there, [in, out] here: a dense layer, or a convolution of size 1 with `ndim` axes."""

    def read(tensors):
        tensor = tensors[0]
        if tensor.ndim != ndim or tensor.size != tensor.shape[0] * tensor.shape[1]:
            raise ValueError(f"{name} has shape {tensor.shape}")
        return tensor.reshape(tensor.shape[:2]).T

    return Entry((name,), read, lambda ours: [ours.T.reshape(*ours.T.shape, *(1,) * (ndim - 2))])


def convolution_kernel(name: str) -> Entry:
    """[out, in, height, width] there, [height, width, in, out] here."""
    return Entry((name,), lambda t: t[0].transpose(2, 3, 1, 0), lambda ours: [ours.transpose(3, 2, 0, 1)])


def joined(entries: Sequence[Entry]) -> Entry:
    """Several tensors side by side along the last axis, of equal width."""
    counts = [len(entry.names) for entry in entries]
    starts = np.cumsum([0, *counts])

    def read(tensors):
        parts = [e.read(tensors[a : a + n]) for e, a, n in zip(entries, starts[:-1], counts, strict=True)]
        return np.concatenate(parts, axis=-1)

    def write(ours):
        parts = np.split(ours, len(entries), axis=-1)
        return [tensor for entry, part in zip(entries, parts, strict=True) for tensor in entry.write(part)]

    return Entry(tuple(name for entry in entries for name in entry.names), read, write)


def reordered(entry: Entry, order: np.ndarray) -> Entry:
    """Output channels in another order: channel i here is channel order[i] there."""
    back = np.argsort(order)
    return entry.then(lambda x: x[..., order], lambda x: x[..., back])


def qkv_order(channels: int, num_heads: int, layout: str) -> np.ndarray:
    """The positions of (query, key, value) x head x channel in a fused layer with another order of these axes.

    `layout` names the axes there: "3hc" (as here), "h3c" (guided diffusion's legacy order), "hc3" (EDM).
    """
    sizes = {"3": 3, "h": num_heads, "c": channels // num_heads}
    there = np.arange(3 * channels).reshape([sizes[axis] for axis in layout])
    return there.transpose([layout.index(axis) for axis in "3hc"]).reshape(-1)


def prefixed(path: str, entries: Mapping[Path, Entry]) -> dict[Path, Entry]:
    """The entries of a submodule at `path`, a name or several names with slashes."""
    return {(*path.split("/"), *rest): entry for rest, entry in entries.items()}


def dense(name: str, *, bias: bool = True, ndim: int = 2) -> dict[Path, Entry]:
    """A dense layer."""
    entries: dict[Path, Entry] = {("kernel",): transposed(f"{name}.weight", ndim)}
    return {**entries, ("bias",): same(f"{name}.bias")} if bias else entries


def conv(name: str, *, bias: bool = True) -> dict[Path, Entry]:
    """A convolution."""
    entries: dict[Path, Entry] = {("kernel",): convolution_kernel(f"{name}.weight")}
    return {**entries, ("bias",): same(f"{name}.bias")} if bias else entries


def norm(name: str, *, bias: bool = True) -> dict[Path, Entry]:
    """A normalisation with a scale."""
    entries: dict[Path, Entry] = {("scale",): same(f"{name}.weight")}
    return {**entries, ("bias",): same(f"{name}.bias")} if bias else entries


def fused_qkv(
    name: str, channels: int, num_heads: int, layout: str, *, ndim: int = 2, bias: bool = True
) -> dict[Path, Entry]:
    """A layer that outputs query, key and value, with the order of axes in `layout`."""
    order = qkv_order(channels, num_heads, layout)
    return {path: reordered(entry, order) for path, entry in dense(name, bias=bias, ndim=ndim).items()}


def separate_qkv(names: Sequence[str], *, bias: bool = True, ndim: int = 2) -> dict[Path, Entry]:
    """Three layers there, one here."""
    layers = [dense(name, bias=bias, ndim=ndim) for name in names]
    return {path: joined([layer[path] for layer in layers]) for path in layers[0]}


def patch_embedding(name: str, *, patch: int, channels: int, bias: bool = True) -> dict[Path, Entry]:
    """A convolution over patches there, a dense layer on (row, column, channel) here."""
    kernel = convolution_kernel(f"{name}.weight").then(
        lambda k: k.reshape(-1, k.shape[-1]), lambda k: k.reshape(patch, patch, channels, -1)
    )
    entries: dict[Path, Entry] = {("kernel",): kernel}
    return {**entries, ("bias",): same(f"{name}.bias")} if bias else entries


def stacked(path: str, layers: Iterable[Mapping[Path, Entry]]) -> dict[Path, tuple[Entry, ...]]:
    """The layers of a scan."""
    all_layers = list(layers)
    return {(*path.split("/"), *rest): tuple(layer[rest] for layer in all_layers) for rest in all_layers[0]}
