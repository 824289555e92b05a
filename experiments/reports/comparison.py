"""Several runs on one page: differences between configs, curves in one chart, samples side by side, metrics."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.files import replace_file
from experiments.ground.workdir import defaults
from experiments.reports.charts import Chart, Series
from experiments.reports.metrics import rows
from experiments.reports.page import escape, image_element, page
from experiments.reports.run import Run, flatten
from experiments.reports.summary import numbers
from experiments.reports.tables import Column, Table

_ABSENT = "–"


def write_comparison(workdirs: Sequence[str | os.PathLike], path: Path) -> Path:
    """Write the page about some runs, where the others are compared with the first; returns its path."""
    runs = [Run(workdir) for workdir in workdirs]
    names = run_names(runs)
    sections = [
        ("In short", summary(runs, names).html()),
        ("What differs", _differences(runs, names)),
        ("Curves", _curves(runs, names)),
        ("Samples", _samples(runs, names)),
        ("Metrics", _metrics(runs, names)),
    ]
    problems = "".join(f'<p class="problem">{escape(problem)}</p>' for run in runs for problem in run.problems)
    lead = escape(", ".join(run.given for run in runs))
    replace_file(path, page(" and ".join(names), "diffusion_jax comparison", lead, sections, top=problems).encode())
    return path


def run_names(runs: Sequence[Run]) -> list[str]:
    """The name of each run: the last part of its path, or as much of the path as distinguishes it from the others."""
    parts = [run.path.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [run.given for run in runs]


def summary(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """The most important numbers, with a column for each run."""
    found = [{one.label: f"{one.value}{one.unit}" for one in numbers(run)} for run in runs]
    steps = ["" if run.step is None else f"{run.step:,}" for run in runs]
    lines = [("Steps", *steps)]
    lines += [(label, *(one.get(label, _ABSENT) for one in found)) for label in _together(found)]
    return Table.of((Column("", names_row=True), *(Column(name, number=True) for name in names)), lines)


def _together(found: Sequence[dict[Any, Any]]) -> list[Any]:
    """The keys of all, in the order of their first appearance."""
    return list(dict.fromkeys(key for one in found for key in one))


def _differences(runs: Sequence[Run], names: Sequence[str]) -> str:
    configs = [{**defaults(), **flatten(run.config)} if run.config else {} for run in runs]
    lines = []
    for field in sorted(_together(configs)):
        values = [_shown(config[field]) if field in config else _ABSENT for config in configs]
        if len(set(values)) > 1:
            lines.append((field, *values))
    if not lines:
        return '<p class="about">The configs are the same.</p>'
    table = Table.of((Column("field", names_row=True), *(Column(name, kind="mono") for name in names)), lines)
    return f'<div class="scroll">{table.html(sortable=True)}</div>'


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A chart for each logged number; validation is dashed, in the colour of its run."""
    curves = [run.curves() for run in runs]
    repeated = set.intersection(*({*run.repeated()} for run in runs))
    charts = []
    for title in sorted(_together(curves), key=lambda name: (name != "loss", name)):
        if title in repeated:
            continue
        series = [
            Series(
                name=name if one.name == "training" else f"{name}, {one.name}",
                steps=one.steps,
                values=one.values,
                sparse=one.sparse,
                dashed=one.sparse,
                color=color,
            )
            for color, (name, found) in enumerate(zip(names, curves, strict=True))
            for one in found.get(title, [])
        ]
        size = {} if title == "loss" else {"width": 470, "height": 210}
        charts.append(Chart(title=title.replace("_", " "), series=series).html(**size))
    first, *others = charts or [""]
    return f'{first}<div class="pair">{"".join(others)}</div>' if charts else ""


def _samples(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The final samples of each run, side by side."""
    pictures = [image_element(run.path / "samples" / "final.png", f"samples of {name}")
                for run, name in zip(runs, names, strict=True)]  # fmt: skip
    if not any(pictures):
        return ""
    blocks = "".join(
        f"<div><h3>{escape(name)}</h3>{picture or '<p class=about>No final samples yet.</p>'}</div>"
        for name, picture in zip(names, pictures, strict=True)
    )
    return f'<p class="about">{escape(noise(runs))}</p><div class="samples">{blocks}</div>'


def noise(runs: Sequence[Run]) -> str:
    """Whether the samples start from the same noise, which is so for the same seed and size."""
    seeds = {None if (seed := run.settings.get("seed")) is None else str(seed) for run in runs}
    sizes = {str([_field(run, "data", name) for name in ("dataset", "image_size")]) for run in runs}
    if seeds == {None}:
        return "Drawn at random; with which seeds is not known."
    if len(seeds) == 1 and len(sizes) == 1:
        return f"Drawn from the same noise, of seed {next(iter(seeds))}; none was picked by hand."
    differs = " and ".join(what for what, values in (("seed", seeds), ("data", sizes)) if len(values) > 1)
    return f"Drawn at random from different noise, as the runs differ in {differs}; none was picked by hand."


def _field(run: Run, group: str, name: str) -> Any:
    fields = run.config.get(group)
    return fields.get(name) if isinstance(fields, dict) else None


def _metrics(runs: Sequence[Run], names: Sequence[str]) -> str:
    found = [rows(run.groups) for run in runs]
    lines = [(*key, *(one.get(key, _ABSENT) for one in found)) for key in _together(found)]
    if not lines:
        return ""
    columns = (Column("metric", names_row=True), Column("measure"), *(Column(name, number=True) for name in names))
    about = (
        "In brackets the 95% interval of a number over its samples; it does not tell how far another seed would lie."
    )
    table = Table.of(columns, lines).html(sortable=True)
    return f'<p class="about">{about}</p><div class="scroll">{table}</div>'
