"""The faults that a training run survives: each is injected into a real training process, then the bits are compared.

    python -m benchmarks.faults --kills=20 [--faults=disk_full_while_saving,data_dead] [--page=docs/reliability.md]

A tiny run on the digits is killed (SIGKILL) at random moments, every other time while a checkpoint is being written,
and started again. It is also stopped (SIGTERM) a quarter as often. Then every fault of `tests/faults/faults.py` is
injected once: full disk, damaged checkpoints, failing data, lost hosts. After each fault the run must continue to the
same numbers, arrays and pictures, bit for bit, as a run without faults, or it must stop and name the cause. The first
fault that the run does not survive ends the benchmark with exit code 1. Twenty kills and all faults take ten minutes on
two cores.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
KILLS = FLAGS.integer("kills", 20, "number of kills, besides the other faults", upper=100_000)
SEED = FLAGS.integer("seed", 0, "seed for the moments and for the damaged files", upper=cli.MOST_SEED)
ONLY = FLAGS.strings("faults", [], "names of other faults to inject; a wrong name lists them; by default all")
PAGE = FLAGS.path("page", None, "put the table into this page, between its two markers")
cli.begin(FLAGS)

import collections
import itertools
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging as absl_logging
from rich.console import Console

from diffusion_jax.errors import RunError, UserError
from diffusion_jax.files import read_text, replace_file
from diffusion_jax.registry import unknown_name
from experiments.reports.tables import Table
from tests.faults.faults import FAULTS, NotPossibleHere, Outcome, Trial, signals
from tests.processes import Command

COLUMNS = ("fault", "what was done", "times", "what came of it")
BEGIN, END = "<!-- faults: written by benchmarks.faults -->", "<!-- end of faults -->"
Row = tuple[str, Outcome]


def main(argv: Sequence[str]) -> int:
    for name in ONLY.value:
        if name not in FAULTS:
            raise UserError(unknown_name("fault", name, list(FAULTS)))
    if PAGE.value:
        around_table(Path(PAGE.value))
    absl_logging.set_verbosity(absl_logging.ERROR)
    console = Console(stderr=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory, console.status("a run that nothing happens to") as status:
        command = Command(Path(directory) / "data")
        command.environment.setdefault("JAX_COMPILATION_CACHE_DIR", f"{directory}/cache")
        trial = Trial(command, Path(directory), SEED.value)
        trial.reference()
        try:
            for row in faults(trial):
                rows.append(row)
                status.update(f"{len(rows)} faults survived; the last one: {row[0]}, {row[1].done}")
        except AssertionError as error:
            show(rows)
            last = f"after {rows[-1][0]}, {rows[-1][1].done}" if rows else "the first one"
            raise RunError(f"a fault was not survived ({last}): {error}") from error
    show(rows)
    if PAGE.value:
        write_page(Path(PAGE.value), rows)
    return 0


def faults(trial: Trial) -> Iterator[Row]:
    """Run all faults, one after the other."""
    numbers = {signal.SIGKILL: KILLS.value, signal.SIGTERM: KILLS.value // 4}
    for number, count in numbers.items():
        for outcome in signals(trial, count, number):
            yield number.name, outcome
    for name in ONLY.value or FAULTS:
        try:
            yield name, FAULTS[name](trial)
        except NotPossibleHere as reason:
            yield name, Outcome("nothing", f"not tried: {reason}")


def summary(rows: Sequence[Row]) -> list[tuple[str, str, int, str]]:
    """Table rows of fault, action, count and outcome, with moments of the same kind together."""

    def kind(outcome: Outcome) -> str:
        return outcome.done.split(" after step ")[0]

    counts = collections.Counter((name, kind(outcome), outcome.survived) for name, outcome in rows)
    return [(name, done, count, survived) for (name, done, survived), count in counts.items()]


def show(rows: Sequence[Row]) -> None:
    """A readable table."""
    lines = []
    for name, group in itertools.groupby(summary(rows), lambda row: row[0]):
        lines += [("" if i else name, *rest) for i, (_, *rest) in enumerate(group)]
    Table.of(COLUMNS, lines).print()
    print(f"{len(rows)} faults, none lost more than what came after the last complete checkpoint")


def around_table(path: Path) -> tuple[str, str]:
    """The text before and after the table in a page.

    Raises:
      UserError: the page does not exist or has no markers.
    """
    before, begin, rest = read_text(path).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path} needs the lines {BEGIN!r} and {END!r}; the table is put between them")
    return before, after


def write_page(path: Path, rows: Sequence[Row]) -> None:
    """Put the table between the markers of a page."""
    before, after = around_table(path)
    lines = "\n".join(Table.of(COLUMNS, summary(rows)).markdown())
    replace_file(path, f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}".encode())


if __name__ == "__main__":
    cli.run(main)
