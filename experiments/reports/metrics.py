"""The metrics section of the report: for each number its meaning, its value, and its 95% interval."""

import html
import math
import re
import string
from collections.abc import Mapping
from typing import Any

from diffusion_jax.likelihood import METRICS
from diffusion_jax.metrics import Facts
from experiments.reports.charts import format_number
from experiments.reports.tables import Cell, Column, Table

Group = dict[str, int | float]

_MISSING = "–"
_CLASS = re.compile(r"class_\d+")


def _facts(metric: str) -> Facts:
    """The facts of a metric; for one that is not registered here, only its name."""
    if metric in METRICS:
        return METRICS.facts(metric)
    return Facts(title=metric.replace("_", " "), about="", headline="", lower_is_better=None, reads=frozenset())


def read_groups(content: Mapping[str, Any]) -> tuple[dict[str, Group], dict[str, Any]]:
    """The numbers of an evaluation by metric, and its settings.

    The input may be {metric: {name: number}}, {"metrics": {metric: {...}}} or {"metric/name": number}; other plain
    values at the top level, and those under "settings", are settings.
    """
    groups: dict[str, Group] = {}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if key == "settings" and isinstance(value, dict):
            settings |= value
        elif key == "metrics" and isinstance(value, dict):
            inner, more = read_groups(value)
            groups |= inner
            settings |= more
        elif isinstance(value, dict):
            numbers = {str(name): math.nan if number is None else number for name, number in value.items()}
            numbers = {name: number for name, number in numbers.items() if _is_number(number)}
            if numbers:
                groups.setdefault(key, {}).update(numbers)
        elif "/" in key and _is_number(value):
            group, _, name = key.rpartition("/")
            groups.setdefault(group, {})[name] = value
        else:
            settings[key] = value
    return groups, settings


def headline(groups: Mapping[str, Group]) -> list[tuple[str, str, str]]:
    """Cards (label, value, note) for the metrics whose deciding number is present."""
    cards = []
    for name, group in groups.items():
        facts = _facts(name)
        if facts.headline and facts.headline in group:
            value = _formatted(group[facts.headline], facts.number(facts.headline).kind)
            cards.append((facts.title, value, _note(facts, group)))
    return cards


def rows(groups: Mapping[str, Group]) -> dict[tuple[str, str], str]:
    """Every number of some metrics for people, with its 95% interval if there is one, by (metric, label)."""
    found = {}
    for name, group in groups.items():
        facts = _facts(name)
        for key in _plain(group):
            number, interval = facts.number(key), _interval(key, group)
            text = _formatted(group[key], number.kind)
            if interval:
                text += f" ({_formatted(interval[0], number.kind)} to {_formatted(interval[1], number.kind)})"
            found[facts.title, number.label] = text
    return found


def _plain(group: Group) -> list[str]:
    """The numbers of a metric without bounds of intervals, counts and single classes."""
    bounds = {f"{key}_{end}" for key in group if _interval(key, group) for end in ("low", "high")}
    return [key for key in group if key not in bounds and not key.startswith("num_") and not _CLASS.fullmatch(key)]


def _note(facts: Facts, group: Group) -> str:
    """The note below a headline; empty if one of its numbers is missing."""
    keys = [key for _, key, _, _ in string.Formatter().parse(facts.note) if key]
    if any(not _is_finite(group.get(key)) for key in keys):
        return ""
    shown = {key: _formatted(group[key], facts.number(key).kind) for key in keys}
    counted = {
        key: "no" if facts.number(key).kind == "count" and group[key] == 0 else text for key, text in shown.items()
    }
    return facts.note.format(**counted)


def evaluation_section(groups: Mapping[str, Group], settings: Mapping[str, Any]) -> str:
    """All metrics as tables; empty if there are none."""
    if not groups:
        return ""
    drawn = "".join(
        f"<span>{html.escape(name.removeprefix('num_').replace('_', ' '))} <b>{html.escape(_setting(value))}</b></span>"
        for name, value in _flat(settings).items()
        if value is not None
    )
    note = f'<p class="settings">{drawn}</p>' if drawn else ""
    return note + "".join(_metric(name, group) for name, group in groups.items())


def _metric(name: str, group: Group) -> str:
    facts = _facts(name)
    classes = {key.removeprefix("class_"): value for key, value in group.items() if _CLASS.fullmatch(key)}
    bounds = any(_interval(key, group) for key in group)
    counts = [key for key in group if key.startswith("num_")]
    columns = [Column("Measure", names_row=True), Column("Value", number=True)]
    if bounds:
        scale = "<span>0</span><span>100%</span>"
        columns += [Column("95% interval", number=True, kind="between"), Column("", kind="range", drawn=scale)]
    rows = [_row(key, group, facts, with_interval=bounds) for key in _plain(group)]
    table = Table.of(columns, rows).html(kind="" if bounds else "narrow")
    paragraph = f'<p class="about">{html.escape(facts.about)}</p>' if facts.about else ""
    return (
        f'<div class="metric"><h3>{html.escape(facts.title)}</h3>{paragraph}<div class="scroll">{table}</div>'
        f"{_classes(classes)}{_counts(counts, group, facts)}</div>"
    )


def _counts(keys: list[str], group: Group, facts: Facts) -> str:
    """The amounts of data behind the numbers, as one sentence."""
    parts = [f"{_formatted(group[key], 'count')} {facts.number(key).label}" for key in keys]
    return f'<p class="about counts">From {html.escape(", ".join(parts))}.</p>' if parts else ""


def _interval(key: str, group: Group) -> tuple[float, float] | None:
    low, high = group.get(f"{key}_low"), group.get(f"{key}_high")
    return (low, high) if _is_finite(low) and _is_finite(high) else None


def _row(key: str, group: Group, facts: Facts, *, with_interval: bool) -> list[str | Cell]:
    number = facts.number(key)
    label, kind = number.label, number.kind
    value, interval = group[key], _interval(key, group)
    cells: list[str | Cell] = [label, _formatted(value, kind)]
    if with_interval:
        text, drawing = "", ""
        if interval:
            text = f"{_formatted(interval[0], kind)} to {_formatted(interval[1], kind)}"
            drawing = _bar(value, *interval) if kind == "percent" and _is_finite(value) else ""
        cells += [text, Cell("", drawn=drawing)]
    return cells


def _bar(value: float, low: float, high: float) -> str:
    """The interval on a line from 0 to 100%."""
    left, width = 100 * low, 100 * (high - low)
    span = f'<i style="left:{left:.2f}%;width:{width:.2f}%"></i>'
    return f'<div class="interval" aria-hidden="true">{span}<b style="left:{100 * value:.2f}%"></b></div>'


def _classes(classes: Mapping[str, int | float]) -> str:
    """The accuracy by class, in the order of the classes."""
    cells = [
        f"<div>{name} <strong>{100 * classes[name]:.0f}%</strong>"
        f'<span><i style="width:{100 * classes[name]:.1f}%"></i></span></div>'
        for name in sorted(classes, key=int)
        if _is_finite(classes[name])
    ]
    return f'<div class="classes" aria-label="accuracy by class">{"".join(cells)}</div>' if cells else ""


def _formatted(value: int | float, kind: str) -> str:
    if not _is_finite(value):
        return _MISSING
    if kind == "percent":
        return f"{100 * value:.1f}%"
    return f"{value:.2f}×" if kind == "ratio" else format_number(value)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of each feature space, once, and the reason for each metric that was left out."""
    flat = {name: value for name, value in settings.items() if name not in ("feature_spaces", "unavailable")}
    for space in _mapping(settings.get("feature_spaces")).values():
        flat |= {name: str(value)[:16] if isinstance(value, str) else value for name, value in _mapping(space).items()}
    return flat | {f"no {name}": str(why).split(":")[0] for name, why in _mapping(settings.get("unavailable")).items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    """A mapping from a file; empty if the file has something else there."""
    return value if isinstance(value, Mapping) else {}


def _setting(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:  # shown like a call of the part
        options = ", ".join(f"{key}={_setting(option)}" for key, option in value.items() if key != "name")
        return f"{value['name']}({options})" if options else str(value["name"])
    return format_number(value) if _is_number(value) else str(value)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) < math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
