"""The speed of the data loader against the train step: images per second of both, measured in one run.

    python -m benchmarks.data --config=configs/digits_unet.py [--seconds=3 --workers=2]

Prints a table whose last column is the ratio to the train step alone. The loader keeps up if its ratio is well above 1
on the machine that trains. The last row trains on batches from the loader: a ratio near 1 means that no time is lost to
waiting.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
SECONDS = FLAGS.number("seconds", 3.0, "how long to measure each row", lower=0.01, upper=3600)
WORKERS = FLAGS.integer("workers", 2, "worker processes in the row that has them; 0 leaves it out", upper=1024)
cli.begin(FLAGS)

import dataclasses
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import jax

from diffusion_jax.data import Pipeline
from diffusion_jax.errors import UserError
from experiments.building.wiring import Experiment
from experiments.reports.tables import Table

Step = Callable[[Any], Any]


def throughput(batches: Iterator[Any], batch_size: int, seconds: float, step: Step | None = None) -> float:
    """Images per second of reading batches, and of running `step` on each if given; the first batch is not counted."""
    step = step or (lambda batch: None)
    pending = jax.block_until_ready(step(next(batches)))
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        result = step(next(batches))
        jax.block_until_ready(pending)  # at most one step runs ahead
        pending, count = result, count + 1
    jax.block_until_ready(pending)
    return count * batch_size / (time.perf_counter() - start)


def loader_rows(pipeline: Pipeline, seconds: float, num_workers: int) -> dict[str, float]:
    """Images per second of the pipeline in this process, and with worker processes."""
    rows = {"loader, in process": dataclasses.replace(pipeline, num_workers=0)}
    if num_workers:
        rows[f"loader, {num_workers} workers"] = dataclasses.replace(pipeline, num_workers=num_workers)
    return {name: throughput(one.batches(), one.batch_size, seconds) for name, one in rows.items()}


def step_rows(pipeline: Pipeline, step: Step, seconds: float, rounds: int = 3) -> dict[str, float]:
    """Images per second of the step on one batch again and again, and on the pipeline's batches: best of `rounds`."""
    batches = pipeline.batches()
    sources = {"train step alone": repeat(next(batches)), "train step fed by the loader": batches}
    rows = dict.fromkeys(sources, 0.0)
    for _ in range(rounds):  # in turn, so that a busy moment of the machine affects both
        for name, source in sources.items():
            rows[name] = max(rows[name], throughput(source, pipeline.batch_size, seconds / rounds, step))
    return rows


def train_step(experiment: Experiment) -> Step:
    """The config's compiled train step as a function of a batch alone; it keeps the state."""
    layout = experiment.layout
    step = layout.compile(experiment.train_step(), experiment.abstract_state)
    state = layout.init(experiment.init_state)

    def run(batch: Any) -> Any:
        nonlocal state
        state, metrics = step(state, layout.place_batch(batch))
        return metrics

    return run


def print_table(title: str, rows: dict[str, float]) -> None:
    """The table's rows with their ratio to the train step alone."""
    step, numbers = rows["train step alone"], ("images/s", "ratio to the step")
    lines = [(name, f"{value:,.0f}", f"{value / step:,.2f}") for name, value in rows.items()]
    Table.of(("", *numbers), lines, numbers=numbers, title=title).print()


def main(_: list[str]) -> None:
    """Measure both and print the table."""
    if CONFIG.value is None:
        raise UserError("--config is missing: for example --config=configs/digits_unet.py")
    experiment = Experiment(CONFIG.value)
    pipeline = experiment.pipeline
    rows = loader_rows(pipeline, SECONDS.value, WORKERS.value)
    rows |= step_rows(pipeline, train_step(experiment), SECONDS.value)
    shape = "x".join(str(side) for side in pipeline.info.spec.shape)
    print_table(f"{pipeline.dataset}, {shape}, batch {pipeline.batch_size}, {jax.device_count()} device(s)", rows)


if __name__ == "__main__":
    cli.run(main)
