"""The result of a run in a few numbers, and the commands to continue with: for the report, and for the terminal."""

import dataclasses
import math
import os
import shlex
from collections.abc import Sequence

from experiments.ground.options import spoken
from experiments.ground.progress import format_seconds
from experiments.reports.charts import format_number
from experiments.reports.metrics import headline
from experiments.reports.run import Run
from experiments.reports.tables import Table


@dataclasses.dataclass(frozen=True)
class Shown:
    """A number for people: its label, its value with its unit, and a note."""

    label: str
    value: str
    note: str = ""
    unit: str = ""


def numbers(run: Run) -> list[Shown]:
    """The most important numbers: losses, metrics, speed and size."""
    found = [
        _loss(label, *run.column(name), averaged=name == "loss")
        for name, label in (("loss", "Training loss"), ("validation_loss", "Validation loss"))
        if run.column(name)[1]
    ]
    found += [Shown(*card) for card in headline(run.groups)]
    if speed := throughput(run):
        seconds = training_seconds(run)
        note = f"{seconds} of training" if seconds else ""
        found.append(Shown(f"Speed, {run.unit}", format_number(round(speed)), note, "/s"))
    parameters = run.environment.get("num_parameters")
    if isinstance(parameters, int):
        found.append(Shown("Parameters", f"{parameters / 1e6:.4g}", unit=" M"))
    return found


def _loss(label: str, steps: list[int], values: list[float], *, averaged: bool) -> Shown:
    """A loss; if it is logged in every row, the mean of the last rows."""
    value = sum(values[-10:]) / len(values[-10:]) if averaged else values[-1]
    if not math.isfinite(value):
        note = f"not finite at step {steps[-1]:,}" if not math.isfinite(values[-1]) else "not finite in some rows"
        return Shown(label, "–", note)
    note = ""
    if averaged and len(values) > 1:
        note = f"mean of the last {min(len(values), 10)} rows"
    elif len(values) > 1:
        best = min((i for i, one in enumerate(values) if math.isfinite(one)), key=values.__getitem__)
        lowest = f"lowest {values[best]:.4g} at {steps[best]:,}"
        note = "the lowest so far" if best == len(values) - 1 else lowest
    return Shown(label, format_number(float(f"{value:.4g}")), note)


def summary_table(workdir: str | os.PathLike) -> Table:
    """The numbers of a run as a small table."""
    run = Run(workdir)
    rows = [(one.label, f"{one.value}{one.unit}", one.note) for one in numbers(run)]
    return Table.of((run.path.resolve().name, "", " "), rows, numbers=("",))


def next_commands(workdir: str | os.PathLike) -> dict[str, str]:
    """The next commands for a finished run: purpose and command."""
    return {title: line for title, line in commands(Run(workdir)).items() if title != "Resume the run"}


def commands(run: Run) -> dict[str, str]:
    """Commands that continue from a run, by purpose."""
    workdir = f"--workdir={shlex.quote(run.given)}"
    resume = run.environment.get("command")
    if not isinstance(resume, str):
        resume = f"python -m experiments.train --config=<the config file> {workdir}"
    metrics = ",".join(name for name in run.groups if name != "latents") or "class_accuracy,nearest_neighbours"
    draw = ("Draw more samples", f"python -m experiments.sample {workdir} --num_samples=64")
    if run.reconstructs:
        stage = f"--first_stage={shlex.quote(run.given)}"
        draw = ("Encode a data set", f"python -m experiments.prepare_latents {stage} --out=<a new folder>")
    found = {
        draw[0]: draw[1],
        "Evaluate again": f"python -m experiments.evaluate {workdir} --metrics={metrics}",
        "Resume the run": resume,
        "Browse the curves": f"tensorboard --logdir={shlex.quote(run.given)}",
    }
    return {title: spoken(command) for title, command in found.items()}


def throughput(run: Run) -> float | None:
    """Median of the logged images per second."""
    _, values = run.column("images_per_second", run.timings)
    return sorted(values)[len(values) // 2] if values else None


def training_seconds(run: Run) -> str:
    """Time spent in training steps: batch size times steps over images per second, row by row."""
    batch = run.train_field("batch_size")
    steps, rates = run.column("images_per_second", run.timings)
    if not batch or not steps:
        return ""
    lengths = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    return format_seconds(sum(batch * n / rate for n, rate in zip(lengths, rates, strict=True) if rate > 0))


def model_card(workdir: str | os.PathLike, repository: str, files: Sequence[str]) -> str:
    """The page of a model on the hub, in Markdown, made from a run: what it is, its numbers, and how to draw with it.

    Args:
      workdir: directory of the run.
      repository: OWNER/NAME.
      files: what lies beside the card.
    """
    run, name = Run(workdir), repository.partition("/")[2]
    network = (run.config.get("model") or run.config.get("codec") or {}).get("name")
    dataset = str((run.config.get("data") or {}).get("dataset")).partition(":")[
        0
    ]  # where it lies is nobody else's affair
    lines = ["---", "library_name: diffusion_jax", "tags:", "- diffusion", "- jax", "---", "", f"# {name}", ""]
    lines += [
        f"A network `{network}`, trained with diffusion_jax for {run.train_field('steps')} steps of "
        f"{run.train_field('batch_size')} examples of `{dataset}`. `run_config.json` has all fields of its config.",
        "",
    ]
    if "samples.png" in files:
        lines += ["![samples, not selected](samples.png)", ""]
    rows = [(one.label, f"{one.value}{one.unit}", one.note) for one in numbers(run)]
    lines += ["## Numbers", "", *Table.of(("", "value", "note"), rows, numbers=("value",)).markdown(), ""]
    weights = next((name for name in files if name.endswith(".safetensors")), "")
    described = "config.json" in files or "model_index.json" in files
    needs = "" if described else f" --config=configs/from_json.py:{name}/run_config.json"
    source = name if described else f"{name}/{weights}"
    lines += [
        "## Draw with it",
        "",
        "```",
        f"hf download {repository} --local-dir={name}",
        f"diffusion-jax convert --source={source} --target=runs/{name}{needs}",
        f"diffusion-jax sample --workdir=runs/{name} --num_samples=16",
        "```",
        "",
    ]
    return "\n".join(lines)
