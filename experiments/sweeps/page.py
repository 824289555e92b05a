"""The results of an ablation as a page of Markdown with its pictures and numbers, to be kept in a repository."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from experiments.evaluating.evaluation import COLUMNS, PICTURE_SIZE
from experiments.ground.writers import METRICS_FILE, read_metrics
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.cells import Group, column_title, comparisons, deciding_number, number_columns, read
from experiments.sweeps.origin import made, shown_path, tail
from experiments.sweeps.report import interval_text, number_text, p_text

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_PANELS = 9  # kinds of training whose curves are shown


def write_page(ablation: Ablation, directory: Path, path: Path) -> Path:
    """Write `path`, and beside it, under its name, chart.png, curves.png, samples.png and results.json.

    Raises:
      UserError: no cell is done.
    """
    groups = read(ablation, directory)
    if not groups:
        raise UserError(f"no cell of {ablation.path} is done: there is nothing to show yet")
    home = path.with_suffix("")
    home.mkdir(parents=True, exist_ok=True)
    replace_file(home / "results.json", (directory / "results.json").read_bytes())
    name = deciding_number(ablation)
    columns = number_columns(ablation, groups)
    tests = comparisons(ablation, groups, name)
    done = sum(len(group.results) for group in groups)
    seeds = sorted({seed for group in groups for seed in group.results})
    head = f"`{shown_path(ablation.path)}`: {done} of {len(ablation.cells)} cells, "
    if len(seeds) > 1:
        head = [
            f"{head}seeds {', '.join(map(str, seeds))}; decided by {name.rpartition('/')[2]}.",
            "Means over the seeds, ± half of their 95% interval (Student's t). The baseline is",
            f"{_label(ablation.baseline)}; differences to it are taken seed by seed, tested by the paired t-test",
            "and corrected by Holm's method for the number of rows.",
        ]
        if any(len(group.results) == 1 for group in groups):
            head.append("Rows without ± have one seed yet.")
    else:
        head = [
            f"{head}seed {seeds[0]} alone; decided by {name.rpartition('/')[2]}.",
            f"One seed: there are neither intervals nor tests. The baseline is {_label(ablation.baseline)}.",
        ]
    lines = [
        f"# {ablation.title}",
        "",
        *head,
        "",
        "| "
        + " | ".join([*ablation.axes, "NFE", *map(column_title, columns), "against the baseline", "p (Holm)"])
        + " |",
        "|---" * (len(ablation.axes) + len(columns) + 3) + "|",
    ]
    for group in groups:
        cells = [*map(_in_table, group.values.values()), number_text(group.evaluations)]
        cells += [interval_text(group.estimate(column)) for column in columns]
        test = tests.get(group.key)
        if group.values == ablation.baseline:
            cells += ["baseline", ""]
        elif test is None:
            cells += ["–", "–"]
        else:
            half = f" ± {test.difference.half:.2g}" if math.isfinite(test.difference.half) else ""
            cells += [f"{test.difference.mean:+.3g}{half}", p_text(test)]
        lines.append("| " + " | ".join(cells) + " |")
    if _chart(ablation, groups, name, home / "chart.png"):
        lines += ["", f"![{column_title(name)}]({home.name}/chart.png)"]
    if _curves(ablation, directory, groups, home / "curves.png"):
        lines += [
            "",
            "Squared errors of what the network predicts, without the loss's weights, a line for each seed; dashed,",
            "where the loss has no weights, that of the averaged parameters on held-out images.",
            "",
            f"![losses]({home.name}/curves.png)",
        ]
    if _samples(directory, groups, home / "samples.png"):
        lines += [
            "",
            f"The first samples of seed {seeds[0]}, the same noise in every row, none picked by hand.",
            "",
            f"![samples]({home.name}/samples.png)",
        ]
    lines += ["", *tail(home.name, made(ablation, directory), ablation)]
    replace_file(path, "\n".join(lines).encode())
    return path


def _chart(ablation: Ablation, groups: list[Group], name: str, path: Path) -> bool:
    """The deciding number, of the groups that have one; False where there is nothing to compare."""
    groups = [g for g in groups if math.isfinite(g.estimate(name).mean) and g.evaluations > 0]
    if len(groups) < 2:
        return False
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    over = drawn_over(ablation.axes, groups)
    if over == "evaluations":
        _over_evaluations(axes, ablation, groups, name)
    elif over == "first axis":
        _over_first_axis(axes, ablation, groups, name)
    else:
        _by_cell(axes, groups, name)
    axes.set_ylabel(column_title(name))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def drawn_over(axes: Mapping[str, Collection[str]], groups: Sequence[Group]) -> str:
    """What the chart has below: network "evaluations", as lines, where another axis than the first is a number that
    changes them; else the "first axis", with the others side by side; of one axis the "cells".
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


def _errorbars(axes: Axes, xs: list[float], groups: list[Group], name: str, **style: Any) -> None:
    estimates = [group.estimate(name) for group in groups]
    halves = [one.half if math.isfinite(one.half) else 0.0 for one in estimates]
    axes.errorbar(xs, [one.mean for one in estimates], yerr=halves, **style)


def _over_evaluations(axes: Axes, ablation: Ablation, groups: list[Group], name: str) -> None:
    axis = next(iter(ablation.axes))
    for value in ablation.axes[axis]:
        mine = sorted((g for g in groups if g.values[axis] == value), key=lambda group: group.evaluations)
        xs = [group.evaluations for group in mine]
        _errorbars(axes, xs, mine, name, marker="o", markersize=4, capsize=2, label=f"{axis} {value}")
    axes.set_xscale("log", base=2)
    numbers = [math.log2(group.evaluations) for group in groups]
    ticks = [2**n for n in range(math.floor(min(numbers)), math.ceil(max(numbers)) + 1)]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel("network evaluations for a sample")
    axes.legend(frameon=False)
    if min(line.get_ydata().min() for line in axes.lines) > 0:
        axes.set_yscale("log")


def _over_first_axis(axes: Axes, ablation: Ablation, groups: list[Group], name: str) -> None:
    first, *others = ablation.axes
    places = {value: position for position, value in enumerate(ablation.axes[first])}
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(", ".join(f"{axis} {group.values[axis]}" for axis in others), []).append(group)
    for i, (kind, mine) in enumerate(kinds.items()):
        aside = 0.6 * ((i + 0.5) / len(kinds) - 0.5)
        xs = [places[group.values[first]] + aside for group in mine]
        _errorbars(axes, xs, mine, name, fmt="o", markersize=5, capsize=3, label=kind)
    axes.set_xticks(list(places.values()), list(places))
    means = [group.estimate(name).mean for group in groups]
    if min(means) > 0 and max(means) > 10 * min(means):
        axes.set_yscale("log")
    axes.set_xlabel(first)
    axes.legend(frameon=False, fontsize=8)


def _by_cell(axes: Axes, groups: list[Group], name: str) -> None:
    labels = [", ".join(group.values.values()) for group in groups]
    for position, group in enumerate(groups):
        values = list(group.numbers(name).values())
        axes.plot([position] * len(values), values, "o", color="tab:gray", markersize=4, alpha=0.6)
        _errorbars(axes, [position], [group], name, marker="_", markersize=14, capsize=4, color="tab:blue")
    axes.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 6 else 40, ha="center")
    axes.set_xlabel(", ".join(groups[0].values))


def _curves(ablation: Ablation, directory: Path, groups: list[Group], path: Path) -> bool:
    """A panel for each kind of training, with its seeds; False where there are more than fit."""
    kinds: dict[str, dict[int, str]] = {}
    names: dict[str, dict[str, str]] = {}
    for group in groups:
        for seed, cell in group.cells.items():
            kind = repr(sorted(cell.trained.items(), key=str))
            kinds.setdefault(kind, {})[seed] = cell.training
            shown = names.setdefault(kind, dict(group.values))
            names[kind] = {axis: value for axis, value in shown.items() if group.values[axis] == value}
    if not 1 < len(kinds) <= _PANELS:
        return False
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(2.7 * columns, 2.2 * rows), layout="constrained", squeeze=False
    )
    for panel in panels.flat[len(kinds) :]:
        panel.set_axis_off()
    for panel, (kind, trainings) in zip(panels.flat, kinds.items(), strict=False):
        for color, training in enumerate(trainings[seed] for seed in sorted(trainings)):
            logged = read_metrics(directory / "trainings" / training / METRICS_FILE)
            weighted = any(not math.isclose(row["mse"], row["loss"], rel_tol=1e-4) for row in logged if "mse" in row)
            for name, style in (("mse", "-"), *([] if weighted else [("validation_loss", "--")])):
                points = [(row["step"], row[name]) for row in logged if name in row]
                if points:
                    panel.plot(*zip(*points, strict=True), style, color=f"C{color}", linewidth=1)
        panel.set_title(_label(names[kind]), fontsize=9)
        panel.tick_params(which="both", labelsize=7)
        panel.grid(alpha=0.3)
        panel.set_xlabel("step", fontsize=8)
        if min((line.get_ydata().min() for line in panel.lines), default=0) > 0:
            panel.set_yscale("log")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _samples(directory: Path, groups: list[Group], path: Path) -> bool:
    """The first row of each group's picture, one below the other, each with its label; False where there is none."""
    strips, labels = [], []
    for group in groups:
        source = directory / "cells" / f"{group.cells[min(group.cells)].name}.png"
        if source.exists():
            picture = PIL.Image.open(source)
            strips.append(picture.crop((0, 0, picture.width, picture.height * COLUMNS // PICTURE_SIZE)))
            labels.append(group.label)
    if strips:
        height = max(strip.height for strip in strips)
        font = PIL.ImageFont.load_default(size=14)
        margin = 16 + int(max(font.getlength(label) for label in labels))
        width = margin + max(strip.width for strip in strips)
        whole = PIL.Image.new("RGB", (width, height * len(strips)), "white")
        draw = PIL.ImageDraw.Draw(whole)
        for i, (strip, label) in enumerate(zip(strips, labels, strict=True)):
            draw.text((8, i * height + height // 2), label, fill="black", font=font, anchor="lm")
            whole.paste(strip, (margin, i * height))
        whole.save(path, optimize=True)
    return bool(strips)


def _label(values: dict[str, str]) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in values.items())


def _in_table(text: str) -> str:
    """The name of a value in a cell of a table."""
    return text.replace("|", "\\|")
