"""Ablations: a config, axes, seeds and a baseline give the cells, and the trainings that cells share.

The file of an ablation is a config with additional definitions:

    get_config()      the config that every cell starts from
    sweep_<axis>()    yields (name of the value, {"field.of.the.config": value}); one function for each axis
    SEEDS             the seeds of every cell; (0,) by default
    BASELINE          {axis: name of the value}: the cell that the others are compared with
    METRIC            the name of the metric that decides; by default the first of `evaluation.metrics`
    keep(cell)        optional: whether to run a cell, {axis: name of the value}
    TEACHER           optional: {axis: name of the value}, the cells whose training teaches all others of their seed
    base()            optional: the config of a model that is trained first; all cells start from it (init.folder)

Every value of an axis must change the result: cells that would train and sample alike are refused
(`experiments/sweeps/differences.py`). The cells are the cross product of the axes. Cells that differ only in `sampling`
and `evaluation` share a training. If a value of an axis sets fields of both kinds, those of sampling belong to the
training too, because its pictures need them.
"""

import ast
import dataclasses
import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from experiments.ground import workdir
from experiments.ground.config_files import call_get_config, find_config, flatten, guarded, load_config_module
from experiments.ground.fields import PARTS
from experiments.ground.readers import require_once
from experiments.ground.renamed import new_field_names
from experiments.sweeps import teaching
from experiments.sweeps.differences import check_cells

_AFTER_TRAINING = ("sampling.", "evaluation.")
_OF_ALL_CELLS = {  # fields that no cell may set, and what sets them
    "seed": "the seeds of the cells are SEEDS: name them there",
    "evaluation.metrics": "all cells are compared by the same metrics: set them in get_config()",
}
BASE = "base."
"""The prefix of fields of the model that is trained before the cells."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of values with one seed.

    Attributes:
      values: name of the value on each axis.
      seed: seed of training and sampling.
      overrides: fields that differ from the ablation's config.
      trained: those of them that affect training.
      base: the ablation's config.
      taught_by: name of the training that teaches this one and runs before it; "" for none.
    """

    values: Mapping[str, str]
    seed: int
    overrides: Mapping[str, Any]
    trained: Mapping[str, Any]
    base: ConfigDict
    taught_by: str = ""

    @property
    def config(self) -> ConfigDict:
        """The config of the cell."""
        return overridden(self.base, {**self.overrides, "seed": self.seed})

    @property
    def name(self) -> str:
        """The name of its files, different for every cell on every file system, whatever its values are called."""
        return f"{name_of_values(self.values)}-seed_{self.seed}"

    @property
    def label(self) -> str:
        """A label for people; cells that differ only in the seed have the same one."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items())

    @property
    def training(self) -> str:
        """The name of its training: the seed, and a digest of its config without where the work is done."""
        digest = workdir.digest(self.training_config)
        if self.taught_by:
            digest = hashlib.sha256(f"{digest} {self.taught_by}".encode()).hexdigest()
        return f"seed_{self.seed}-{digest[:10]}"

    @property
    def training_config(self) -> ConfigDict:
        """The ablation's config with the fields that affect training; only the cells are evaluated, not the
        training."""
        return overridden(self.base, {**self.trained, "seed": self.seed, "evaluation.metrics": ()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """A file of an ablation, read and checked."""

    path: Path
    title: str
    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    baseline: Mapping[str, str]
    metric: str
    cells: tuple[Cell, ...]
    base: ConfigDict | None = None

    def trainings(self) -> dict[str, list[Cell]]:
        """The cells of every training, by its name."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.training, []).append(cell)
        return found

    @classmethod
    def read(cls, path: str | Path, assignments: Sequence[str] = ()) -> "Ablation":
        """Read a file.

        Args:
          path: path of the file.
          assignments: "field=value", other values in the config that every cell starts from; "base.field=value" for the
            config of the model that is trained before the cells.

        Raises:
          UserError: there is no such file, or something in it is missing or does not fit; the message says what.
        """
        path, module = find_config(path), load_config_module(path)
        sweeps = {name.removeprefix("sweep_"): function for name, function in module.items() if name[:6] == "sweep_"}
        if not callable(module.get("get_config")) or not sweeps:
            raise UserError(f"{path} is not an ablation: it needs get_config() and at least one sweep_<axis>()")
        axes = {axis: _values(path, axis, function) for axis, function in sweeps.items()}
        first = {axis: next(iter(values)) for axis, values in axes.items()}
        baseline = _baseline(path, axes, module.get("BASELINE", first))
        seeds = _seeds(path, module.get("SEEDS", (0,)))
        config = call_get_config(module, path)
        base = _base(path, module, config)
        require_once(assignments)
        assignments = dict(map(assigned, assignments))
        of_base = {n.removeprefix(BASE): value for n, value in assignments.items() if n.startswith(BASE)}
        if of_base and base is None:
            raise UserError(f"{path} trains no base before its cells: it has no function base()")
        base = base if base is None else overridden(base, of_base)
        of_cells = {n: value for n, value in assignments.items() if not n.startswith(BASE)}
        config = _assigned_config(path, axes, config, of_cells)
        keep = module.get("keep", lambda cell: True)
        cells = []
        for names in itertools.product(*axes.values()):
            values = dict(zip(axes, names, strict=True))
            with guarded(path, "keep(cell)"):
                kept = values == baseline or keep(dict(values))
            if not kept:
                continue
            parts = [axes[axis][name] for axis, name in values.items()]
            overrides = {k: v for part in parts for k, v in part.items()}
            trained = {k: v for part in parts if _trains(part) for k, v in part.items()}
            for seed in seeds:
                cells.append(Cell(values=values, seed=seed, overrides=overrides, trained=trained, base=config))
                _ = cells[-1].config  # finds a wrong field before the first training
        if "TEACHER" in module:
            cells = teaching.with_teachers(path, cells, _named_value(path, axes, module["TEACHER"]))
        check_cells(path, cells, base)
        metrics = tuple(config.evaluation.metrics)
        if not metrics:
            raise UserError(f"{path}: evaluation.metrics is empty; an ablation needs something to compare")
        metric = module.get("METRIC", metrics[0])
        if metric not in metrics:
            raise UserError(f"METRIC of {path} is {metric!r}, which is not in evaluation.metrics: {', '.join(metrics)}")
        title = (str(module.get("__doc__") or "").strip() or path.stem).splitlines()[0]
        return cls(
            path=path,
            title=title,
            axes={axis: tuple(values) for axis, values in axes.items()},
            seeds=seeds,
            baseline=baseline,
            metric=metric,
            cells=tuple(cells),
            base=base,
        )


def _base(path: Path, module: Mapping[str, Any], config: ConfigDict) -> ConfigDict | None:
    """The config of the model that is trained before all cells; None if there is no such model.

    Raises:
      UserError: the cells do not start from it, or start from a model that nothing trains.
    """
    function = module.get("base")
    if function is None:
        return None
    if not config.init.folder:
        raise UserError(f"{path} has base(), but the cells start from no model: set init.folder, to any name")
    return call_get_config({"get_config": function}, path)


def _values(path: Path, axis: str, function: Any) -> dict[str, Mapping[str, Any]]:
    """The values of an axis by name, each with the fields that it sets."""
    if not callable(function):
        raise UserError(f"sweep_{axis} of {path} must be a function that yields (name, fields)")
    found: dict[str, Mapping[str, Any]] = {}
    with guarded(path, f"sweep_{axis}()"):
        entries = list(function() or ())
    for entry in entries:
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[1], Mapping):
            raise UserError(f"sweep_{axis}() of {path} must yield (name, {{field: value}}); it yields {entry!r}")
        name, fields = str(entry[0]), dict(entry[1])
        if not name.strip() or not name.isprintable():
            raise UserError(f"sweep_{axis}() of {path}: {name!r} cannot be the name of a value")
        twin = next((other for other in found if _looks(other) == _looks(name)), None)
        if twin is not None:
            raise UserError(
                f"sweep_{axis}() of {path} yields {name!r} twice: give every value a name of its own"
                if twin == name
                else f"sweep_{axis}() of {path}: the names {twin!a} and {name!a} look alike; "
                "give every value a name of its own"
            )
        if not all(isinstance(field, str) for field in fields):
            raise UserError(f"sweep_{axis}() of {path}: value {name!r} must name fields, 'group.field'")
        for field in fields:
            if field in _OF_ALL_CELLS:
                raise UserError(f"sweep_{axis}() of {path}: value {name!r} sets {field}; {_OF_ALL_CELLS[field]}")
        found[name] = fields
    if not found:
        raise UserError(f"sweep_{axis}() of {path} yields nothing")
    return found


def _looks(name: str) -> str:
    """A name as a reader sees it: composed letters, and spaces that count once."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _assigned_config(
    path: Path, axes: Mapping[str, Mapping[str, Mapping[str, Any]]], config: ConfigDict, given: Mapping[str, Any]
) -> ConfigDict:
    """The config of every cell with the assignments of the command.

    Raises:
      UserError: an assignment would change no cell, or all trainings would write to one place.
    """
    if "seed" in given:
        raise UserError(f"--set=seed={given['seed']}: {_OF_ALL_CELLS['seed']}")
    for name, value in given.items():
        for axis, values in axes.items():
            if all(any(name == field or name.startswith(f"{field}.") for field in one) for one in values.values()):
                raise UserError(
                    f"--set={name}={value} changes nothing: every value of axis {axis} of {path} sets it; leave it out"
                )
    config = overridden(config, given)
    if config.checkpoint.directory:
        raise UserError(
            f"{path}: checkpoint.directory={config.checkpoint.directory} would be the directory of every training; "
            "leave it out: each has its own in the --workdir"
        )
    return config


def _baseline(path: Path, axes: Mapping[str, Mapping[str, Any]], given: Any) -> dict[str, str]:
    named = {axis: str(name) for axis, name in given.items()} if isinstance(given, Mapping) else {}
    if set(named) != set(axes) or any(named[axis] not in axes[axis] for axis in axes):
        raise UserError(f"BASELINE of {path} must name one value of each axis: {_known(axes)}; it is {given}")
    return {axis: named[axis] for axis in axes}


def _named_value(path: Path, axes: Mapping[str, Mapping[str, Any]], given: Any) -> tuple[str, str]:
    """The axis and the value that TEACHER names."""
    named = {str(axis): str(name) for axis, name in given.items()} if isinstance(given, Mapping) else {}
    if len(named) != 1 or any(axis not in axes or name not in axes[axis] for axis, name in named.items()):
        raise UserError(f"TEACHER of {path} must name one value of one axis: {_known(axes)}; it is {given}")
    return next(iter(named.items()))


def _seeds(path: Path, given: Any) -> tuple[int, ...]:
    seeds = tuple(given) if isinstance(given, Sequence) else ()
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**31 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) != len(seeds):
        raise UserError(
            f"SEEDS of {path} must be different whole numbers from 0 to 2^31 - 1, at least one; got {given!r}"
        )
    return seeds


def _trains(overrides: Mapping[str, Any]) -> bool:
    """Whether a value of an axis changes the training."""
    return any(not name.startswith(_AFTER_TRAINING) for name in overrides)


def overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy with other values; a value that is a mapping replaces its whole group, and None leaves a part out.

    Raises:
      UserError: the config has no such field, or its type differs.
    """
    config = config.copy_and_resolve_references()
    for name, value in new_field_names(overrides).items():
        if name in PARTS and "." not in name and (value is None) == (name in config):
            with config.unlocked():
                if value is None:
                    del config[name]
                else:
                    config[name] = ConfigDict(value) if isinstance(value, Mapping) else value
            continue
        *groups, field = name.split(".")
        group = config
        for part in groups:
            group = group.get(part) if isinstance(group, ConfigDict) else None
        if not isinstance(group, ConfigDict) or field not in group:
            raise UserError(f"the config has no field {name!r}; known: {', '.join(flatten(config))}")
        try:
            group[field] = ConfigDict(value) if isinstance(value, Mapping) else value
        except TypeError as error:
            raise UserError(f"wrong type for {name}: {error}") from error
    return config


def assigned(assignment: str) -> tuple[str, Any]:
    """(field, value) from "field=value"; the value in Python's notation, or a string.

    Raises:
      UserError: there is no "=".
    """
    name, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"{assignment!r} is not field=value, for example train.steps=300")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text


_PLAIN = re.compile(r"[a-z0-9._+]+")  # valid and distinct on all file systems
_LONGEST = 100  # letters of a name of values


def name_of_values(values: Mapping[str, str]) -> str:
    """A name for {axis: name of the value} that is valid on every file system and unique.

    It is readable if possible: axis_value-axis_value. If a value is long, or has letters that some file system does not
      allow
    or does not distinguish (case), or the separator "-", the name ends with a digest of the values.
    """
    parts = [f"{axis}_{value}" for axis, value in values.items()]
    text = "-".join(parts)
    if len(text) <= _LONGEST and all(map(_PLAIN.fullmatch, values.values())) and _is_plain_axes(values):
        return text
    digest = hashlib.sha256(json.dumps(list(values.items())).encode()).hexdigest()[:12]
    readable = "-".join(re.sub(r"[^A-Za-z0-9._+]", "_", part) for part in parts)[:_LONGEST]
    return f"{readable}-{digest}"


def _is_plain_axes(values: Mapping[str, str]) -> bool:
    return all(re.fullmatch(r"[A-Za-z0-9_]+", axis) for axis in values)


def _known(axes: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{axis}: {', '.join(values)}" for axis, values in axes.items())
