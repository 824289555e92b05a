"""One page about one run: `write_report(workdir)` reads what the run left behind and writes `report.html`.

The page is a single file without any reference to the network: pictures are data URIs, charts are inline SVG. Every
part is optional; what the workdir lacks is not shown, what cannot be read is named at the top. It reads

    config.json         nested object, as the runner writes it
    metrics.jsonl       rows {"step": n, name: number, ...}; `validation_loss` joins the chart of `loss`, and so on
    timings.jsonl       rows with `images_per_second`, `compile_seconds` (one per start of the process), others
    samples/            step_<n>.png, final.png and denoising.png; of text final.txt
    evaluation.json     {metric: {name: number}} or {"metric/name": number}; `<name>_low`, `<name>_high` are the 95%
                        interval of `<name>`, `class_<k>` belongs to a class; "settings": how the samples were drawn
    neighbours.png      pairs, a sample above its nearest training image
    environment.json    object; its `command` is the command to resume
"""

import base64
import html
import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from experiments.ground.options import spoken
from experiments.ground.progress import format_seconds
from experiments.ground.writers import METRICS_FILE, TIMINGS_FILE, read_metrics
from experiments.reports.charts import Series, format_number, line_chart
from experiments.reports.metrics import evaluation_section, headline, read_groups
from experiments.reports.style import SCRIPT, STYLE

_AT_RANDOM = "Drawn at random; none was picked by hand."
_MOST_PICTURES = 24  # in the strip; evenly chosen, the last one always
_HELD_OUT = re.compile(r"^(validation|valid|val|eval|test)[_/]")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(workdir: str | os.PathLike) -> Path:
    """Write `report.html` into the workdir and return its path.

    Raises:
      UserError: no such directory.
      RunError: the file could not be written.
    """
    if not Path(workdir).is_dir():
        raise UserError(f"no such workdir: {workdir}")
    path = Path(workdir) / "report.html"
    replace_file(path, _render(_Run(workdir)).encode())
    return path


class _Run:
    """What a workdir holds; `problems` names the files that could not be read."""

    def __init__(self, workdir: str | os.PathLike):
        self.given, self.path = os.fspath(workdir), Path(workdir)
        self.problems: list[str] = []
        self.config = self._json("config.json")
        self.environment = self._json("environment.json")
        self.groups, self.settings = read_groups(self._json("evaluation.json"))
        self.metrics = self._rows(METRICS_FILE)
        self.timings = self._rows(TIMINGS_FILE)
        steps = {
            int(m[1]): p for p in self.path.glob("samples/*.png") if (m := re.fullmatch(r"step_(\d+)\.png", p.name))
        }
        self.pictures = dict(sorted(steps.items()))

    def _json(self, name: str) -> dict[str, Any]:
        if not (self.path / name).is_file():
            return {}
        try:
            content = json.loads((self.path / name).read_text())
        except (ValueError, OSError) as error:
            self.problems.append(f"{name} could not be read: {error}")
            return {}
        if not isinstance(content, dict):
            self.problems.append(f"{name} holds no object")
            return {}
        return content

    def _rows(self, name: str) -> list[dict[str, Any]]:
        if not (self.path / name).is_file():
            return []
        try:
            return read_metrics(self.path / name)
        except UserError as error:
            self.problems.append(str(error))
            return []

    def train_field(self, name: str) -> int | None:
        """A whole number of the config's `train` group."""
        group = self.config.get("train")
        value = group.get(name) if isinstance(group, dict) else None
        return value if isinstance(value, int) else None

    @property
    def unit(self) -> str:
        """What an example is."""
        group = self.config.get("data")
        is_text = isinstance(group, dict) and group.get("dataset") == "text"
        return "sequences" if is_text else "images"

    @property
    def reconstructs(self) -> bool:
        """Whether a first stage was trained, whose pictures are pairs."""
        return "codec" in self.config

    @property
    def step(self) -> int | None:
        """The last step that left a trace."""
        steps = [rows[-1]["step"] for rows in (self.metrics, self.timings) if rows] + list(self.pictures)
        return max(steps, default=None)

    def column(self, name: str, rows: list[dict[str, Any]] | None = None) -> tuple[list[int], list[float]]:
        """Steps and values of one name."""
        rows = self.metrics if rows is None else rows
        pairs = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        return [step for step, _ in pairs], [value for _, value in pairs]


def _render(run: _Run) -> str:
    """The page."""
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
    problems = "".join(f'<p class="problem">{_esc(problem)}</p>' for problem in run.problems)
    name = run.path.resolve().name
    return page(name, "diffusion_jax run", _summary(run), sections, top=problems + _cards(run))


def page(title: str, over: str, lead: str, sections: Sequence[tuple[str, str]], *, top: str = "") -> str:
    """A page that loads nothing from anywhere.

    Args:
      title: its heading, as text.
      over: a few words above that.
      lead: one line below it, as HTML.
      sections: headings and their HTML; those without any are left out.
      top: HTML above the list of sections.
    """
    sections = [(heading, body) for heading, body in sections if body]
    links = "".join(f'<a href="#{_anchor(heading)}">{_esc(heading)}</a>' for heading, _ in sections)
    body = "".join(
        f'<section id="{_anchor(heading)}"><h2>{_esc(heading)}</h2>{text}</section>' for heading, text in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_esc(title)} · diffusion_jax</title><style>{STYLE}</style></head><body><main>"
        f'<header><p class="over">{_esc(over)}</p><h1>{_esc(title)}</h1>'
        f'<p class="lead">{lead}</p></header>'
        f"{top}<nav>{links}</nav>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _summary(run: _Run) -> str:
    """One line: what was trained on what, and how far it has come."""
    config = run.config
    model, data = _named(config.get("codec" if run.reconstructs else "model")), _named(config.get("data"))
    parts = [f"{model} on {data}" if model and data else model or data]
    prediction, schedule = _named(config.get("prediction")), _named(config.get("schedule"))
    objective = config.get("objective")
    if isinstance(objective, dict) and "num_tokens" in objective:  # a process of its own, without those two
        parts.append(f"{_named(objective)} objective")
    else:
        parts.append(
            ", ".join(filter(None, [prediction and f"{prediction} prediction", schedule and f"{schedule} schedule"]))
        )
    if run.step is not None:
        total = run.train_field("steps")
        done = "trained for" if total is None or run.step >= total else "so far trained for"
        of = f" of {total:,}" if total and run.step < total else ""
        parts.append(f"{done} {run.step:,}{of} steps")
    return "; ".join(_esc(part) for part in parts if part) or "Nothing has been logged in this workdir yet."


def _named(spec: Any) -> str:
    """What a part of the config is called: itself, its `name`, or its `dataset`."""
    if isinstance(spec, dict):
        spec = spec.get("name") or spec.get("dataset")
    return str(spec) if spec else ""


def _cards(run: _Run) -> str:
    """The numbers to see first: label, value, a note below it."""
    cards = []
    for name, label in (("loss", "Training loss"), ("validation_loss", "Validation loss")):
        steps, values = run.column(name)
        if values:
            note = f"mean of the last {min(len(values), 10)} rows" if name == "loss" and len(values) > 1 else ""
            value = sum(values[-10:]) / len(values[-10:]) if name == "loss" else values[-1]
            finite = [i for i, one in enumerate(values) if math.isfinite(one)]
            best = min(finite, key=values.__getitem__, default=None)
            if not math.isfinite(value):
                note = (
                    f"not finite at step {steps[-1]:,}" if not math.isfinite(values[-1]) else "not finite in some rows"
                )
            elif name != "loss" and len(values) > 1:
                note = (
                    "the lowest so far" if best == len(values) - 1 else f"lowest {values[best]:.4g} at {steps[best]:,}"
                )
            cards.append((label, format_number(float(f"{value:.4g}")) if math.isfinite(value) else "–", note))
    cards += headline(run.groups)
    speed = _throughput(run)
    if speed:
        seconds = _training_seconds(run)
        cards.append(
            (
                "Speed",
                f"{format_number(round(speed))} <small>{run.unit}/s</small>",
                f"{seconds} of training" if seconds else "",
            )
        )
    parameters = run.environment.get("num_parameters")
    if isinstance(parameters, int):
        cards.append(("Parameters", f"{parameters / 1e6:.4g} <small>M</small>", ""))
    tiles = "".join(
        f'<div class="card"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="note">{note}</div></div>'
        for label, value, note in cards
    )
    return f'<div class="cards">{tiles}</div>' if tiles else ""


def _loss(run: _Run) -> str:
    """The loss, held-out loss in the same chart."""
    series = _charts(run).get("loss", [])
    return line_chart(f"{' and '.join(one.name for one in series).capitalize()} loss by step", series)


def _charts(run: _Run) -> dict[str, list[Series]]:
    """All curves by the name of their chart: `validation_loss` joins `loss`."""
    charts: dict[str, list[Series]] = {}
    names = sorted(
        {name for row in run.metrics for name in row if name != "step"}, key=lambda n: bool(_HELD_OUT.match(n))
    )
    for name in names:
        steps, values = run.column(name)
        if not values:
            continue
        held_out = bool(_HELD_OUT.match(name))
        chart = _HELD_OUT.sub("", name).removeprefix("train/").removeprefix("train_")
        label = "validation" if held_out else "training"
        charts.setdefault(chart, []).append(Series(name=label, steps=steps, values=values, sparse=held_out))
    return charts


def _other_curves(run: _Run) -> str:
    charts = [
        line_chart(name.replace("_", " "), series, width=330, height=180)
        for name, series in sorted(_charts(run).items())
        if name != "loss"
    ]
    return f'<div class="small-charts">{"".join(charts)}</div>' if any(charts) else ""


def _samples(run: _Run) -> str:
    """Final samples beside those of the chosen step; below them the strip of steps to choose from."""
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


def _texts(run: _Run) -> str:
    """Final samples of text."""
    path = run.path / "samples" / "final.txt"
    if not path.is_file():
        return ""
    return (
        f'<div><h3>At the end</h3><p class="about">{_AT_RANDOM}</p>'
        f'<pre class="texts">{_esc(path.read_text(errors="replace"))}</pre></div>'
    )


def _denoising(run: _Run) -> str:
    image = image_element(run.path / "samples" / "denoising.png", "samples on their way from noise to data")
    about = (
        "Each row is one sample at several moments of sampling; above stands the time t, from 1 (noise) to 0 (data). "
        "Scaled so that signal and noise together keep their strength."
    )
    return f'<p class="about">{about}</p><figure>{image}</figure>' if image else ""


def _evenly(items: list[int], most: int) -> list[int]:
    """At most `most` of the items, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _neighbours(run: _Run) -> str:
    image = image_element(run.path / "neighbours.png", "samples above their nearest training images")
    about = (
        "In each pair the sample is above, and below it the training image that is nearest to it in pixels; the number "
        "is their distance (root mean square; from black to white it is 2). These pairs are the closest of all. "
        "A model that copies shows the same picture twice."
    )
    return f'<p class="about">{about}</p><figure>{image}</figure>' if image else ""


def _throughput(run: _Run) -> float | None:
    """Median of the logged images per second."""
    _, values = run.column("images_per_second", run.timings)
    return sorted(values)[len(values) // 2] if values else None


def _training_seconds(run: _Run) -> str:
    """Time spent in training steps: batch size times steps over images per second, row by row."""
    batch = run.train_field("batch_size")
    steps, rates = run.column("images_per_second", run.timings)
    if not batch or not steps:
        return ""
    lengths = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    return format_seconds(sum(batch * n / rate for n, rate in zip(lengths, rates, strict=True) if rate > 0))


def _speed_and_environment(run: _Run) -> str:
    rows: dict[str, Any] = {}
    if _training_seconds(run):
        rows["time in training steps"] = _training_seconds(run)
    _, compiling = run.column("compile_seconds", run.timings)
    if compiling:
        starts = "" if len(compiling) == 1 else f" in {len(compiling)} starts"
        rows["compilation"] = format_seconds(sum(compiling)) + starts
    if _throughput(run):
        rows[f"median {run.unit} per second"] = format_number(round(_throughput(run)))
    known = {"step", "images_per_second", "compile_seconds"}
    for name in sorted({name for row in run.timings for name in row} - known):
        _, values = run.column(name, run.timings)
        if values:
            rows[f"last {name.replace('_', ' ')}"] = format_number(values[-1])
    environment = {
        name: value for name, value in _flat(run.environment).items() if value is not None and name != "command"
    }
    tables = [
        f"<div><h3>{title}</h3>{_table(content)}</div>"
        for title, content in (("Time", rows), ("Environment", environment))
        if content
    ]
    steps, rates = run.column("images_per_second", run.timings)
    series = [Series(name="training", steps=steps, values=rates)]
    chart = line_chart(f"{run.unit} per second", series, width=470, height=210)
    if rows and chart and len(rates) > 2:
        tables[0] = tables[0].removesuffix("</div>") + chart + "</div>"
    return f'<div class="pair">{"".join(tables)}</div>' if tables else ""


def _configuration(run: _Run) -> str:
    """Every field, by group, folded away."""
    if not run.config:
        return ""
    single = {name: value for name, value in run.config.items() if not (isinstance(value, dict) and value)}
    groups = {"": single} if single else {}
    groups |= {name: _flat(value) for name, value in run.config.items() if isinstance(value, dict) and value}
    blocks = "".join(
        f"<div>{f'<h3>{_esc(name)}</h3>' if name else ''}{_table(fields, mono=True)}</div>"
        for name, fields in groups.items()
    )
    count = sum(map(len, groups.values()))
    return (
        f'<details><summary>All fields<span class="unit">{count}</span></summary>'
        f'<div class="config">{blocks}</div></details>'
    )


def _commands(run: _Run) -> str:
    workdir = f"--workdir={shlex.quote(run.given)}"
    resume = run.environment.get("command")
    if not isinstance(resume, str):
        resume = f"python -m experiments.train --config=<the config file> {workdir}"
    metrics = ",".join(name for name in run.groups if name != "latents") or "class_accuracy,nearest_neighbours"
    draw = ("Draw more samples", f"python -m experiments.sample {workdir} --num_samples=64")
    if run.reconstructs:
        stage = f"--first_stage={shlex.quote(run.given)}"
        draw = ("Encode a data set", f"python -m experiments.prepare_latents {stage} --out=<a new folder>")
    commands = {
        draw[0]: draw[1],
        "Evaluate again": f"python -m experiments.evaluate {workdir} --metrics={metrics}",
        "Resume the run": resume,
        "Browse the curves": f"tensorboard --logdir={shlex.quote(run.given)}",
    }
    return "".join(
        f'<h3>{title}</h3><div class="command"><code>{_esc(command)}</code><button type="button">Copy</button></div>'
        for title, command in zip(commands, map(spoken, commands.values()), strict=True)
    )


def _table(fields: Mapping[str, Any], *, mono: bool = False) -> str:
    kind = ' class="mono"' if mono else ""
    rows = "".join(
        f"<tr><th{kind}>{_esc(name)}</th><td{kind}>{_esc(_shown(value))}</td></tr>" for name, value in fields.items()
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or "(empty)"
    return json.dumps(value)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def image_element(path: Path, alt: str) -> str:
    """A picture as an element that holds its own data; empty text if there is none."""
    if not path.is_file() or not path.stat().st_size:
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{_esc(alt)}" src="data:image/png;base64,{data}">'


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _esc(text: Any) -> str:
    return html.escape(str(text))
