"""Run an ablation: train, sample and evaluate every cell, and compare them.

    python -m experiments.ablate --config=configs/ablations/samplers_nfe.py --workdir=runs/samplers_nfe

A config declares axes (`experiments/sweeps/ablation.py` says how); the cells are their cross product with the seeds.
Cells that differ only in sampling share one training. Nothing that is finished is done again: after a kill, the same
command continues where it was, and trainings from their last checkpoint. Writes report.html, and results.csv, .json and
.tex.

Trainings run on this machine, `--jobs` at once, or where `--launcher` says:

    python -m experiments.ablate --config=... --workdir=... --launcher=ray --launch=cpus=8 --launch=gpus=1
    python -m experiments.ablate --config=... --workdir=... --launcher=slurm --launch=slurm_partition=gpu
"""

from experiments.ground import cli
from experiments.sweeps.launchers import LAUNCHERS, ROOT, Job, Launcher

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.path("config", None, "file of the ablation, for example configs/ablations/samplers_nfe.py")
WORKDIR = FLAGS.path("workdir", None, "directory of the ablation; the same command continues there")
JOBS = FLAGS.integer(
    "jobs", 1, "trainings at once on this machine, each with its share of the CPUs", lower=1, upper=1024
)
POPULATION = FLAGS.integer(
    "population",
    1,
    "trainings to run as one program at most; they may differ in the seed and in numbers of the recipe",
    lower=1,
    upper=4096,
)
LAUNCHER = FLAGS.choice("launcher", "local", sorted(LAUNCHERS), "where trainings run")
LAUNCH = FLAGS.repeated(
    "launch", "an option of the launcher, for example cpus=4", check=cli.assignment, allowed="OPTION=VALUE"
)
SET = FLAGS.repeated(
    "set", "a field of the config that every cell starts from", check=cli.assignment, allowed="FIELD=VALUE"
)
SEEDS = FLAGS.strings(
    "seeds",
    [],
    "seeds of the ablation to run now, for example 0,1; by default all",
    check=cli.number_text(0, cli.MOST_SEED),
    allowed="numbers with commas between them",
)
LIST = FLAGS.boolean("list", False, "print the cells and whether they are done, and stop")
PAGE = FLAGS.path(
    "page", None, "also write the results to this file, with pictures and numbers beside it", suffix=".md"
)
ONLY = FLAGS.string("training", None, "evaluate only the cells of this training (used by the launcher)")
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import RunError, UserError
from diffusion_jax.files import replace_file
from experiments.building.kinds import open_experiment
from experiments.building.restoring import restore_params
from experiments.evaluating import evaluation
from experiments.evaluating.judging import SPACE_FIELDS, Spaces, available
from experiments.ground import workdir
from experiments.running.population import populations
from experiments.sweeps.ablation import Ablation, Cell, assigned
from experiments.sweeps.cells import damage, identity, is_done, result_file, stored
from experiments.sweeps.differences import check_cells_sample, standing_in
from experiments.sweeps.page import write_page
from experiments.sweeps.report import write_reports

BASE_MODEL = "base"  # folder in the workdir with the run of the model that all cells start from


def main(argv: Sequence[str]) -> int:
    if not CONFIG.value or not WORKDIR.value:
        raise UserError(
            "give --config=... and --workdir=..., for example --config=configs/ablations/samplers_nfe.py "
            "--workdir=runs/samplers_nfe"
        )
    ablation = Ablation.read(CONFIG.value, SET.value)
    directory = cli.writable_directory(WORKDIR.value)
    trainings = ablation.trainings()
    chosen = chosen_seeds(ablation)
    if ONLY.value:
        if ONLY.value not in trainings:
            raise UserError(f"no training {ONLY.value!r}; there are: {', '.join(trainings)}")
        return evaluate_cells(directory, ONLY.value, trainings[ONLY.value])
    if LIST.value:
        for cell in ablation.cells:
            print(f"{'done' if is_done(directory, cell) else 'open'}  {cell.label}, seed {cell.seed}")
        return 0
    available(open_experiment(standing_in(ablation.cells[0].config, ablation.base)), (ablation.metric,))
    check_cells_sample(ablation.path, ablation.cells, ablation.base)
    with workdir.lock(directory):
        claim(directory, ablation)
        open_ = {
            name: cells
            for name, cells in trainings.items()
            if cells[0].seed in chosen and not all(is_done(directory, cell) for cell in cells)
        }
        done = sum(is_done(directory, cell) for cell in ablation.cells)
        for line in damage(directory, ablation.cells):
            print(f"{line}; the cell is run again", flush=True)
        print(
            f"{ablation.title}\n{len(ablation.cells)} cells of {len(trainings)} trainings; {done} are done", flush=True
        )
        if open_ and ablation.base is not None:
            train_base(directory, ablation.base)
        groups = populations({name: cells[0].training_config for name, cells in open_.items()}, POPULATION.value)
        teachers, has_base = {cell.taught_by for cell in ablation.cells}, ablation.base is not None
        for first in (True, False):  # teachers come before their students
            wave = [names for names in groups if (names[0] in teachers) == first]
            jobs = [job(directory, {name: open_[name][0] for name in names}, has_base) for names in wave]
            for _ in launcher(directory).run(jobs):
                write_reports(ablation, directory)
        print(f"report: {write_reports(ablation, directory)}", flush=True)
        if PAGE.value:
            print(f"page: {write_page(ablation, directory, Path(PAGE.value))}", flush=True)
    return 0


def train_base(directory: Path, config: ConfigDict) -> None:
    """Train the model that all cells start from, unless it is finished."""
    home = directory / BASE_MODEL
    if (home / workdir.FINISHED).exists():
        return
    print(f"training first the model that the cells start from: {home}", flush=True)
    home.mkdir(parents=True, exist_ok=True)
    file = home.with_suffix(".json")
    replace_file(file, json.dumps(workdir.to_json(config), indent=2).encode())
    command = ("train", f"--config={ROOT}/configs/from_json.py:{file}", f"--workdir={home}")
    for _ in launcher(directory).run([Job(name=BASE_MODEL, commands=(command,), directory=os.getcwd())]):
        pass
    if not (home / workdir.FINISHED).exists():
        raise RunError(f"the training in {home} has not finished; the same command continues")


def started(directory: Path, config: ConfigDict) -> ConfigDict:
    """The config of a cell or training with the folder of the model that it starts from."""
    config.init.folder = str((directory / BASE_MODEL).absolute())
    return config


def chosen_seeds(ablation: Ablation) -> set[int]:
    """The seeds that the flag names, or all.

    Raises:
      UserError: the ablation does not have one of them.
    """
    known = {str(seed): seed for seed in ablation.seeds}
    unknown = [text for text in SEEDS.value if text not in known]
    if unknown:
        raise UserError(f"--seeds={','.join(SEEDS.value)}: {ablation.path} has the seeds {', '.join(known)}")
    return {known[text] for text in SEEDS.value} or set(ablation.seeds)


def claim(directory: Path, ablation: Ablation) -> None:
    """Record the ablation, or check that it is still the same, so that results of two are never mixed up.

    Cells may be added to an ablation and left out; the config of a cell may not change under its name.

    Raises:
      UserError: an existing cell now has another config, or another model to start from.
    """
    home = directory / BASE_MODEL
    if ablation.base is not None and (home / "config.json").is_file():
        workdir.require_same_config(workdir.to_json(workdir.read_config(home, whole=False)), ablation.base, home)
    for cell in ablation.cells:
        there = stored(directory, cell) if is_done(directory, cell) else None
        if there is not None:
            different = [name for name, value in identity(cell).items() if there.get(name) != value]
            if different:
                raise UserError(
                    f"{result_file(directory, cell)} was made with another config than {ablation.path} has now "
                    f"({', '.join(different)}); give another --workdir"
                )


def job(directory: Path, group: dict[str, Cell], has_base: bool) -> Job:
    """Train with the config of one cell of each training, together if there are several, and evaluate all cells."""
    members, trained, evaluated = [], [], []
    for training, cell in group.items():
        home = directory / "trainings" / training
        home.mkdir(parents=True, exist_ok=True)
        file, config = home.with_suffix(".json"), cell.training_config
        config = started(directory, config) if has_base else config
        if cell.taught_by:
            config.teacher.workdir = str((directory / "trainings" / cell.taught_by).absolute())
        replace_file(file, json.dumps(workdir.to_json(config), indent=2).encode())
        if not (home / workdir.FINISHED).exists():
            members.append(f"--member={file}={home}")
            trained.append(("train", f"--config={ROOT}/configs/from_json.py:{file}", f"--workdir={home}"))
        again = [f"--config={CONFIG.value}", f"--workdir={directory}", f"--training={training}"]
        evaluated.append(("ablate", *again, *(f"--set={assignment}" for assignment in SET.value)))
    together = [("running.train_population", *members)] if len(members) > 1 else []
    return Job(name=next(iter(group)), commands=(*together, *trained, *evaluated), directory=os.getcwd())


def launcher(directory: Path) -> Launcher:
    """The launcher that the flags name.

    Raises:
      UserError: it has no such option.
    """
    options: dict[str, Any] = dict(map(assigned, LAUNCH.value))
    if LAUNCHER.value == "local":
        options.setdefault("jobs", JOBS.value)
    elif JOBS.value != 1:
        raise UserError(f"--jobs is for the launcher local; {LAUNCHER.value} has its own queue")
    if LAUNCHER.value == "slurm":
        own = {name: options.pop(name) for name in ("folder", "cluster") if name in options}
        options = {"folder": f"{directory}/slurm", **own, "options": options}
    return LAUNCHERS.build({"name": LAUNCHER.value, **options})


def evaluate_cells(directory: Path, training: str, cells: Sequence[Cell]) -> int:
    """Compute the numbers and the picture of every cell of a training that has none yet."""
    home = directory / "trainings" / training
    if not (home / workdir.FINISHED).exists():
        raise RunError(f"training {training} has not finished, so it is not judged; the same command continues")
    restored = functools.cache(lambda ema: restore_params(home, ema=ema))
    spaces: dict[Any, Spaces] = {}
    for i, cell in enumerate(cells):
        path = result_file(directory, cell)
        if is_done(directory, cell):
            continue
        print(f"cell {i + 1}/{len(cells)} of {training}: {cell.label}", flush=True)
        config = cell.config
        trained, params, source = restored(config.sampling.ema or None)
        config.data, config.parallel = trained.config.data, trained.config.parallel
        config.init = trained.config.init
        experiment = dataclasses.replace(trained, config=config)
        path.parent.mkdir(exist_ok=True)
        shared = spaces.setdefault(tuple(config.evaluation[name] for name in SPACE_FIELDS), {})
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
