"""Chooses among the sets of tensors in a file: averages of the parameters before raw weights.

Training programs keep several sets in one file: the parameters, one or more averages of them, the optimizer's moments.
Each program does it differently, so this module knows no particular program. A *set* is any table of tensors by name,
or list of tensors, anywhere in the file; a table in which some names begin with the name of an average (`ema.`,
`model_ema.`) holds more than one. A set is an average if the nearest telling part of its path says so ("ema",
"shadow_params", "averaged_model" ...); "online_model" or "collected_params" inside an average say that it is not.
Optimizers are not weights, but an average inside one is.

An average may lack tensors that are not trained, may be a list without names, or may have names without dots (latent
diffusion). It is then combined with the raw weights of the same file.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.weights.averages import by_name, over
from diffusion_jax.weights.pickled import is_number

_AVERAGES = {"ema", "emas", "average", "averaged", "averages", "avg", "shadow", "swa", "polyak"}
_NOT_AVERAGES = {"online", "raw", "collected", "backup", "student", "non"}
_IN_NAMES = _AVERAGES - {"avg"}  # a network may have layers with such names
_NO_WEIGHTS = re.compile(r"optim|^opt\d*$|^opt_|_opt$|sched|scaler|rng|random|^loops$|^callbacks$", re.IGNORECASE)
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_forward_module",
    "_checkpoint_wrapped_module",
    "_fpw_module",
}
_USUAL = ("state_dict", "model", "net", "network", "unet", "params", "module", "generator", "denoiser", "weights")
_COUNTERS = {"decay", "num_updates", "step", "initted", "n_averaged", "optimization_step"}
_SMALL = 10  # a set with so many times fewer numbers than the largest is no candidate
_DEPTH, _CONTAINERS = 8, 200_000  # limits of the search in a file


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TensorSet:
    """Tensors of a file that belong together.

    Attributes:
      path: position in the file.
      tensors: tensors by name, or a list if they have no names.
      is_average: whether its path says that it is an average.
    """

    path: tuple[str, ...]
    tensors: dict[str, np.ndarray] | list[np.ndarray]
    is_average: bool

    @property
    def label(self) -> str:
        """Its name for `--entry`."""
        return ".".join(self.path) or "rest"

    @property
    def size(self) -> int:
        """The number of values in it."""
        arrays = self.tensors.values() if isinstance(self.tensors, dict) else self.tensors
        return sum(array.size for array in arrays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """The chosen tensors, and the other sets of the file.

    Attributes:
      tensors: tensors by name.
      source: the file or folder.
      entry: the chosen set; "" if the file has only one.
      is_average: whether it is an average of the parameters.
      averages, others: labels of the other sets.
      borrowed: number of tensors missing from the average and taken from the raw weights.
      notes: further notes, one line each.
    """

    tensors: dict[str, np.ndarray]
    source: Path
    entry: str = ""
    is_average: bool = False
    averages: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    borrowed: int = 0
    notes: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """Lines for the user that say which weights these are."""
        rest = (*self.averages, *self.others)
        if not self.entry and not rest:
            return list(self.notes)
        entry = repr(self.entry)
        if self.is_average:
            line = f"taking the average {entry}"
        elif self.averages:
            line = f"taking {entry}, raw weights and not their average"
        else:
            line = f"taking {entry}; no set of weights in the file is called an average"
        if self.borrowed:
            line += f", and {self.borrowed} tensors that it lacks from the raw weights"
        return [*self.notes, line + (f"; other entries: {', '.join(rest)}" if rest else "; no other entries")]


def says_average(parts: Sequence[str]) -> bool:
    """Whether a path, or the name of a file, is that of an average."""
    for part in reversed(parts):
        words = _words(part)
        if words & _NOT_AVERAGES:
            return False
        if words & _AVERAGES:
            return True
    return False


def _words(part: str) -> set[str]:
    """The words in names such as "model_ema", "EMACallback" and "net.ema1"."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)}


def choose(tree: Any, path: Path, entry: str | None = None, notes: tuple[str, ...] = ()) -> Weights:
    """The set that `entry` names, or the default one.

    Raises:
      UserError: there are no tensors by name, no such entry, or several candidates. The message lists all sets.
    """
    sets = find_sets(tree)
    if not sets:
        held = f"; it holds {', '.join(map(str, list(tree)[:8]))}" if isinstance(tree, Mapping) and tree else ""
        raise UserError(f"{path} holds no tensors by name{held}")
    chosen = _by_default(sets, path) if entry is None else _by_name(sets, entry, path)
    raw = [other for other in sets if not other.is_average and other is not chosen]
    tensors, borrowed = chosen.tensors, 0
    if chosen.is_average or isinstance(tensors, list):
        tensors, borrowed = over(tensors, [other.tensors for other in raw if isinstance(other.tensors, dict)], path)
    others = [other for other in sets if other is not chosen]
    return Weights(
        tensors=tensors,
        source=path,
        entry=chosen.label if chosen.path or others else "",
        is_average=chosen.is_average,
        averages=tuple(other.label for other in others if other.is_average),
        others=tuple(other.label for other in others if not other.is_average),
        borrowed=borrowed,
        notes=notes,
    )


def _by_default(sets: list[TensorSet], path: Path) -> TensorSet:
    largest = max(found.size for found in sets)
    small = [found for found in sets if _SMALL * found.size < largest]
    raw = [found for found in sets if not found.is_average and found not in small]
    averages = [found for found in sets if found.is_average and (found not in small or _belongs(found, sets))]
    raw = [found for found in raw if isinstance(found.tensors, dict)] or raw
    usual = [found for found in raw if found.path and found.path[-1] in _USUAL]
    for candidates in (averages, raw if averages or len(usual) != 1 else usual):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            what = "averages of the parameters" if candidates is averages else "sets of weights"
            names = ", ".join(found.label for found in candidates)
            raise UserError(
                f"{path} has several {what}: {names}; choose one with --entry, such as --entry={candidates[0].label}"
            )
    return max(sets, key=lambda found: found.size)


def _belongs(average: TensorSet, sets: list[TensorSet]) -> bool:
    """Whether the file has raw weights with the names of an average."""
    raw = [other.tensors for other in sets if not other.is_average and isinstance(other.tensors, dict)]
    return isinstance(average.tensors, dict) and any(by_name(average.tensors, weights) is not None for weights in raw)


def _by_name(sets: list[TensorSet], entry: str, path: Path) -> TensorSet:
    wanted = entry.strip(".")
    for fits in (
        lambda label: label == wanted,
        lambda label: label.endswith(f".{wanted}"),
        lambda label: label.startswith(f"{wanted}."),
        lambda label: f".{wanted}." in label,
    ):
        found = [candidate for candidate in sets if wanted and fits(candidate.label)]
        if found:
            return _by_default(found, path)
    for candidate in sets:
        within = wanted.removeprefix(f"{candidate.label}.")
        inner = _below(candidate.tensors, within) if wanted and isinstance(candidate.tensors, dict) else {}
        if inner:
            where = (*candidate.path, within)
            return TensorSet(path=where, tensors=inner, is_average=says_average(where))
    labels = ", ".join(found.label for found in sets)
    raise UserError(f"{path} has no entry {entry!r}; there are: {labels}")


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin with a prefix, without it."""
    long = len(prefix) + 1
    return {name[long:]: value for name, value in tensors.items() if re.match(re.escape(prefix) + "[./].", name)}


def find_sets(tree: Any) -> list[TensorSet]:
    """All sets of tensors in the content of a file, in order."""
    everything = list(_walk(tree, (), itertools.count()))
    found = [part for part in everything if _keep(part)] or everything  # there may be nothing but single numbers
    if isinstance(tree, list) and len(found) == 2:
        first, last = found
        alike = isinstance(first.tensors, dict) and isinstance(last.tensors, dict) and _shapes(first) == _shapes(last)
        if alike and not first.is_average:  # [model, optimizer, epoch, step, average] in NCSN and DDIM
            found = [first, dataclasses.replace(last, is_average=True)]
    return found


def _shapes(found: TensorSet) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in found.tensors.items()}


def _keep(found: TensorSet) -> bool:
    """Whether a set can be weights, rather than an optimizer's state, counters or saved copies."""
    arrays = list(found.tensors.values() if isinstance(found.tensors, dict) else found.tensors)
    if all(array.size <= 1 or array.dtype.kind in "iub" for array in arrays):
        return False
    words = {word for part in found.path for word in _words(part)}
    if words & {"collected", "backup"}:
        return False
    inside = next((i for i, part in enumerate(found.path) if _NO_WEIGHTS.search(part)), None)
    return inside is None or (found.is_average and bool(words & _IN_NAMES))


def _walk(tree: Any, path: tuple[str, ...], visited: Iterator[int]) -> Iterator[TensorSet]:
    if not isinstance(tree, (Mapping, list)) or len(path) > _DEPTH or next(visited) > _CONTAINERS:
        return
    is_optimizer = isinstance(tree, Mapping) and "param_groups" in tree
    items = list(tree.items() if isinstance(tree, Mapping) else enumerate(tree))
    arrays = {key: value for key, value in items if isinstance(value, np.ndarray) and is_number(value.dtype)}
    named = {key: value for key, value in arrays.items() if isinstance(key, str)}
    if named:
        yield from _flat(_unwrapped(named), path)
    elif len(arrays) == len(items) and arrays:
        yield TensorSet(path=path, tensors=list(arrays.values()), is_average=says_average(path))
    for key, value in items:
        if not (is_optimizer and key == "state"):  # its moments
            yield from _walk(value, (*path, str(key)), visited)


def _flat(tensors: dict[str, np.ndarray], path: tuple[str, ...]) -> Iterator[TensorSet]:
    """The sets in one table: those whose name prefixes mark averages, and the rest."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    rest: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        prefix = _average_prefix(name)
        if prefix:
            groups.setdefault(prefix, {})[name[len(prefix) + 1 :]] = value
        else:
            rest[name] = value
    for prefix, inner in list(groups.items()):
        if not _pairs(inner, rest):  # ordinary layers with such names
            rest |= {name: tensors[name] for name in tensors if name.startswith((f"{prefix}.", f"{prefix}/"))}
            del groups[prefix]
    if not groups:
        average = says_average(path)
        yield TensorSet(path=path, tensors=_without_counters(tensors) if average else tensors, is_average=average)
        return
    rest = {name: tensors[name] for name in tensors if name in rest}  # in the order of the file
    firsts = {re.split(r"[./]", name)[0] for name in _without_counters(rest)}
    if len(firsts) == 1 and (first := next(iter(firsts))) not in rest:
        yield TensorSet(path=(*path, first), tensors=_below(rest, first), is_average=says_average((*path, first)))
    elif rest:
        yield TensorSet(path=path, tensors=rest, is_average=says_average(path))
    for prefix, inner in groups.items():
        yield from _flat(_unwrapped(inner), (*path, *re.split(r"[./]", prefix)))


def _average_prefix(name: str) -> str:
    """The beginning of a name up to the first part that marks an average; "" if there is none."""
    for part in re.finditer(r"[./]", name):
        last = re.split(r"[./]", name[: part.start()])[-1]
        words = _words(last)
        if words & _IN_NAMES and not words & _NOT_AVERAGES:
            return name[: part.start()]
    return ""


def _pairs(inner: Mapping[str, np.ndarray], rest: Mapping[str, np.ndarray]) -> bool:
    """Whether tensors are averages of others: most have the shape of one whose name has the same end."""
    if not _without_counters(rest):
        return True
    ends = {(_letters(name)[-24:], value.shape) for name, value in rest.items()}
    tails = {(_letters(name), value.shape) for name, value in rest.items()}
    hits = 0
    kept = _without_counters(inner)
    for name, value in kept.items():
        letters = _letters(name)
        whole = (letters[-24:], value.shape) in ends if len(letters) >= 24 else False
        hits += whole or any(tail.endswith(letters) and shape == value.shape for tail, shape in tails)
    return 2 * hits > len(kept)


def _letters(name: str) -> str:
    return re.sub(r"[^0-9a-zA-Z]", "", name)


def _without_counters(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without counters of updates: single numbers that are whole, or have such names."""

    def counts(name: str, value: np.ndarray) -> bool:
        return value.size == 1 and not re.search(r"[./]", name) and (value.dtype.kind in "iub" or name in _COUNTERS)

    return {name: value for name, value in tensors.items() if not counts(name, value)}


def _unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without the prefixes of parallel training and compilation, wherever and however often they occur."""

    def short(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for i, part in enumerate(parts) if part not in _WRAPPERS or i == len(parts) - 1)

    renamed = {short(name): value for name, value in tensors.items()}
    return renamed if len(renamed) == len(tensors) else tensors
