"""Ablations of students: one of the cells teaches the others of the same seed, and is trained before them.

Until a teacher is trained, its students are checked against its description, which is its config and its data. A folder
with these two replaces its run, and is removed when the process ends.
"""

import atexit
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_jax.errors import UserError
from experiments.building.wiring import Experiment
from experiments.ground import workdir

if TYPE_CHECKING:
    from experiments.sweeps.ablation import Cell


def with_teachers(path: Path, cells: Sequence["Cell"], named: tuple[str, str]) -> list["Cell"]:
    """The cells; taught cells get the name of their teacher's training.

    Args:
      path: the file of the ablation.
      cells: all cells.
      named: axis and value of the teacher's cells.

    Raises:
      UserError: the teacher's cells belong to several trainings, or its training itself has a teacher.
    """
    axis, value = named
    teachers: dict[int, Cell] = {}
    for cell in cells:
        if cell.values[axis] != value:
            continue
        if teachers.setdefault(cell.seed, cell).training != cell.training:
            raise UserError(
                f"{path}: the cells with {axis} {value}, TEACHER, belong to several trainings: make them one"
            )
    stand_in = described(next(iter(teachers.values())))
    found = []
    for cell in cells:
        if cell.values[axis] != value:
            base = cell.base.copy_and_resolve_references()
            base.teacher.workdir = str(stand_in)
            cell = dataclasses.replace(cell, base=base, taught_by=teachers[cell.seed].training)
        found.append(cell)
    return found


def described(cell: "Cell") -> Path:
    """A folder with the config and the data of a training that does not exist yet."""
    config = cell.training_config
    folder = Path(tempfile.mkdtemp(prefix="teacher_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "config.json").write_text(json.dumps(workdir.to_json(config)))
    (folder / "data.json").write_text(json.dumps(dataclasses.asdict(Experiment(config).info)))
    return folder
