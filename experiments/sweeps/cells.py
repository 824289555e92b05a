"""The finished cells of an ablation: their files, the numbers in them, and comparisons with the baseline."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json
from diffusion_jax.likelihood import METRICS
from diffusion_jax.metrics import Number
from experiments.sweeps.ablation import Ablation, Cell
from experiments.sweeps.statistics import Comparison, Estimate, best, compare, holm, pareto_front

Key = tuple[str, ...]
"""The names of a group's values, in the order of the axes."""


def result_file(directory: Path, cell: Cell) -> Path:
    """The path of a cell's numbers."""
    return directory / "cells" / f"{cell.name}.json"


def identity(cell: Cell) -> dict[str, Any]:
    """The identity of a cell's results, as stored in its JSON file."""
    metrics = tuple(cell.config.evaluation.metrics)
    of_cell = {"values": dict(cell.values), "seed": cell.seed, "training": cell.training, "metrics": metrics}
    return json.loads(json.dumps({**of_cell, "overrides": dict(cell.overrides)}))


def stored(directory: Path, cell: Cell) -> dict[str, Any] | None:
    """The content of a cell's file; None if there is none.

    Raises:
      UserError: the file is damaged, or does not hold the results of a cell.
    """
    path = result_file(directory, cell)
    if not path.exists():
        return None
    content = read_json(path)
    results = content.get("results")
    groups = list(results.values()) if isinstance(results, dict) else []
    if not groups or not all(isinstance(group, dict) for group in groups) or "settings" not in results:
        raise UserError(f"{path} holds no results of a cell")
    return content


def is_done(directory: Path, cell: Cell) -> bool:
    """Whether the results of a cell exist and can be read."""
    try:
        return stored(directory, cell) is not None
    except UserError:
        return False


def damage(directory: Path, cells: Sequence[Cell]) -> list[str]:
    """Descriptions of damaged files of finished cells."""
    found = []
    for cell in cells:
        try:
            stored(directory, cell)
        except UserError as error:
            found.append(str(error))
    return found


@dataclasses.dataclass(frozen=True)
class Group:
    """The finished cells that differ only in the seed.

    Attributes:
      values: name of the value on each axis.
      results: content of the cell's file, by seed.
      cells: the cells, by seed.
    """

    values: dict[str, str]
    results: dict[int, dict[str, Any]]
    cells: dict[int, Cell]

    @property
    def key(self) -> Key:
        """The names of the values."""
        return tuple(self.values.values())

    @property
    def label(self) -> str:
        """A label for people."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items())

    def numbers(self, name: str) -> dict[int, float]:
        """The finite values of "metric/number" or "settings/number", by seed."""
        metric, _, number = name.partition("/")
        found = {seed: result.get(metric, {}).get(number) for seed, result in self.results.items()}
        return {seed: float(value) for seed, value in found.items() if _is_finite(value)}

    def estimate(self, name: str) -> Estimate:
        """The mean over the seeds."""
        return Estimate.of(list(self.numbers(name).values()))

    @property
    def evaluations(self) -> float:
        """Network evaluations per sample; nan if no cell says."""
        return next(iter(self.numbers("settings/network_evaluations").values()), math.nan)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def read(ablation: Ablation, directory: Path) -> list[Group]:
    """The finished cells, in the order of the axes; a damaged file counts as unfinished."""
    groups: dict[Key, Group] = {}
    for cell in ablation.cells:
        if is_done(directory, cell):
            group = groups.setdefault(tuple(cell.values.values()), Group(dict(cell.values), {}, {}))
            group.results[cell.seed] = stored(directory, cell)["results"]
            group.cells[cell.seed] = cell
    return list(groups.values())


@dataclasses.dataclass(frozen=True)
class Kind:
    """The trainings that differ only in the seed.

    Attributes:
      values: the value on each axis that all cells of these trainings share.
      trainings: name and config of each training, by seed.
    """

    values: dict[str, str]
    trainings: dict[int, tuple[str, ConfigDict]]

    @property
    def name(self) -> str:
        """A name for people; empty if all cells share a training."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items())


def kinds(groups: Sequence[Group]) -> list[Kind]:
    """The kinds of training behind some groups, in order."""
    found: dict[str, Kind] = {}
    for group in groups:
        for seed, cell in group.cells.items():
            kind = found.setdefault(repr(sorted(cell.trained.items(), key=str)), Kind(dict(group.values), {}))
            kind.trainings[seed] = (cell.training, cell.training_config)
            for axis in [axis for axis, value in kind.values.items() if group.values[axis] != value]:
                del kind.values[axis]
    return list(found.values())


def comparisons(ablation: Ablation, groups: list[Group], name: str) -> dict[Key, Comparison]:
    """Comparisons of every group with the baseline in one number, corrected for multiple comparisons."""
    baseline = next((group for group in groups if group.values == ablation.baseline), None)
    if baseline is None:
        return {}
    found = {
        group.key: compare(group.numbers(name), baseline.numbers(name)) for group in groups if group is not baseline
    }
    found = {key: one for key, one in found.items() if one is not None}
    return dict(zip(found, holm(list(found.values())), strict=True))


def deciding_number(ablation: Ablation) -> str:
    """ "metric/number" of the number that decides the ablation."""
    return f"{ablation.metric}/{METRICS.facts(ablation.metric).headline}"


def number_columns(ablation: Ablation, groups: list[Group]) -> list[str]:
    """ "metric/number" of every number in the tables, the deciding one first."""
    there = {metric for group in groups for result in group.results.values() for metric in result}
    metrics = sorted(metric for metric in {*there, ablation.metric} if metric in METRICS)
    metrics.sort(key=lambda metric: metric != ablation.metric)
    return [f"{metric}/{number}" for metric in metrics for number in METRICS.facts(metric).shown]


def number_of(column: str) -> Number:
    """The facts about a number "metric/number"."""
    metric, _, number = column.partition("/")
    return METRICS.facts(metric).number(number)


def column_title(column: str) -> str:
    """The heading of a column for "metric/number"; an arrow shows which direction is better."""
    metric, _, number = column.partition("/")
    facts = METRICS.facts(metric)
    name = number if facts.also else metric
    return f"{name.replace('_', ' ')} {number_of(column).arrow}".rstrip()


def best_group(groups: Sequence[Group], column: str) -> Key | None:
    """The group with the best mean; None if no mean is known."""
    place = best([number_of(column).badness(group.estimate(column).mean) for group in groups])
    return None if place is None else groups[place].key


def front(groups: Sequence[Group], column: str) -> list[bool]:
    """For each group, whether no other group is both cheaper and better."""
    badness = [number_of(column).badness(group.estimate(column).mean) for group in groups]
    return pareto_front([group.evaluations for group in groups], badness)
