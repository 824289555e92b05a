"""Run an ablation: train, sample and evaluate every cell, and compare them.

    python -m experiments.ablate --config=configs/ablations/samplers_nfe.py --workdir=runs/samplers_nfe

A config declares axes (`experiments/ablation.py` says how); the cells are their cross product with the seeds. Cells
that differ in sampling alone share one training. Whatever is finished is never done again: after a kill, the same
command goes on where it was, trainings from their last checkpoint. Writes report.html, and results.csv, .json and .tex.
"""

import ctypes
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags

from diffusion_jax.errors import RunError, UserError
from experiments import cli, evaluation, workdir
from experiments.ablation import Ablation, Cell
from experiments.ablation_report import write_reports
from experiments.judging import Spaces, available
from experiments.restoring import restore_params
from experiments.wiring import Experiment
from experiments.writers import replace_file

CONFIG = flags.DEFINE_string("config", None, "file of the ablation, for example configs/ablations/samplers_nfe.py")
WORKDIR = flags.DEFINE_string("workdir", None, "directory of the ablation; the same command goes on there")
JOBS = flags.DEFINE_integer("jobs", 1, "trainings at once, each with its share of the CPUs", lower_bound=1)
SET = flags.DEFINE_multi_string("set", [], "field=value of the config that every cell starts from; may be repeated")
LIST = flags.DEFINE_bool("list", False, "print the cells and what is done, and stop")
ONLY = flags.DEFINE_string("training", None, "evaluate the cells of this training alone; what the launcher calls")


def main(argv: Sequence[str]) -> int:
    if not CONFIG.value or not WORKDIR.value:
        raise UserError(
            "give --config=... and --workdir=..., for example --config=configs/ablations/samplers_nfe.py "
            "--workdir=runs/samplers_nfe"
        )
    ablation = Ablation.read(CONFIG.value, SET.value)
    directory = cli.writable_directory(WORKDIR.value)
    trainings = ablation.trainings()
    if ONLY.value:
        if ONLY.value not in trainings:
            raise UserError(f"no training {ONLY.value!r}; there are: {', '.join(trainings)}")
        return evaluate_cells(directory, ONLY.value, trainings[ONLY.value])
    if LIST.value:
        for cell in ablation.cells:
            print(f"{'done' if result_file(directory, cell).exists() else 'open'}  {cell.label}, seed {cell.seed}")
        return 0
    available(Experiment(ablation.cells[0].config), (ablation.metric,))
    with workdir.lock(directory):
        claim(directory, ablation)
        open_ = {
            name: cells
            for name, cells in trainings.items()
            if not all(result_file(directory, cell).exists() for cell in cells)
        }
        done = sum(result_file(directory, cell).exists() for cell in ablation.cells)
        print(
            f"{ablation.title}\n{len(ablation.cells)} cells of {len(trainings)} trainings; {done} are done", flush=True
        )
        with ThreadPoolExecutor(JOBS.value) as pool:
            jobs = [pool.submit(run, directory, i, name, cells[0]) for i, (name, cells) in enumerate(open_.items())]
            try:
                for job in jobs:
                    job.result()
                    write_reports(ablation, directory)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        print(f"report: {write_reports(ablation, directory)}", flush=True)
    return 0


def claim(directory: Path, ablation: Ablation) -> None:
    """Keep what the ablation is, or check that it is still the same: results of two must not be mixed up.

    Cells may be added to an ablation, and left out; what a cell is may not change under its name.

    Raises:
      UserError: a cell that is there has another config now.
    """
    for cell in ablation.cells:
        path = result_file(directory, cell)
        if path.exists():
            there = json.loads(path.read_text())
            different = [name for name, value in identity(cell).items() if there.get(name) != value]
            if different:
                raise UserError(
                    f"{path} is of another config than {ablation.path} has now ({', '.join(different)}); "
                    "give another --workdir"
                )


def identity(cell: Cell) -> dict[str, Any]:
    """What the results of a cell belong to, as it is in its JSON file."""
    metrics = tuple(cell.config.evaluation.metrics)
    of_cell = {"values": dict(cell.values), "seed": cell.seed, "training": cell.training, "metrics": metrics}
    return json.loads(json.dumps({**of_cell, "overrides": dict(cell.overrides)}))


def result_file(directory: Path, cell: Cell) -> Path:
    """Where the numbers of a cell are."""
    return directory / "cells" / f"{cell.name}.json"


def run(directory: Path, number: int, training: str, cell: Cell) -> None:
    """Train with the config of one of its cells, and evaluate them all, in processes that end with this one.

    Raises:
      RunError: one of them failed; it has said why.
    """
    home = directory / "trainings" / training
    if not (home / workdir.FINISHED).exists():
        home.mkdir(parents=True, exist_ok=True)
        file = home.with_suffix(".json")
        replace_file(file, json.dumps(workdir.to_json(cell.training_config), indent=2).encode())
        child(number, "train", f"--config=configs/from_json.py:{file}", f"--workdir={home}")
    again = [f"--config={CONFIG.value}", f"--workdir={directory}", f"--training={training}"]
    child(number, "ablate", *again, *(f"--set={assignment}" for assignment in SET.value))


def child(number: int, module: str, *arguments: str) -> None:
    """Run a command on this job's share of the CPUs."""
    process = subprocess.Popen([sys.executable, "-m", f"experiments.{module}", *arguments], preexec_fn=share(number))
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)  # a training saves, and stops
        process.wait()
        raise
    if code:
        raise RunError(f"experiments.{module} {' '.join(arguments)} ended with exit code {code}; it says above why")


def share(number: int) -> Callable[[], None]:
    """What a child does first: it will end with its parent, and takes its part of the CPUs where there are several."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    mine = cpus[number % JOBS.value :: JOBS.value]

    def first() -> None:
        if mine and JOBS.value > 1:
            os.sched_setaffinity(0, mine)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also when the parent is killed

    return first


def evaluate_cells(directory: Path, training: str, cells: Sequence[Cell]) -> int:
    """The numbers and the picture of every cell of a training that has none yet."""
    home = directory / "trainings" / training
    restored = functools.cache(lambda ema: restore_params(home, ema=ema))
    spaces: dict[Any, Spaces] = {}
    for i, cell in enumerate(cells):
        path = result_file(directory, cell)
        if path.exists():
            continue
        print(f"cell {i + 1}/{len(cells)} of {training}: {cell.label}", flush=True)
        config = cell.config
        trained, params, source = restored(config.sampling.ema or None)
        config.data, config.parallel = trained.config.data, trained.config.parallel
        experiment = dataclasses.replace(trained, config=config)
        path.parent.mkdir(exist_ok=True)
        shared = spaces.setdefault(tuple(config.evaluation.get(name, "") for name in ("inception", "convention")), {})
        part = path.with_suffix(".part.json")
        evaluation.evaluate(
            experiment,
            params,
            home,
            source=source,
            out=part,
            picture=path.with_suffix(".png"),
            seed=cell.seed,
            spaces=shared,
        )
        text = json.dumps({**identity(cell), "results": json.loads(part.read_text())}, indent=2) + "\n"
        replace_file(path, text.encode())
        part.unlink()
    return 0


if __name__ == "__main__":
    cli.run(main)
