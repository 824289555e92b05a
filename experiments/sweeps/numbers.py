"""The table of an ablation's results, and the format of its numbers."""

import dataclasses
import math

from experiments.reports.charts import format_number
from experiments.reports.tables import Cell, Column, Table
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.cells import Group, Key, best_group, column_title, front
from experiments.sweeps.statistics import Comparison, Estimate

AGAINST = ("against the baseline", "p (Holm)")
"""Titles of the columns with comparisons to the baseline."""
_SIGNIFICANT = 0.05


def results_table(ablation: Ablation, groups: list[Group], columns: list[str], tests: dict[Key, Comparison]) -> Table:
    """A row for each group: its values, network evaluations, numbers, and the deciding number compared with the
    baseline.

    Args:
      ablation: the ablation.
      groups: its finished groups.
      columns: names of the numbers, the deciding one first.
      tests: the comparisons with the baseline, by group.
    """
    titles = [*(Column(axis) for axis in ablation.axes), Column("NFE", number=True)]
    titles += [Column(title, number=True) for title in (*map(column_title, columns), *AGAINST)]
    best = {column: best_group(groups, column) for column in columns}
    rows = []
    for group, first in zip(groups, front(groups, columns[0]), strict=True):
        mark = {"mark": "●", "about": "on the Pareto front"} if first else {}
        row = [*group.values.values(), Cell(number_text(group.evaluations), value=_known(group.evaluations), **mark)]
        for column in columns:
            estimate = group.estimate(column)
            test = tests.get(group.key) if column == columns[0] else None
            star = {"mark": "*", "about": "p < 0.05"} if test is not None and test.corrected < _SIGNIFICANT else {}
            strong = group.key == best[column]
            row.append(Cell(interval_text(estimate), strong=strong, value=_known(estimate.mean), **star))
        rows.append((*row, *_against(group, ablation, tests)))
    return Table.of(titles, rows)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _against(group: Group, ablation: Ablation, tests: dict[Key, Comparison]) -> tuple[Cell, Cell]:
    if group.values == ablation.baseline:
        return Cell("baseline", value=0.0), Cell("")
    test = tests.get(group.key)
    if test is None:
        return Cell("–"), Cell("–")
    sign = "+" if test.difference.mean > 0 else "-" if test.difference.mean < 0 else ""
    size = interval_text(dataclasses.replace(test.difference, mean=abs(test.difference.mean)))
    difference = Cell(f"{sign}{size}", value=_known(test.difference.mean))
    return difference, Cell(p_text(test), value=_known(test.corrected))


def p_text(test: Comparison) -> str:
    """The corrected p-value; for several seeds without one, a note that there is no test."""
    if math.isfinite(test.corrected):
        return format_number(float(f"{test.corrected:.2g}"))
    return "n/a" if test.difference.count > 1 else "–"


def number_text(value: float) -> str:
    """A number, or a sign that it is not known."""
    return format_number(value) if math.isfinite(value) else "–"


def interval_text(estimate: Estimate) -> str:
    """Mean ± half of the interval, or a sign that it is not known."""
    if not math.isfinite(estimate.mean):
        return "–"
    mean = format_number(float(f"{estimate.mean:.4g}"))
    return mean if not math.isfinite(estimate.half) else f"{mean} ± {format_number(float(f'{estimate.half:.2g}'))}"
