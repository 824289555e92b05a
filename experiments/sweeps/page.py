"""The results of an ablation as a Markdown page with its pictures and numbers, for a repository."""

from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from experiments.evaluating.evaluation import COLUMNS, PICTURE_SIZE
from experiments.reports.charts import save_charts
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.cells import Group, column_title, comparisons, deciding_number, number_columns, read
from experiments.sweeps.figures import error_charts, result_chart
from experiments.sweeps.numbers import results_table
from experiments.sweeps.origin import made, shown_path, tail


def write_page(ablation: Ablation, directory: Path, path: Path) -> Path:
    """Write `path`, and beside it, in a folder of its name, chart.png, curves.png, samples.png and results.json.

    Raises:
      UserError: no cell is finished.
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
        head.append("Bold: the best mean of a column; \\*: p < 0.05; ●: nothing is both cheaper and better.")
    else:
        head = [
            f"{head}seed {seeds[0]} alone; decided by {name.rpartition('/')[2]}.",
            f"One seed: there are neither intervals nor tests. The baseline is {_label(ablation.baseline)}.",
            "Bold: the best of a column; ●: nothing is both cheaper and better.",
        ]
    lines = [
        f"# {ablation.title}",
        "",
        *head,
        "",
        *results_table(ablation, groups, columns, tests).markdown(),
    ]
    if chart := result_chart(ablation, groups, name):
        save_charts([chart], home / "chart.png")
        lines += ["", f"![{column_title(name)}]({home.name}/chart.png)"]
    if panels := error_charts(directory, groups):
        save_charts(panels, home / "curves.png", columns=3, panel=(2.7, 2.2), legend=False)
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


def _samples(directory: Path, groups: list[Group], path: Path) -> bool:
    """The first row of each group's picture, one below the other, with labels; False if there is none."""
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
