"""The scorecard: which claims of which papers this code confirms, and which it does not.

    python -m experiments.reproduce                       # all papers in configs/papers/, a minute
    python -m experiments.reproduce --paper=edm           # one or some (edm,vdm_cifar10), claim by claim
    python -m experiments.reproduce --scale=smoke --jobs=2  # train every recipe, reduced, on real digits
    python -m experiments.reproduce --record=runs/edm     # keep the numbers of a finished run of a paper's config

Counts, schedules, losses and samplers are measured on the spot, from the unchanged config. Results of a training stay
claims until somebody has trained: then `--record` keeps the run's numbers in docs/results/, with commit, hardware and
command. Exit code 1 means that something differs from the paper without a reason stated in the config.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
PAPER = FLAGS.string("paper", "", "papers, by file in configs/papers/ or its first words; several with commas")
SCALE = FLAGS.choice("scale", "exact", ["exact", "smoke"], "exact: measure the claims; smoke: train reduced")
RECORD = FLAGS.path("record", None, "keep the evaluation of this finished run in docs/results/")
WORKDIR = FLAGS.path("workdir", "runs/reproduce", "folder for scorecard.md, scorecard.json and smoke runs")
STEPS = FLAGS.integer("steps", 200, "training steps of a smoke run", lower=10, upper=1_000_000)
JOBS = FLAGS.integer("jobs", 1, "smoke runs at once, each with its share of the CPUs", lower=1, upper=1024)
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_jax.errors import RunError
from diffusion_jax.files import replace_file
from experiments.ground.config_files import require_clone
from experiments.ground.progress import ProgressBar
from experiments.papers import scorecard, smoke
from experiments.papers.scorecard import CHECKS, DIFFERS, MET, NOT_MET, NOT_RUN, NOT_STATED, Check, Paper
from experiments.reports.tables import Column, Table

MARKS = {MET: "✓", DIFFERS: "≠", NOT_MET: "✗ NOT MET", NOT_RUN: "not run", NOT_STATED: "–"}
COLUMNS = {"fits": "fits a TPU slice", "results": "trained"}
Scores = dict[str, dict[str, list[Check]]]
"""paper -> kind -> checks"""
LEGEND = (
    "✓ measured here, as the paper has it; ≠ not as the paper has it, and the config says why; ✗ measured and wrong; "
    "– nothing is claimed."
)


def main(argv: Sequence[str]) -> int:
    if RECORD.value:
        require_clone("reproduce --record")
        print(f"kept: {scorecard.record(Path(RECORD.value))}")
        return 0
    papers = scorecard.read_papers(PAPER.value)
    directory = cli.writable_directory(WORKDIR.value)
    if SCALE.value == "smoke":
        return smoke.run_all(papers, directory, steps=STEPS.value, jobs=JOBS.value)
    scores: Scores = {}
    with ProgressBar(total=len(papers), description="papers") as bar:
        for paper in papers:
            scores[paper.name] = scorecard.score(paper)
            bar.update(len(scores))
    console = Console(width=170)
    table(papers, scores).print(console)
    console.print(LEGEND, highlight=False)
    if PAPER.value:
        for paper in papers:
            details(paper, scores[paper.name]).print(console)
    name = "-".join(["scorecard", *PAPER.value.split(",")]) if PAPER.value else "scorecard"
    replace_file(directory / f"{name}.md", page(papers, scores).encode())
    replace_file(directory / f"{name}.json", as_json(papers, scores).encode())
    print(f"scorecard: {directory / name}.md and .json")
    wrong = [
        f"{name}: {check.name}" for name, found in scores.items() for check in flat(found) if check.status == NOT_MET
    ]
    if wrong:
        raise RunError(f"these claims differ from the papers: {'; '.join(wrong)}")
    return 0


def cell(kind: str, checks: list[Check]) -> str:
    """One entry of the table: all checks of one kind."""
    status = scorecard.summary(checks)
    if kind == "parameters" and checks[0].measured is not None:
        return f"{MARKS[status]} {checks[0].measured:,}"
    if kind in ("schedule", "loss") and status == MET and len(checks) > 1:
        return f"{MARKS[status]} {len(checks)} values"
    if kind == "sampler" and checks[0].measured is not None:
        return f"{MARKS[status]} {checks[0].measured} evaluations"
    if kind == "weights" and status == MET:
        return f"{MARKS[status]} {checks[0].measured.partition(':')[0]}"
    if kind == "fits" and status == MET:
        return f"{MARKS[status]} {checks[0].measured.rpartition(' ')[2]}"
    if kind == "fits" and status == NOT_RUN:
        return "not compiled"
    if kind == "results" and status == NOT_RUN and "chip-hours" in checks[0].note:
        return checks[0].note.partition(" at the")[0].replace("needs", "not run: needs")
    return MARKS[status]


def flat(found: dict[str, list[Check]]) -> list[Check]:
    """All checks of a paper."""
    return [check for checks in found.values() for check in checks]


def table(papers: list[Paper], scores: Scores) -> Table:
    """A row for each paper."""
    rows = [(paper.name, *(cell(kind, found) for kind, found in scores[paper.name].items())) for paper in papers]
    columns = (Column("config", names_row=True), *(COLUMNS.get(kind, kind) for kind in CHECKS))
    return Table.of(columns, rows, title="What of the papers is shown")


def details(paper: Paper, found: dict[str, list[Check]]) -> Table:
    """A row for each claim of one paper."""
    rows = [
        (check.name, check.status, _text(check.claimed), _text(check.measured), check.source, check.note)
        for check in flat(found)
    ]
    columns = ("check", "status", "claimed", "measured", "source", "note")
    return Table.of(columns, rows, title=f"{paper.name}: {paper.claims['paper']}")


def page(papers: list[Paper], scores: Scores) -> str:
    """The scorecard as Markdown."""
    lines = [
        "# Scorecard",
        "",
        "Which claims of which papers this code has shown. Written by `python -m experiments.reproduce`, from the",
        "`CLAIMS` in `configs/papers/`; what each kind of claim is says `experiments/papers/scorecard.py`.",
        "",
        LEGEND,
        "",
        *table(papers, scores).markdown(),
    ]
    for paper in papers:
        lines += ["", f"## {paper.name}", "", f"{paper.claims['paper']}.", ""]
        lines += details(paper, scores[paper.name]).markdown()
    return "\n".join(lines) + "\n"


def as_json(papers: list[Paper], scores: Scores) -> str:
    """The scorecard as JSON."""
    found = {
        paper.name: {
            "paper": paper.claims["paper"],
            "training": paper.digest,
            "checks": {
                kind: [dataclasses.asdict(check) for check in checks] for kind, checks in scores[paper.name].items()
            },
        }
        for paper in papers
    }
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    cli.run(main)
