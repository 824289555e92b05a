"""The share of its time that a training run waits for checkpoints. Exit code 1 if it exceeds --limit.

    python -m benchmarks.checkpoints --config=configs/digits_unet.py [--saves=5]
    python -m benchmarks.checkpoints --workdir=runs/digits

The first form trains in a temporary directory until --saves checkpoints are saved, as often as the config says
(`checkpoint.every`). The second form reads the records of a finished run, made on any machine. For each save the
training loop writes to timings.jsonl how many seconds it waited: for an earlier write that was still running, for the
fingerprints, and for the copy to the host. The write itself runs beside the training. The share is the mean wait
divided by the time from one save to the next.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
WORKDIR = FLAGS.path("workdir", None, "read the timings of this run instead of training")
SAVES = FLAGS.integer("saves", 5, "checkpoints to save", lower=2, upper=10_000)
DATA_DIR = FLAGS.path("data_dir", None, "where the data is prepared; by default as in the config")
LIMIT = FLAGS.number("limit", 1.0, "the largest share, in per cent", lower=0, upper=100)
cli.begin(FLAGS)

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.errors import RunError, UserError
from experiments.ground import workdir
from experiments.ground.writers import TIMINGS_FILE, read_metrics
from experiments.reports.tables import Table


def main(argv: Sequence[str]) -> int:
    if (CONFIG.value is None) == (WORKDIR.value is None):
        raise UserError("give either --config=configs/digits_unet.py, for example, or --workdir=runs/digits")
    if WORKDIR.value:
        return report(Path(WORKDIR.value))
    with tempfile.TemporaryDirectory() as directory:
        train(Path(directory))
        return report(Path(directory))


def train(directory: Path) -> None:
    """Train with this number of checkpoints, without validation, pictures and evaluation."""
    fields = {
        "train.steps": SAVES.value * CONFIG.value.checkpoint.every,
        "log.validate_every": 0,
        "log.sample_every": 0,
        "checkpoint.best_metric": "loss",
        "evaluation.metrics": "()",
    }
    arguments = [*FLAGS.config_words(), f"--workdir={directory}", *(f"--config.{k}={v}" for k, v in fields.items())]
    if DATA_DIR.value:
        arguments.append(f"--config.data.data_dir={DATA_DIR.value}")
    if subprocess.run([sys.executable, "-m", "experiments.train", *arguments], stdout=sys.stderr).returncode:
        raise RunError("the training failed; it says above why")


def report(directory: Path) -> int:
    """Print the table and return the exit code."""
    config = workdir.read_config(directory)
    rows = read_metrics(directory / TIMINGS_FILE)
    waits = [row["save_seconds"] for row in rows if "save_seconds" in row]
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    if not waits or not speeds:
        raise UserError(f"{directory} has no timings of a checkpoint yet")
    steps = config.checkpoint.every * config.train.batch_size / statistics.median(speeds)
    wait = statistics.fmean(waits)
    share = 100 * wait / (steps + wait)
    row = {
        "checkpoints": len(waits),
        "every": f"{config.checkpoint.every} steps",
        "steps between take": f"{steps:.2f} s",
        "the loop waits": f"{1e3 * wait:.0f} ms",
        "longest wait": f"{1e3 * max(waits):.0f} ms",
        "share": f"{share:.2f}%",
    }
    Table.of(row, [row.values()]).print()
    return int(share > LIMIT.value)


if __name__ == "__main__":
    cli.run(main)
