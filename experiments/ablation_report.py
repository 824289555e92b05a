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
from experiments.ablation import Ablation, Cell
from experiments.ablation_statistics import Comparison, Estimate, compare, holm, lower_is_better, pareto_front
from experiments.report import image_element, page
from experiments.report_charts import Series, format_number, line_chart
from experiments.writers import METRICS_FILE, TIMINGS_FILE, read_metrics

_CURVES = 4  # that have a colour of their own


@dataclasses.dataclass(frozen=True)
class Group:
    """The cells that differ in the seed alone, as far as they are done.

    Attributes:
      values: name of the value on each axis.
      results: by seed, what is in the cell's file.
      cells: by seed.
    """

    values: dict[str, str]
    results: dict[int, dict[str, Any]]
    cells: dict[int, Cell]

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items())

    def numbers(self, name: str) -> dict[int, float]:
        """Of "metric/number" or "settings/number", by seed."""
        metric, _, number = name.partition("/")
        found = {seed: result.get(metric, {}).get(number) for seed, result in self.results.items()}
        return {seed: float(value) for seed, value in found.items() if isinstance(value, int | float)}

    @property
    def evaluations(self) -> float:
        """Network evaluations for a sample."""
        return next(iter(self.numbers("settings/network_evaluations").values()))


def write_reports(ablation: Ablation, directory: Path) -> Path:
    """Write results.csv, results.json, results.tex and report.html from the cells that are done; the page's path."""
    groups = read(ablation, directory)
    columns = number_columns(ablation, groups)
    tests = comparisons(ablation, groups, deciding_number(ablation))
    replace_file(directory / "results.csv", _csv(ablation, groups, columns).encode())
    replace_file(directory / "results.json", _json(ablation, groups, columns, tests).encode())
    replace_file(directory / "results.tex", _latex(ablation, groups, columns, tests).encode())
    replace_file(directory / "report.html", _page(ablation, directory, groups, columns, tests).encode())
    return directory / "report.html"


def read(ablation: Ablation, directory: Path) -> list[Group]:
    """What is done, in the order of the axes."""
    groups: dict[str, Group] = {}
    for cell in ablation.cells:
        path = directory / "cells" / f"{cell.name}.json"
        if path.exists():
            group = groups.setdefault(cell.label, Group(dict(cell.values), {}, {}))
            group.results[cell.seed] = json.loads(path.read_text())["results"]
            group.cells[cell.seed] = cell
    return list(groups.values())


def comparisons(ablation: Ablation, groups: list[Group], name: str) -> dict[str, Comparison]:
    """Every group against the baseline in one number, corrected for their number."""
    baseline = next((group for group in groups if group.values == ablation.baseline), None)
    if baseline is None:
        return {}
    found = {
        group.label: compare(group.numbers(name), baseline.numbers(name)) for group in groups if group is not baseline
    }
    found = {label: one for label, one in found.items() if one is not None}
    return dict(zip(found, holm(list(found.values())), strict=True))


# The first number of a metric is the one that a table shows: each metric puts its own there.
_SHOWN = {"class_accuracy": ("accuracy",), "nearest_neighbours": ("distance_ratio",)}
_TWO = {"precision_recall": ("precision", "recall"), "density_coverage": ("density", "coverage")}


def _numbers_of(metric: str) -> tuple[str, ...]:
    two = _TWO.get(metric.removeprefix("proxy_"))
    return _SHOWN.get(metric) or two or (metric,)


def deciding_number(ablation: Ablation) -> str:
    """ "metric/number" of what the ablation is decided by."""
    return f"{ablation.metric}/{_numbers_of(ablation.metric)[0]}"


def number_columns(ablation: Ablation, groups: list[Group]) -> list[str]:
    """ "metric/number" of every number in the tables, the deciding one first."""
    metrics = sorted({m for g in groups for r in g.results.values() for m in r} - {"settings"})
    metrics.sort(key=lambda metric: metric != ablation.metric)
    return [f"{metric}/{number}" for metric in metrics for number in _numbers_of(metric)]


def _csv(ablation: Ablation, groups: list[Group], columns: list[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*ablation.axes, "seed", "network_evaluations", "training", *columns])
    for group in groups:
        for seed, cell in group.cells.items():
            numbers = [group.numbers(column).get(seed, "") for column in columns]
            writer.writerow([*group.values.values(), seed, group.evaluations, cell.training, *numbers])
    return out.getvalue()


def _json(ablation: Ablation, groups: list[Group], columns: list[str], tests: dict[str, Comparison]) -> str:
    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    rows = []
    for group in groups:
        row: dict[str, Any] = {"values": group.values, "network_evaluations": group.evaluations, "numbers": {}}
        for column in columns:
            values = group.numbers(column)
            estimate = Estimate.of(list(values.values()))
            row["numbers"][column] = {
                "mean": estimate.mean,
                "half_width_95": known(estimate.half),
                "by_seed": {str(seed): value for seed, value in values.items()},
            }
        if group.label in tests:
            test = tests[group.label]
            row["against_baseline"] = {
                "number": columns[0],
                "difference": test.difference.mean,
                "half_width_95": known(test.difference.half),
                "p_paired_t": known(test.p),
                "p_holm": known(test.corrected),
            }
        rows.append(row)
    content = {
        "title": ablation.title,
        "config": str(ablation.path),
        "baseline": ablation.baseline,
        "metric": deciding_number(ablation),
        "seeds": ablation.seeds,
        "cells_done": sum(len(group.results) for group in groups),
        "cells": len(ablation.cells),
        "rows": rows,
    }
    return json.dumps(content, indent=2) + "\n"


def _latex(ablation: Ablation, groups: list[Group], columns: list[str], tests: dict[str, Comparison]) -> str:
    """A table for booktabs; the best mean of each column is bold, and a star marks p < 0.05 after Holm's correction."""

    def safe(text: str) -> str:
        for plain, command in {"_": r"\_", "%": r"\%", "↓": r"$\downarrow$", "↑": r"$\uparrow$"}.items():
            text = text.replace(plain, command)
        return text

    best = {column: _best(groups, column) for column in columns}
    lines = [
        r"\begin{tabular}{" + "l" * len(ablation.axes) + "r" * (1 + len(columns)) + "}",
        r"\toprule",
        " & ".join([*map(safe, ablation.axes), "NFE", *(safe(column_title(column)) for column in columns)]) + r" \\",
        r"\midrule",
    ]
    for group in groups:
        cells = [*map(safe, group.values.values()), format_number(group.evaluations)]
        for column in columns:
            estimate = Estimate.of(list(group.numbers(column).values()))
            text = f"{estimate.mean:.3f}"
            text = rf"\mathbf{{{text}}}" if group.label == best[column] else text
            text += rf" \pm {estimate.half:.3f}" if math.isfinite(estimate.half) else ""
            star = column == columns[0] and group.label in tests and tests[group.label].corrected < 0.05
            cells.append(f"${text}{'^*' if star else ''}$")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _best(groups: list[Group], column: str) -> str:
    sign = 1 if lower_is_better(column) else -1
    return min(groups, key=lambda g: sign * Estimate.of(list(g.numbers(column).values())).mean).label if groups else ""


def column_title(column: str) -> str:
    """What stands above a column of "metric/number"; the arrow says which way is better."""
    metric, _, number = column.partition("/")
    name = metric if number in (metric, "accuracy") else f"{metric.removesuffix('_recall')} {number}"
    name = number if metric.removeprefix("proxy_") in _TWO else name
    return name.replace("_", " ") + (" ↓" if lower_is_better(column) else " ↑")


def _page(
    ablation: Ablation, directory: Path, groups: list[Group], columns: list[str], tests: dict[str, Comparison]
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


def _table(ablation: Ablation, groups: list[Group], columns: list[str], tests: dict[str, Comparison]) -> str:
    if not groups:
        return ""
    front = _front(groups, columns[0])
    heads = "".join(f"<th>{html.escape(axis)}</th>" for axis in ablation.axes)
    heads += '<th class="number">NFE</th>'
    for i, column in enumerate(columns):
        heads += f'<th class="number">{html.escape(column_title(column))}</th>'
        heads += '<th class="number">against the baseline</th><th class="number">p (Holm)</th>' if i == 0 else ""
    rows = ""
    for group, first in zip(groups, front, strict=True):
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in group.values.values())
        mark = ' <span title="on the Pareto front">●</span>' if first else ""
        cells += f'<td class="number">{format_number(group.evaluations)}{mark}</td>'
        for i, column in enumerate(columns):
            values = list(group.numbers(column).values())
            text = interval_text(Estimate.of(values)) if values else "–"
            best = group.label == _best(groups, column)
            cells += f'<td class="number">{f"<b>{text}</b>" if best else text}</td>'
            if i == 0:
                cells += _against(group, ablation, tests)
        rows += f"<tr>{cells}</tr>"
    baseline = html.escape(", ".join(f"{axis} {value}" for axis, value in ablation.baseline.items()))
    about = (
        f"Mean over the seeds that are done, of {len(ablation.seeds)}, ± half of its 95% interval (Student's t). The "
        f"baseline is {baseline}; the difference to it is taken seed by seed, tested by the paired t-test, and p is "
        "corrected by Holm's method for the number of rows. Bold: the best mean of a column. ●: nothing is both "
        "cheaper and better."
    )
    return (
        f'<p class="about">{about}</p><div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _against(group: Group, ablation: Ablation, tests: dict[str, Comparison]) -> str:
    if group.values == ablation.baseline:
        return '<td class="number">baseline</td><td class="number"></td>'
    test = tests.get(group.label)
    if test is None:
        return '<td class="number">–</td><td class="number">–</td>'
    sign = "+" if test.difference.mean > 0 else "−" if test.difference.mean < 0 else ""
    size = interval_text(dataclasses.replace(test.difference, mean=abs(test.difference.mean)))
    p = format_number(float(f"{test.corrected:.2g}")) if math.isfinite(test.corrected) else "–"
    return f'<td class="number">{sign}{size}</td><td class="number">{p}</td>'


def interval_text(estimate: Estimate) -> str:
    """Mean ± half of the interval."""
    mean = format_number(float(f"{estimate.mean:.4g}"))
    return mean if not math.isfinite(estimate.half) else f"{mean} ± {format_number(float(f'{estimate.half:.2g}'))}"


def _front(groups: list[Group], column: str) -> list[bool]:
    means = [Estimate.of(list(group.numbers(column).values())).mean for group in groups]
    return pareto_front([group.evaluations for group in groups], means, lower=lower_is_better(column))


def _pareto(ablation: Ablation, groups: list[Group]) -> str:
    """The deciding number over network evaluations, a curve for each value of the first axis."""
    name = deciding_number(ablation)
    axis = next(iter(ablation.axes))
    series = []
    for value in ablation.axes[axis]:
        mine = sorted((g for g in groups if g.values[axis] == value), key=lambda group: group.evaluations)
        if mine:
            means = [Estimate.of(list(group.numbers(name).values())).mean for group in mine]
            steps = [group.evaluations for group in mine]
            series.append(Series(name=f"{axis} {value}", steps=steps, values=means, sparse=True))
    if len({group.evaluations for group in groups}) < 2:
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
    drawn = sum(g.evaluations * sum(g.numbers("settings/num_samples").values()) for g in groups)
    about = (
        f"{total / 60:.0f} minutes of training steps, at the median speed of each run on its machine; "
        f"{drawn:,.0f} network evaluations for the samples of all cells."
    )
    head = '<thead><tr><th>training</th><th class="number">images</th><th class="number">minutes</th></tr></thead>'
    return f'<p class="about">{about}</p><table class="narrow">{head}<tbody>{rows}</tbody></table>'
