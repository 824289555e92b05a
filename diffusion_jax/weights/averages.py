"""Combining an average with the raw weights of the same file, for names or for tensors that it lacks."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]
_PARTS = 4  # parts of a name by which raw weights may exceed the average's


def over(
    average: Tensors | Sequence[np.ndarray], raw: Sequence[Tensors], path: Path
) -> tuple[dict[str, np.ndarray], int]:
    """The average by name, with missing tensors taken from raw weights, and the number of these.

    Args:
      average: by name, or in the order of the trained tensors of the raw weights.
      raw: sets that it may be the average of.
      path: the name of the file in errors.

    Raises:
      UserError: a list does not fit any raw weights.
    """
    if isinstance(average, Mapping):
        for weights in raw:
            found = by_name(average, weights)
            if found is not None:
                return found, len(found) - len(average)
        return dict(average), 0
    reasons = []
    for weights in raw:
        try:
            names = _in_order(average, weights)
        except UserError as error:
            reasons.append(str(error))
            continue
        return {**weights, **dict(zip(names, average, strict=True))}, len(weights) - len(average)
    raise UserError(
        f"{path}: the weights are a list of {len(average)} tensors without names, "
        + ("; ".join(reasons) or "and the file has no raw weights to take the names from")
    )


def by_name(average: Tensors, weights: Tensors) -> dict[str, np.ndarray] | None:
    """The average with missing tensors filled in; None if these are not its raw weights."""
    for prefix in _prefixes(weights):
        inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if all(name in inside and inside[name].shape == value.shape for name, value in average.items()):
            return {**inside, **average}
    for prefix in _prefixes(weights):  # names without dots
        inside = {_letters(name.removeprefix(prefix)): name for name in weights if name.startswith(prefix)}
        names = [inside.get(_letters(name)) for name in average]
        if None not in names and len(set(names)) == len(names):
            pairs = list(zip(names, average.values(), strict=True))
            if all(weights[name].shape == value.shape for name, value in pairs):
                return {**weights, **dict(pairs)}
    return None


def _prefixes(weights: Tensors) -> list[str]:
    """ "", and the beginnings of names up to a dot or slash, the shortest first."""
    found: dict[str, None] = {"": None}
    for name in weights:
        for part in list(re.finditer(r"[./]", name))[:_PARTS]:
            found[name[: part.end()]] = None
    return sorted(found, key=lambda prefix: len(re.findall(r"[./]", prefix)))


def _letters(name: str) -> str:
    return re.sub(r"[^0-9a-zA-Z]", "", name)


def _in_order(average: Sequence[np.ndarray], weights: Tensors) -> list[str]:
    """Names for the tensors of a list that follows the order of the trained tensors of the raw weights.

    The list does not say which tensors are trained. Statistics and fixed frequencies (score SDE's vectors called W) are
    not; apart from these, the shapes must allow only one assignment.
    """
    shapes = [value.shape for value in average]
    trained = [name for name, value in weights.items() if not _is_fixed(name, value)]
    if [weights[name].shape for name in trained] == shapes:
        return trained
    names = list(weights)
    first = _embedding(shapes, [weights[name].shape for name in names])
    last = _embedding(shapes[::-1], [weights[name].shape for name in names[::-1]])
    if first is None or last is None:
        raise UserError(f"and the model has {len(trained)} in which theirs are not found in order")
    if first != [len(names) - 1 - i for i in last[::-1]]:
        raise UserError("and their shapes fit those of the model in more than one way")
    return [names[i] for i in first]


def _is_fixed(name: str, value: np.ndarray) -> bool:
    last = re.split(r"[./]", name)[-1]
    statistics = last in ("running_mean", "running_var", "num_batches_tracked", "sigmas")
    return statistics or value.dtype.kind in "iub" or (last == "W" and value.ndim == 1)


def _embedding(wanted: Sequence[tuple], there: Sequence[tuple]) -> list[int] | None:
    """The earliest positions at which the wanted shapes occur in order."""
    found, at = [], 0
    for shape in wanted:
        while at < len(there) and there[at] != shape:
            at += 1
        if at == len(there):
            return None
        found.append(at)
        at += 1
    return found
