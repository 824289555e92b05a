"""Compare runs: curves in one chart, samples side by side, metrics with intervals, differences between the configs.

    python -m experiments.compare runs/a runs/b [runs/c ...] [--out=comparison.html]

Writes one self-contained page, and prints a small table. Runs that are under way or were killed are compared as far as
they have come.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
FLAGS.take_arguments("RUN RUN", "workdirs of runs, two or more")
OUT = FLAGS.path("out", "comparison.html", "the page to write", suffix=".html")
cli.begin(FLAGS)

from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.errors import UserError
from experiments.reports.comparison import run_names, summary, write_comparison
from experiments.reports.report import is_run
from experiments.reports.run import Run

_MOST = 8  # runs, as many as there are colours


def main(argv: Sequence[str]) -> None:
    workdirs = [Path(cli.path_of(text)) for text in FLAGS.arguments]
    if not 2 <= len(workdirs) <= _MOST:
        raise UserError(f"give 2 to {_MOST} workdirs, for example runs/a runs/b; got {len(workdirs)}")
    for workdir in workdirs:
        if not workdir.is_dir():
            raise UserError(f"no such workdir: {workdir}")
        if not is_run(workdir):
            raise UserError(f"{workdir} is not a workdir of a run: it has neither config.json nor metrics.jsonl")
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise UserError("a workdir is given twice; compare different runs")
    cli.writable_file(OUT.value)
    runs = [Run(workdir) for workdir in workdirs]
    summary(runs, run_names(runs)).print()
    print(f"comparison: {write_comparison(workdirs, Path(OUT.value))}")


if __name__ == "__main__":
    cli.run(main)
