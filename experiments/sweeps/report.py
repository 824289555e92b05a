"""The results of an ablation as a page, a table for a spreadsheet, one for LaTeX, and JSON."""

import csv
import dataclasses
import html
import io
import json
import math
from pathlib import Path
from typing import Any

from diffusion_jax.files import replace_file
from experiments.ground.writers import METRICS_FILE, TIMINGS_FILE, read_metrics
from experiments.reports.charts import Series, format_number, line_chart
from experiments.reports.report import image_element, page
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.cells import (
    Group,
    Key,
    best_group,
    column_title,
    comparisons,
    deciding_number,
    front,
    number_columns,
    read,
)
from experiments.sweeps.origin import made, shown_path
from experiments.sweeps.statistics import Comparison, Estimate

_CURVES = 4  # that have a colour of their own


def write_reports(ablation: Ablation, directory: Path) -> Path:
    """Write results.csv, results.json, results.tex and report.html from the cells that are done; the page's path."""
    groups = read(ablation, directory)
    columns = number_columns(ablation, groups)
    tests = comparisons(ablation, groups, deciding_number(ablation))
    replace_file(directory / "results.csv", _csv(ablation, groups, columns).encode())
    replace_file(directory / "results.json", _json(ablation, directory, groups, columns, tests).encode())
    replace_file(directory / "results.tex", _latex(ablation, groups, columns, tests).encode())
    replace_file(directory / "report.html", _page(ablation, directory, groups, columns, tests).encode())
    return directory / "report.html"


def _csv(ablation: Ablation, groups: list[Group], columns: list[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*ablation.axes, "seed", "network_evaluations", "training", *columns])
    for group in groups:
        for seed, cell in group.cells.items():
            numbers = [group.numbers(column).get(seed, "") for column in columns]
            evaluations = group.evaluations if math.isfinite(group.evaluations) else ""
            writer.writerow([*group.values.values(), seed, evaluations, cell.training, *numbers])
    return out.getvalue()


def _json(
    ablation: Ablation, directory: Path, groups: list[Group], columns: list[str], tests: dict[Key, Comparison]
) -> str:
    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    rows = []
    for group in groups:
        row: dict[str, Any] = {"values": group.values, "network_evaluations": known(group.evaluations), "numbers": {}}
        for column in columns:
            estimate = group.estimate(column)
            row["numbers"][column] = {
                "mean": known(estimate.mean),
                "half_width_95": known(estimate.half),
                "by_seed": {str(seed): value for seed, value in group.numbers(column).items()},
            }
        if group.key in tests:
            test = tests[group.key]
            row["against_baseline"] = {
                "number": columns[0],
                "difference": known(test.difference.mean),
                "half_width_95": known(test.difference.half),
                "p_paired_t": known(test.p),
                "p_holm": known(test.corrected),
            }
        rows.append(row)
    content = {
        "title": ablation.title,
        "config": shown_path(ablation.path),
        "made": made(ablation, directory),
        "baseline": ablation.baseline,
        "metric": deciding_number(ablation),
        "seeds": ablation.seeds,
        "cells_done": sum(len(group.results) for group in groups),
        "cells": len(ablation.cells),
        "rows": rows,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "→": r"$\rightarrow$",
}  # fmt: skip


def _latex(ablation: Ablation, groups: list[Group], columns: list[str], tests: dict[Key, Comparison]) -> str:
    """A table for booktabs; the best mean of each column is bold, and a star marks p < 0.05 after Holm's correction."""

    def safe(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in text)

    best = {column: best_group(groups, column) for column in columns}
    lines = [
        r"\begin{tabular}{" + "l" * len(ablation.axes) + "r" * (1 + len(columns)) + "}",
        r"\toprule",
        " & ".join([*map(safe, ablation.axes), "NFE", *(safe(column_title(column)) for column in columns)]) + r" \\",
        r"\midrule",
    ]
    for group in groups:
        cells = [*map(safe, group.values.values()), number_text(group.evaluations)]
        for column in columns:
            estimate = group.estimate(column)
            if not estimate.count:
                cells.append("--")
                continue
            text = f"{estimate.mean:.3f}"
            text = rf"\mathbf{{{text}}}" if group.key == best[column] else text
            text += rf" \pm {estimate.half:.3f}" if math.isfinite(estimate.half) else ""
            star = column == columns[0] and group.key in tests and tests[group.key].corrected < 0.05
            cells.append(f"${text}{'^*' if star else ''}$")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _page(
    ablation: Ablation, directory: Path, groups: list[Group], columns: list[str], tests: dict[Key, Comparison]
) -> str:
    done = sum(len(group.results) for group in groups)
    number = deciding_number(ablation).rpartition("/")[2]
    lead = f"{done} of {len(ablation.cells)} cells, {len(ablation.seeds)} seeds each; decided by {number}"
    sections = [
        ("Results", _table(ablation, groups, columns, tests)),
        ("Quality against cost", _pareto(ablation, groups)),
        ("Samples", _grids(directory, groups)),
        ("Learning curves", _curves(directory, groups)),
        ("What differs", _differences(groups)),
        ("Cost", _cost(directory, groups)),
    ]
    return page(ablation.title, "diffusion_jax ablation", lead, sections if groups else [])


def _table(ablation: Ablation, groups: list[Group], columns: list[str], tests: dict[Key, Comparison]) -> str:
    if not groups:
        return ""
    on_front = front(groups, columns[0])
    best = {column: best_group(groups, column) for column in columns}
    heads = "".join(f"<th>{html.escape(axis)}</th>" for axis in ablation.axes)
    heads += '<th class="number">NFE</th>'
    for i, column in enumerate(columns):
        heads += f'<th class="number">{html.escape(column_title(column))}</th>'
        heads += '<th class="number">against the baseline</th><th class="number">p (Holm)</th>' if i == 0 else ""
    rows = ""
    for group, first in zip(groups, on_front, strict=True):
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in group.values.values())
        mark = ' <span title="on the Pareto front">●</span>' if first else ""
        cells += f'<td class="number">{number_text(group.evaluations)}{mark}</td>'
        for i, column in enumerate(columns):
            text = interval_text(group.estimate(column))
            cells += f'<td class="number">{f"<b>{text}</b>" if group.key == best[column] else text}</td>'
            if i == 0:
                cells += _against(group, ablation, tests)
        rows += f"<tr>{cells}</tr>"
    baseline = html.escape(", ".join(f"{axis} {value}" for axis, value in ablation.baseline.items()))
    about = (
        f"Mean over the seeds that are done, of {len(ablation.seeds)}, ± half of its 95% interval (Student's t). The "
        f"baseline is {baseline}; the difference to it is taken seed by seed, tested by the paired t-test, and p is "
        "corrected by Holm's method for the number of rows; n/a: the differences are equal but for rounding, and there "
        "is no test. Bold: the best mean of a column. ●: nothing is both cheaper and better. –: not known."
    )
    return (
        f'<p class="about">{about}</p><div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _against(group: Group, ablation: Ablation, tests: dict[Key, Comparison]) -> str:
    if group.values == ablation.baseline:
        return '<td class="number">baseline</td><td class="number"></td>'
    test = tests.get(group.key)
    if test is None:
        return '<td class="number">–</td><td class="number">–</td>'
    sign = "+" if test.difference.mean > 0 else "−" if test.difference.mean < 0 else ""
    size = interval_text(dataclasses.replace(test.difference, mean=abs(test.difference.mean)))
    return f'<td class="number">{sign}{size}</td><td class="number">{p_text(test)}</td>'


def p_text(test: Comparison) -> str:
    """The corrected p-value; of several seeds without one, that there is no test."""
    if math.isfinite(test.corrected):
        return format_number(float(f"{test.corrected:.2g}"))
    return "n/a" if test.difference.count > 1 else "–"


def number_text(value: float) -> str:
    """A number, or that it is not known."""
    return format_number(value) if math.isfinite(value) else "–"


def interval_text(estimate: Estimate) -> str:
    """Mean ± half of the interval, or that it is not known."""
    if not math.isfinite(estimate.mean):
        return "–"
    mean = format_number(float(f"{estimate.mean:.4g}"))
    return mean if not math.isfinite(estimate.half) else f"{mean} ± {format_number(float(f'{estimate.half:.2g}'))}"


def _pareto(ablation: Ablation, groups: list[Group]) -> str:
    """The deciding number over network evaluations, a curve for each value of the first axis."""
    name = deciding_number(ablation)
    axis = next(iter(ablation.axes))
    series = []
    for value in ablation.axes[axis]:
        mine = [g for g in groups if g.values[axis] == value and math.isfinite(g.evaluations)]
        mine.sort(key=lambda group: group.evaluations)
        if mine:
            means = [group.estimate(name).mean for group in mine]
            steps = [group.evaluations for group in mine]
            series.append(Series(name=f"{axis} {value}", steps=steps, values=means, sparse=True))
    if len({group.evaluations for group in groups if math.isfinite(group.evaluations)}) < 2:
        return ""
    charts = [
        line_chart(f"{column_title(name)} by network evaluations for a sample", series[i : i + _CURVES], axis="NFE")
        for i in range(0, len(series), _CURVES)
    ]
    return "".join(charts)


def _grids(directory: Path, groups: list[Group]) -> str:
    seed = next((seed for group in groups for seed in group.cells), None)
    parts = []
    for group in groups:
        if seed in group.cells:
            image = image_element(directory / "cells" / f"{group.cells[seed].name}.png", f"samples: {group.label}")
            parts.append(f"<div><h3>{html.escape(group.label)}</h3>{image}</div>")
    about = f"The first samples of seed {seed}: the same noise in every cell, none picked by hand."
    return f'<p class="about">{about}</p><div class="small-charts">{"".join(parts)}</div>'


def _trainings(groups: list[Group]) -> dict[str, tuple[Group, int]]:
    found: dict[str, tuple[Group, int]] = {}
    for group in groups:
        for seed, cell in group.cells.items():
            found.setdefault(cell.training, (group, seed))
    return found


def _training_label(group: Group, seed: int) -> str:
    own = {k: v for k, v in group.cells[seed].overrides.items() if not k.startswith(("sampling.", "evaluation."))}
    return f"{', '.join(f'{k} {_short(v)}' for k, v in own.items())} seed {seed}".strip()


def _short(value: Any) -> str:
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)


def _curves(directory: Path, groups: list[Group]) -> str:
    series = []
    for training, (group, seed) in _trainings(groups).items():
        rows = [row for row in read_metrics(directory / "trainings" / training / METRICS_FILE) if "loss" in row]
        series.append(
            Series(
                name=_training_label(group, seed),
                steps=[row["step"] for row in rows],
                values=[row["loss"] for row in rows],
            )
        )
    return "".join(
        line_chart(f"training loss by step{f' ({i // _CURVES + 1})' if i else ''}", series[i : i + _CURVES])
        for i in range(0, len(series), _CURVES)
    )


def _differences(groups: list[Group]) -> str:
    rows = ""
    for group in groups:
        cell = next(iter(group.cells.values()))
        fields = "<br>".join(f"{html.escape(k)} = {html.escape(str(v))}" for k, v in cell.overrides.items())
        rows += f'<tr><th>{html.escape(group.label)}</th><td class="mono">{fields or "nothing"}</td></tr>'
    about = "The fields of the ablation's config that a cell has changed; the seed is set besides."
    return f'<p class="about">{about}</p><details><summary>All cells</summary><table>{rows}</table></details>'


def _cost(directory: Path, groups: list[Group]) -> str:
    """Time that trainings took, from the speeds they logged; network evaluations that sampling took."""
    rows, total = "", 0.0
    for training, (group, seed) in _trainings(groups).items():
        config = group.cells[seed].training_config
        timings = read_metrics(directory / "trainings" / training / TIMINGS_FILE)
        speeds = sorted(row["images_per_second"] for row in timings if "images_per_second" in row)
        images = config.train.steps * config.train.batch_size
        seconds = images / speeds[len(speeds) // 2] if speeds else math.nan
        total += seconds
        rows += (
            f'<tr><th>{html.escape(_training_label(group, seed))}</th><td class="number">{images:,}</td>'
            f'<td class="number">{seconds / 60:.1f}</td></tr>'
        )
    known = [group for group in groups if math.isfinite(group.evaluations)]
    drawn = sum(g.evaluations * sum(g.numbers("settings/num_samples").values()) for g in known)
    about = (
        f"{total / 60:.0f} minutes of training steps, at the median speed of each run on its machine; "
        f"{drawn:,.0f} network evaluations for the samples of all cells."
    )
    head = '<thead><tr><th>training</th><th class="number">images</th><th class="number">minutes</th></tr></thead>'
    return f'<p class="about">{about}</p><table class="narrow">{head}<tbody>{rows}</tbody></table>'
