"""An average laid over the raw weights of the same file: for its names, or for what it does not average."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]
_PARTS = 4  # of a name that raw weights may have before that of the average


def over(
    average: Tensors | Sequence[np.ndarray], raw: Sequence[Tensors], path: Path
) -> tuple[dict[str, np.ndarray], int]:
    """The average by name, with what it lacks from raw weights, and how many tensors these are.

    Args:
      average: by name, or in the order of the trained tensors of the raw weights.
      raw: sets that it may be the average of.
      path: what errors name.

    Raises:
      UserError: a list that fits no raw weights.
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
    """The average with what it lacks; None where these are not the raw weights of the average."""
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
    """ "", and the starts of names up to a dot or stroke, the shortest first."""
    found: dict[str, None] = {"": None}
    for name in weights:
        for part in list(re.finditer(r"[./]", name))[:_PARTS]:
            found[name[: part.end()]] = None
    return sorted(found, key=lambda prefix: len(re.findall(r"[./]", prefix)))


def _letters(name: str) -> str:
    return re.sub(r"[^0-9a-zA-Z]", "", name)


def _in_order(average: Sequence[np.ndarray], weights: Tensors) -> list[str]:
    """The names of the tensors of a list, which has the trained tensors of the raw weights in their order.

    Which are trained is not said. Statistics and fixed frequencies (score SDE's vectors called W) are not; otherwise
    the shapes have to leave one way only.
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
    """The earliest places where the wanted shapes are found in order."""
    found, at = [], 0
    for shape in wanted:
        while at < len(there) and there[at] != shape:
            at += 1
        if at == len(there):
            return None
        found.append(at)
        at += 1
    return found
