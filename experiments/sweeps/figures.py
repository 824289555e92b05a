"""The charts of an ablation: the deciding number, against cost or by value, and the learning curves."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from experiments.ground.writers import METRICS_FILE, read_metrics
from experiments.reports.charts import COLORS, Chart, Series
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.cells import Group, Kind, column_title, kinds

_PANELS = 9  # most kinds of training whose curves a Markdown page shows
_GREY = 7  # the neutral colour


def drawn_over(axes: Mapping[str, Collection[str]], groups: Sequence[Group]) -> str:
    """The horizontal axis of the chart: network "evaluations", as lines, if another axis than the first is a number
    that changes them; else the "first axis", with the others side by side; for a single axis the "cells".
    """
    first, *others = axes
    evaluations = [{g.evaluations for g in groups if g.values[first] == value} for value in axes[first]]
    if any(all(map(_is_number, axes[axis])) for axis in others) and max(map(len, evaluations)) > 1:
        return "evaluations"
    return "first axis" if others else "cells"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def result_chart(ablation: Ablation, groups: Sequence[Group], name: str) -> Chart | None:
    """The number `name` of the groups that have it, with intervals; None if there is nothing to compare."""
    groups = [group for group in groups if math.isfinite(group.estimate(name).mean)]
    if len(groups) < 2:
        return None
    over = drawn_over(ablation.axes, groups)
    if over == "evaluations":
        return chart_over_evaluations(ablation, groups, name)
    return (_over_first_axis if over == "first axis" else _by_cell)(ablation, groups, name)


def chart_over_evaluations(ablation: Ablation, groups: Sequence[Group], name: str) -> Chart | None:
    """The number over network evaluations, with a curve for each value of the first axis; None if these are all
    equal."""
    known = [g for g in groups if g.evaluations > 0 and math.isfinite(g.estimate(name).mean)]
    if len({group.evaluations for group in known}) < 2:
        return None
    axis = next(iter(ablation.axes))
    series = []
    for value in ablation.axes[axis]:
        mine = sorted((g for g in known if g.values[axis] == value), key=lambda group: group.evaluations)
        if mine:
            xs = [group.evaluations for group in mine]
            series.append(_estimates(f"{axis} {value}", xs, mine, name, joined=True))
    title = column_title(name)
    return Chart(title=title, series=series, axis="network evaluations for a sample", log_x=True, log_y=True)


def _estimates(
    label: str, xs: Sequence[float], groups: Sequence[Group], name: str, *, joined: bool, color: int | None = None
) -> Series:
    found = [group.estimate(name) for group in groups]
    means, halves = [one.mean for one in found], [one.half for one in found]
    return Series(name=label, steps=xs, values=means, errors=halves, sparse=True, joined=joined, color=color)


def _over_first_axis(ablation: Ablation, groups: Sequence[Group], name: str) -> Chart:
    first, *others = ablation.axes
    places = {value: position for position, value in enumerate(ablation.axes[first])}
    besides: dict[str, list[Group]] = {}
    for group in groups:
        besides.setdefault(", ".join(f"{axis} {group.values[axis]}" for axis in others), []).append(group)
    series = []
    for i, (label, mine) in enumerate(besides.items()):
        aside = 0.6 * ((i + 0.5) / len(besides) - 0.5)
        xs = [places[group.values[first]] + aside for group in mine]
        series.append(_estimates(label, xs, mine, name, joined=False))
    means = [group.estimate(name).mean for group in groups]
    log = min(means) > 0 and max(means) > 10 * min(means)
    return Chart(title=column_title(name), series=series, axis=first, places=tuple(places), log_y=log)


def _by_cell(ablation: Ablation, groups: Sequence[Group], name: str) -> Chart:
    seeds = [(place, value) for place, group in enumerate(groups) for value in group.numbers(name).values()]
    xs, values = zip(*seeds, strict=True)
    series = [
        Series(name="seeds", steps=xs, values=values, sparse=True, joined=False, color=_GREY),
        _estimates("mean", range(len(groups)), groups, name, joined=False, color=0),
    ]
    labels = tuple(", ".join(group.values.values()) for group in groups)
    return Chart(title=column_title(name), series=series, axis=", ".join(ablation.axes), places=labels, log_y=False)


def loss_charts(directory: Path, groups: Sequence[Group]) -> list[Chart]:
    """The losses of all trainings, named by the values of the axes; seeds of one kind share a colour.

    If there are more kinds than colours, there is a chart for each value of the first axis that distinguishes them.
    """
    found = kinds(groups)
    split: dict[str, list[tuple[Kind, str]]] = {}
    axes = [axis for axis in (found[0].values if found else {}) if len({k.values.get(axis) for k in found}) > 1]
    for kind in found:
        first, *others = axes or [""]
        apart = len(found) > COLORS and len(axes) > 1
        own = {axis: kind.values[axis] for axis in (others if apart else axes) if axis in kind.values}
        label = ", ".join(f"{axis} {value}" for axis, value in own.items()) or "training"
        split.setdefault(f"{first} {kind.values[first]}: " if apart else "", []).append((kind, label))
    charts = []
    for title, members in split.items():
        series = []
        for color, (kind, label) in enumerate(members):
            for training, _ in kind.trainings.values():
                rows = [row for row in _logged(directory, training) if "loss" in row]
                steps, values = [row["step"] for row in rows], [row["loss"] for row in rows]
                series.append(Series(name=label, steps=steps, values=values, color=color))
        charts.append(Chart(title=f"{title}training loss by step", series=series))
    return charts


def error_charts(directory: Path, groups: Sequence[Group]) -> list[Chart]:
    """A panel for each kind of training, with its seeds: squared errors and, if the loss is the same number, the
    held-out loss, dashed. None if there is nothing to compare, or more than fits.
    """
    found = kinds(groups)
    if not 1 < len(found) <= _PANELS:
        return []
    charts = []
    for kind in found:
        series = []
        for color, seed in enumerate(sorted(kind.trainings)):
            logged = _logged(directory, kind.trainings[seed][0])
            weighted = any(not math.isclose(row["mse"], row["loss"], rel_tol=1e-4) for row in logged if "mse" in row)
            for name, dashed in (("mse", False), *([] if weighted else [("validation_loss", True)])):
                rows = [row for row in logged if name in row]
                if rows:
                    steps, values = [row["step"] for row in rows], [row[name] for row in rows]
                    series.append(Series(name=name, steps=steps, values=values, dashed=dashed, color=color))
        charts.append(Chart(title=kind.name, series=series, log_y=True))
    return charts


def _logged(directory: Path, training: str) -> list[dict]:
    return read_metrics(directory / "trainings" / training / METRICS_FILE)
