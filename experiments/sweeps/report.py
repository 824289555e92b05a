"""The results of an ablation as a page, as a table for a spreadsheet and one for LaTeX, and as JSON."""

import html
import json
import math
from pathlib import Path
from typing import Any

from diffusion_jax.files import replace_file
from experiments.ground.writers import TIMINGS_FILE, read_metrics
from experiments.reports.page import image_element, page
from experiments.reports.tables import Cell, Column, Table
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.cells import Group, Key, comparisons, deciding_number, kinds, number_columns, read
from experiments.sweeps.figures import chart_over_evaluations, drawn_over, loss_charts, result_chart
from experiments.sweeps.numbers import AGAINST, results_table
from experiments.sweeps.origin import made, shown_path
from experiments.sweeps.statistics import Comparison


def write_reports(ablation: Ablation, directory: Path) -> Path:
    """Write results.csv, results.json, results.tex and report.html for the finished cells; returns the page's path."""
    groups = read(ablation, directory)
    columns = number_columns(ablation, groups)
    tests = comparisons(ablation, groups, deciding_number(ablation))
    table = results_table(ablation, groups, columns, tests)
    replace_file(directory / "results.csv", _by_seed(ablation, groups, columns).csv().encode())
    replace_file(directory / "results.json", _json(ablation, directory, groups, columns, tests).encode())
    replace_file(directory / "results.tex", table.without(*AGAINST).latex().encode())
    replace_file(directory / "report.html", _page(ablation, directory, groups, table).encode())
    return directory / "report.html"


def _by_seed(ablation: Ablation, groups: list[Group], columns: list[str]) -> Table:
    """A row for each cell, for a spreadsheet."""
    rows = []
    for group in groups:
        for seed, cell in group.cells.items():
            numbers = [group.numbers(column).get(seed, "") for column in columns]
            evaluations = group.evaluations if math.isfinite(group.evaluations) else ""
            rows.append((*group.values.values(), seed, evaluations, cell.training, *numbers))
    return Table.of((*ablation.axes, "seed", "network_evaluations", "training", *columns), rows)


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


def _page(ablation: Ablation, directory: Path, groups: list[Group], table: Table) -> str:
    done = sum(len(group.results) for group in groups)
    name = deciding_number(ablation)
    lead = (
        f"{done} of {len(ablation.cells)} cells, {len(ablation.seeds)} seeds each; decided by {name.rpartition('/')[2]}"
    )
    compared = None if drawn_over(ablation.axes, groups) == "evaluations" else result_chart(ablation, groups, name)
    against_cost = chart_over_evaluations(ablation, groups, name)
    sections = [
        ("Results", _results(ablation, table)),
        ("Comparison", "" if compared is None else compared.html()),
        ("Quality against cost", "" if against_cost is None else against_cost.html()),
        ("Samples", _grids(directory, groups)),
        ("Learning curves", _curves(directory, groups)),
        ("What differs", _differences(groups)),
        ("Cost", _cost(directory, groups)),
    ]
    return page(ablation.title, "diffusion_jax ablation", html.escape(lead), sections if groups else [])


def _results(ablation: Ablation, table: Table) -> str:
    baseline = html.escape(", ".join(f"{axis} {value}" for axis, value in ablation.baseline.items()))
    about = (
        f"Mean over the seeds that are done, of {len(ablation.seeds)}, ± half of its 95% interval (Student's t). The "
        f"baseline is {baseline}; the difference to it is taken seed by seed, tested by the paired t-test, and p is "
        "corrected by Holm's method for the number of rows; n/a: the differences are equal but for rounding, and there "
        "is no test. Bold: the best mean of a column. *: p < 0.05. ●: nothing is both cheaper and better. –: not "
        "known. A click on a title sorts."
    )
    return f'<p class="about">{about}</p><div class="scroll">{table.html(sortable=True)}</div>'


def _grids(directory: Path, groups: list[Group]) -> str:
    seed = next((seed for group in groups for seed in group.cells), None)
    parts = []
    for group in groups:
        if seed in group.cells:
            image = image_element(directory / "cells" / f"{group.cells[seed].name}.png", f"samples: {group.label}")
            parts.append(f"<div><h3>{html.escape(group.label)}</h3>{image}</div>")
    about = f"The first samples of seed {seed}: the same noise in every cell, none picked by hand."
    return f'<p class="about">{about}</p><div class="small-charts">{"".join(parts)}</div>'


def _curves(directory: Path, groups: list[Group]) -> str:
    about = "The training loss, a colour for each kind of training, a line for each seed."
    charts = "".join(chart.html() for chart in loss_charts(directory, groups))
    return f'<p class="about">{about}</p>{charts}' if charts else ""


def _differences(groups: list[Group]) -> str:
    rows = []
    for group in groups:
        cell = next(iter(group.cells.values()))
        fields = "<br>".join(f"{html.escape(k)} = {html.escape(str(v))}" for k, v in cell.overrides.items())
        rows.append((group.label, Cell("", drawn=fields or "nothing")))
    table = Table.of((Column("", names_row=True), Column("", kind="mono")), rows).html()
    about = "The fields of the ablation's config that a cell has changed; the seed is set besides."
    return f'<p class="about">{about}</p><details><summary>All cells</summary>{table}</details>'


def _cost(directory: Path, groups: list[Group]) -> str:
    """Time of the trainings, from their logged speeds, and network evaluations of sampling."""
    rows, total = [], 0.0
    for kind in kinds(groups):
        for seed, (training, config) in kind.trainings.items():
            timings = read_metrics(directory / "trainings" / training / TIMINGS_FILE)
            speeds = sorted(row["images_per_second"] for row in timings if "images_per_second" in row)
            images = config.train.steps * config.train.batch_size
            seconds = images / speeds[len(speeds) // 2] if speeds else math.nan
            total += seconds
            there = (directory / "trainings" / training / "report.html").is_file()
            link = f"trainings/{training}/report.html" if there else ""
            minutes = f"{seconds / 60:.1f}" if speeds else "–"
            rows.append((Cell(kind.name or "all cells", link=link), seed, f"{images:,}", minutes))
    known = [group for group in groups if math.isfinite(group.evaluations)]
    drawn = sum(g.evaluations * sum(g.numbers("settings/num_samples").values()) for g in known)
    time = f"{total / 60:.0f} minutes of training steps" if math.isfinite(total) else "Training steps"
    about = (
        f"{time}, at the median speed of each run on its machine; "
        f"{drawn:,.0f} network evaluations for the samples of all cells. A name leads to the report of its training."
    )
    numbers = ("seed", "images", "minutes")
    table = Table.of(("training", *numbers), rows, numbers=numbers).html(sortable=True, kind="narrow")
    return f'<p class="about">{about}</p><div class="scroll">{table}</div>'
