"""One page about one run: `write_report(workdir)` reads the files of the run and writes `report.html`.

The page is a single file without any external reference: pictures are data URIs, charts are inline SVG. Every part is
optional: missing files are not shown, and files that cannot be read are named at the top. It reads

    config.json         nested object, as the runner writes it
    metrics.jsonl       rows {"step": n, name: number, ...}; `validation_loss` joins the chart of `loss`, and so on
    timings.jsonl       rows with `images_per_second`, `compile_seconds` (one per start of the process), others
    samples/            step_<n>.png, final.png and denoising.png; of text final.txt
    evaluation.json     {metric: {name: number}} or {"metric/name": number}; `<name>_low`, `<name>_high` are the 95%
                        interval of `<name>`, `class_<k>` belongs to a class; "settings": how the samples were drawn
    neighbours.png      pairs, a sample above its nearest training image
    environment.json    object; its `command` is the command to resume
    status.json         the state of the run (`reports/live.py`)
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from experiments.ground.progress import format_seconds
from experiments.ground.writers import METRICS_FILE
from experiments.reports.charts import Chart, Series, format_number
from experiments.reports.metrics import evaluation_section
from experiments.reports.page import escape, image_element, page
from experiments.reports.run import Run, flatten
from experiments.reports.summary import commands, numbers, throughput, training_seconds
from experiments.reports.tables import Column, Table

_AT_RANDOM = "Drawn at random; none was picked by hand."
_REFRESH_SECONDS = 15
_MOST_PICTURES = 24  # most pictures in the strip; evenly chosen, always with the last one


def write_report(workdir: str | os.PathLike) -> Path:
    """Write `report.html` into the workdir and return its path.

    Raises:
      UserError: there is no such directory.
      RunError: the file could not be written.
    """
    if not Path(workdir).is_dir():
        raise UserError(f"no such workdir: {workdir}")
    path = Path(workdir) / "report.html"
    replace_file(path, render(workdir).encode(), make_folder=False)
    return path


def is_run(workdir: str | os.PathLike) -> bool:
    """Whether a directory has the files of a run."""
    return any((Path(workdir) / name).is_file() for name in ("config.json", METRICS_FILE))


def render(workdir: str | os.PathLike) -> str:
    """The page."""
    run = Run(workdir)
    sections = [
        ("Loss", _loss(run)),
        ("Reconstructions" if run.reconstructs else "Samples", _samples(run)),
        ("From noise to data", _denoising(run)),
        ("Evaluation", evaluation_section(run.groups, run.settings)),
        ("Nearest neighbours", _neighbours(run)),
        ("Other curves", _other_curves(run)),
        ("Speed and environment", _speed_and_environment(run)),
        ("Configuration", _configuration(run)),
        ("Commands", _commands(run)),
    ]
    problems = "".join(f'<p class="problem">{escape(problem)}</p>' for problem in run.problems)
    name = run.path.resolve().name
    refresh = _REFRESH_SECONDS if run.is_under_way else 0
    top = problems + _status(run) + _cards(run)
    return page(name, "diffusion_jax run", _summary(run), sections, top=top, refresh=refresh)


def _status(run: Run) -> str:
    """The state of the run, or why it ended early; nothing for a finished run."""
    state, step, steps = (run.status.get(name) for name in ("state", "step", "steps"))
    if state not in ("training", "evaluating", "stopped", "failed"):
        return ""
    at = f" at step {step:,} of {steps:,}" if isinstance(step, int) and isinstance(steps, int) else ""
    mend = "The command to resume it, below, goes on from the last checkpoint."
    if state == "failed":
        return f'<p class="problem"><b>Stopped by an error{at}.</b> {escape(run.status.get("error", ""))}</p>'
    if state == "stopped":
        return f'<p class="status"><b>Stopped{at}.</b> {mend}</p>'
    if not run.is_under_way:
        return f'<p class="problem"><b>Ended{at} without a word, as by a kill.</b> {mend}</p>'
    what = "Training" if state == "training" else "Trained; the samples are being drawn and judged"
    left, written = run.status.get("seconds_left"), run.status.get("written")
    about = f", about {format_seconds(left)} left" if isinstance(left, int | float) else ""
    at = at if state == "training" else ""
    since = f' <time data-written="{written}" class="unit"></time>' if isinstance(written, int | float) else ""
    return f'<p class="status"><b>{what}{at}</b>{about}. This page loads itself again as the run goes on.{since}</p>'


def _summary(run: Run) -> str:
    """One line: what was trained on which data, and how far it has come."""
    config = run.config
    model, data = _named(config.get("codec" if run.reconstructs else "model")), _named(config.get("data"))
    parts = [f"{model} on {data}" if model and data else model or data]
    process = config.get("process")
    process = process if isinstance(process, dict) else {}
    prediction, schedule = _named(process.get("prediction")), _named(process.get("schedule"))
    if not prediction and not schedule:  # a process of tokens has neither
        objective = _named(config.get("objective"))
        parts.append(f"{objective} objective" if objective else "")
    else:
        parts.append(
            ", ".join(filter(None, [prediction and f"{prediction} prediction", schedule and f"{schedule} schedule"]))
        )
    if run.step is not None:
        total = run.train_field("steps")
        done = "trained for" if total is None or run.step >= total else "so far trained for"
        of = f" of {total:,}" if total and run.step < total else ""
        parts.append(f"{done} {run.step:,}{of} steps")
    return "; ".join(escape(part) for part in parts if part) or "Nothing has been logged in this workdir yet."


def _named(spec: Any) -> str:
    """The name of a part of the config: the value itself, its `name`, or its `dataset`."""
    if isinstance(spec, dict):
        spec = spec.get("name") or spec.get("dataset")
    return str(spec) if spec else ""


def _cards(run: Run) -> str:
    """The most important numbers: label, value, and a note below."""
    tiles = "".join(
        f'<div class="card"><div class="label">{escape(one.label)}</div><div class="value">{escape(one.value)}'
        f"{f'<small>{escape(one.unit)}</small>' if one.unit else ''}</div>"
        f'<div class="note">{escape(one.note)}</div></div>'
        for one in numbers(run)
    )
    return f'<div class="cards">{tiles}</div>' if tiles else ""


def _loss(run: Run) -> str:
    """The loss, with the held-out loss in the same chart."""
    series = run.curves().get("loss", [])
    return Chart(title=f"{' and '.join(one.name for one in series).capitalize()} loss by step", series=series).html()


def _other_curves(run: Run) -> str:
    repeated = run.repeated()
    charts = [
        Chart(title=name.replace("_", " "), series=series).html(width=330, height=180)
        for name, series in sorted(run.curves().items())
        if name not in ("loss", *repeated)
    ]
    names = escape(", ".join(name.replace("_", " ") for name in repeated))
    note = f'<p class="about">Equal to the loss and not drawn again: {names}.</p>' if repeated else ""
    return f'<div class="small-charts">{"".join(charts)}</div>{note}' if any(charts) or repeated else ""


def _samples(run: Run) -> str:
    """Final samples beside those of the chosen step; below them a strip for choosing the step."""
    final = image_element(run.path / "samples" / "final.png", "samples of the trained model")
    steps = _evenly(list(run.pictures), _MOST_PICTURES)
    thumbs = ""
    for step in steps:
        image = image_element(run.pictures[step], f"samples at step {step:,}")
        thumbs += f'<button type="button" title="Step {step:,}" aria-pressed="false">{image}{step:,}</button>'
    columns = ""
    if final:
        about = "Held-out pictures, and below each its reconstruction." if run.reconstructs else _AT_RANDOM
        columns = f'<div><h3>At the end</h3><p class="about">{about}</p>{final}</div>'
    if thumbs:
        slider = f'<input type="range" min="0" max="{len(steps) - 1}" step="1" aria-label="training step">'
        columns += (
            '<div class="stage" hidden><h3>During training</h3><p class="about">The same '
            f"{'pictures' if run.reconstructs else 'noise'} at every step.</p>"
            f'<img alt="samples at the chosen step"><div class="player">{slider}<output></output></div></div>'
        )
    columns += _texts(run)
    if not columns:
        return ""
    few = (
        f'<p class="about">{len(steps)} of {len(run.pictures)} pictures.</p>' if len(steps) < len(run.pictures) else ""
    )
    strip = f'<div class="strip">{thumbs}</div>{few}' if thumbs else ""
    return f'<div class="gallery"><div class="samples">{columns}</div>{strip}</div>'


def _texts(run: Run) -> str:
    """Final samples of text."""
    path = run.path / "samples" / "final.txt"
    if not path.is_file():
        return ""
    return (
        f'<div><h3>At the end</h3><p class="about">{_AT_RANDOM}</p>'
        f'<pre class="texts">{escape(path.read_text(errors="replace"))}</pre></div>'
    )


def _denoising(run: Run) -> str:
    image = image_element(run.path / "samples" / "denoising.png", "samples on their way from noise to data")
    about = (
        "Each row is one sample at several moments of sampling; above stands the time t, from 1 (noise) to 0 (data). "
        "Scaled so that signal and noise together keep their strength."
    )
    return f'<p class="about">{about}</p><figure>{image}</figure>' if image else ""


def _evenly(items: list[int], most: int) -> list[int]:
    """At most `most` of the items, including the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _neighbours(run: Run) -> str:
    image = image_element(run.path / "neighbours.png", "samples above their nearest training images")
    about = (
        "In each pair the sample is above, and below it the training image that is nearest to it in pixels; the number "
        "is their distance (root mean square; from black to white it is 2). These pairs are the closest of all. "
        "A model that copies shows the same picture twice."
    )
    return f'<p class="about">{about}</p><figure>{image}</figure>' if image else ""


def _speed_and_environment(run: Run) -> str:
    rows: dict[str, Any] = {}
    if training_seconds(run):
        rows["time in training steps"] = training_seconds(run)
    _, compiling = run.column("compile_seconds", run.timings)
    if compiling:
        starts = "" if len(compiling) == 1 else f" in {len(compiling)} starts"
        rows["compilation"] = format_seconds(sum(compiling)) + starts
    if throughput(run):
        rows[f"median {run.unit} per second"] = format_number(round(throughput(run)))
    known = {"step", "images_per_second", "compile_seconds"}
    for name in sorted({name for row in run.timings for name in row} - known):
        _, values = run.column(name, run.timings)
        if values:
            rows[f"last {name.replace('_', ' ')}"] = format_number(values[-1])
    environment = {
        name: value for name, value in flatten(run.environment).items() if value is not None and name != "command"
    }
    tables = [
        f"<div><h3>{title}</h3>{_table(content)}</div>"
        for title, content in (("Time", rows), ("Environment", environment))
        if content
    ]
    steps, rates = run.column("images_per_second", run.timings)
    series = [Series(name="training", steps=steps, values=rates)]
    chart = Chart(title=f"{run.unit} per second", series=series).html(width=470, height=210)
    if rows and chart and len(rates) > 2:
        tables[0] = tables[0].removesuffix("</div>") + chart + "</div>"
    return f'<div class="pair">{"".join(tables)}</div>' if tables else ""


def _configuration(run: Run) -> str:
    """Every field, by group, in a collapsed section."""
    if not run.config:
        return ""
    single = {name: value for name, value in run.config.items() if not (isinstance(value, dict) and value)}
    groups = {"": single} if single else {}
    groups |= {name: flatten(value) for name, value in run.config.items() if isinstance(value, dict) and value}
    blocks = "".join(
        f"<div>{f'<h3>{escape(name)}</h3>' if name else ''}{_table(fields, mono=True)}</div>"
        for name, fields in groups.items()
    )
    count = sum(map(len, groups.values()))
    return (
        f'<details><summary>All fields<span class="unit">{count}</span></summary>'
        f'<div class="config">{blocks}</div></details>'
    )


def _commands(run: Run) -> str:
    return "".join(
        f'<h3>{title}</h3><div class="command"><code>{escape(command)}</code><button type="button">Copy</button></div>'
        for title, command in commands(run).items()
    )


def _table(fields: Mapping[str, Any], *, mono: bool = False) -> str:
    kind = "mono" if mono else ""
    columns = (Column("", kind=kind, names_row=True), Column("", kind=kind))
    return Table.of(columns, [(name, _shown(value)) for name, value in fields.items()]).html()


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or "(empty)"
    return json.dumps(value)
