"""What an ablation is: a config, axes, seeds, a baseline; its cells, and the trainings that they share.

A file of an ablation is a config with more in it:

    get_config()      what every cell starts from
    sweep_<axis>()    yields (name of the value, {"field.of.the.config": value}); one function for each axis
    SEEDS             the seeds of every cell; (0,) by default
    BASELINE          {axis: name of the value}: the cell that the others are compared with
    METRIC            the name of the metric that decides; by default the first of `evaluation.metrics`
    keep(cell)        optional: whether to run a cell, {axis: name of the value}

The cells are the cross product of the axes. Cells that differ in `sampling` and `evaluation` alone share a training.
Where a value of an axis sets fields of both, those of sampling belong to the training too: its pictures need them.
"""

import ast
import dataclasses
import itertools
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from experiments import workdir
from experiments.cli import flatten

_AFTER_TRAINING = ("sampling.", "evaluation.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of values with one seed.

    Attributes:
      values: name of the value on each axis.
      seed: of training and sampling.
      overrides: fields that differ from the ablation's config.
      trained: those of them that training sees.
      base: the ablation's config.
    """

    values: Mapping[str, str]
    seed: int
    overrides: Mapping[str, Any]
    trained: Mapping[str, Any]
    base: ConfigDict

    @property
    def config(self) -> ConfigDict:
        """Of the cell."""
        return overridden(self.base, {**self.overrides, "seed": self.seed})

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join([f"{axis}_{_plain(value)}" for axis, value in self.values.items()] + [f"seed_{self.seed}"])

    @property
    def label(self) -> str:
        """For people; cells that differ in the seed alone have the same one."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items())

    @property
    def training(self) -> str:
        """The name of its training: the seed, and a digest of its config, but for where the work is done."""
        return f"seed_{self.seed}-{workdir.digest(self.training_config)[:10]}"

    @property
    def training_config(self) -> ConfigDict:
        """The ablation's config with what training sees; the cells are evaluated, not the training."""
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
          path: of the file.
          assignments: "field=value", other values in the config that every cell starts from.

        Raises:
          UserError: no such file, or something in it is missing or does not fit; the message says what.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"can not read --config={path}: no such file")
        try:
            module = runpy.run_path(str(path))
        except Exception as error:  # whatever a config file may raise: it is the user's program
            raise UserError(f"can not read --config={path}: {type(error).__name__}: {error}") from error
        sweeps = {name.removeprefix("sweep_"): function for name, function in module.items() if name[:6] == "sweep_"}
        if "get_config" not in module or not sweeps:
            raise UserError(f"{path} is no ablation: it needs get_config() and at least one sweep_<axis>()")
        axes = {axis: dict(function()) for axis, function in sweeps.items()}
        for axis, values in axes.items():
            if not values:
                raise UserError(f"sweep_{axis}() of {path} yields nothing")
        baseline = module.get("BASELINE", {axis: next(iter(values)) for axis, values in axes.items()})
        if set(baseline) != set(axes) or any(str(baseline[axis]) not in axes[axis] for axis in axes):
            raise UserError(f"BASELINE of {path} must name one value of each axis: {_known(axes)}; it is {baseline}")
        config = overridden(module["get_config"](), dict(map(assigned, assignments)))
        seeds, keep = tuple(module.get("SEEDS", (0,))), module.get("keep", lambda cell: True)
        cells = []
        for names in itertools.product(*axes.values()):
            values = dict(zip(axes, names, strict=True))
            if values != baseline and not keep(values):
                continue
            parts = [axes[axis][name] for axis, name in values.items()]
            overrides = {k: v for part in parts for k, v in part.items()}
            trained = {k: v for part in parts if _trains(part) for k, v in part.items()}
            for seed in seeds:
                cells.append(Cell(values=values, seed=seed, overrides=overrides, trained=trained, base=config))
                _ = cells[-1].config  # so that a wrong field is an error before anything is begun
        metrics = tuple(config.evaluation.metrics)
        if not metrics:
            raise UserError(f"{path}: evaluation.metrics is empty; an ablation needs something to compare")
        metric = module.get("METRIC", metrics[0])
        if metric not in metrics:
            raise UserError(f"METRIC of {path} is {metric!r}, which is not in evaluation.metrics: {', '.join(metrics)}")
        title = (module.get("__doc__") or path.stem).strip().splitlines()[0]
        return cls(
            path=path,
            title=title,
            axes={axis: tuple(values) for axis, values in axes.items()},
            seeds=seeds,
            baseline=dict(baseline),
            metric=metric,
            cells=tuple(cells),
        )


def _trains(overrides: Mapping[str, Any]) -> bool:
    """Whether a value of an axis changes the training."""
    return any(not name.startswith(_AFTER_TRAINING) for name in overrides)


def overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy with other values; a value that is a mapping replaces its whole group.

    Raises:
      UserError: the config has no such field, or one of another type.
    """
    config = config.copy_and_resolve_references()
    for name, value in overrides.items():
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
    """(field, value) of "field=value"; the value as in Python, or a string.

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


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "_" for c in str(text))


def _known(axes: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{axis}: {', '.join(values)}" for axis, values in axes.items())
