"""Checks that the cells of an ablation are different experiments, by what training and sampling read of a config.

Two cells of one seed that train and sample alike are one experiment under two names, and comparing them means nothing.
This happens if two values of an axis give the same config, or if an axis sets a group that the chosen parts do not
read: the time sampler of an objective that draws its times itself, or the grid of a token sampler.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from diffusion_jax.adapters import ADAPTERS
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS
from diffusion_jax.registry import Registry
from diffusion_jax.samplers import GUIDANCE, SAMPLERS
from diffusion_jax.schedulers import GRIDS
from experiments.building.checks import READ_BY_OBJECTIVES, check_metric, check_sampling
from experiments.building.kinds import open_experiment
from experiments.building.wiring import Experiment
from experiments.evaluating.judging import unread_fields
from experiments.ground import workdir
from experiments.ground.cli import flatten
from experiments.ground.fields import ADAPTER, check_fields

_NO_RESULT = (*workdir.PLACE_FIELDS, "log.", "checkpoint.")  # fields that no number depends on


class Cell(Protocol):
    """The needed properties of a cell, see `ablation.Cell`."""

    name: str
    label: str
    seed: int
    values: Mapping[str, str]
    config: ConfigDict


def check_cells(path: Path, cells: Sequence[Cell], base: ConfigDict | None = None) -> None:
    """Check that every cell of a seed is a separate experiment; `base` is the config of the model that they start from.

    Raises:
      UserError: a cell has a value that it cannot have; two cells have the same config, differ in nothing that is
        read, or have files of the same name.
    """
    seen: dict[str, Cell] = {}
    models: dict[Any, Any] = {}
    names: dict[str, Cell] = {}
    for cell in cells:
        other = names.setdefault(cell.name.casefold(), cell)
        if other is not cell:
            raise UserError(f"{path}: {cell.label!r} and {other.label!r} have one name, {cell.name}")
        _check_values(path, cell)
        if cell.seed == cells[0].seed:
            other = seen.setdefault(behaviour(cell.config, base, models), cell)
            if other is not cell:
                raise UserError(f"{path}: {_why_alike(other, cell, base, models)}")


def _check_values(path: Path, cell: Cell) -> None:
    """Check what training and evaluation of a cell would refuse, before another cell is trained.

    Raises:
      UserError: a field has a value that it cannot have, or a metric is unknown; the message names the cell.
    """
    try:
        check_fields(cell.config)
        for name in cell.config.evaluation.metrics:
            check_metric(name)
    except UserError as error:
        raise UserError(f"{path}: the cell {cell.label!r} cannot run: {error}") from error


def check_cells_sample(path: Path, cells: Sequence[Cell], base: ConfigDict | None = None) -> None:
    """Check that sampling of every cell can begin once its training is done; this needs the prepared data.

    Raises:
      UserError: a sampler, a grid, or a number of steps does not fit; the message names the cell.
    """
    models: dict[Any, Any] = {}
    for cell in cells:
        if cell.seed == cells[0].seed:
            try:
                check_sampling(_opened(standing_in(cell.config, base), models))
            except UserError as error:
                raise UserError(f"{path}: the cell {cell.label!r} cannot run: {error}") from error


def standing_in(config: ConfigDict, base: ConfigDict | None) -> ConfigDict:
    """The config of a cell combined with what it takes from the model of `base`, which need not be trained yet.

    It builds the same parts except the adapter, and starts from nothing.
    """
    if base is None:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.init.folder = ""
        for group in ("model", "process", "conditioning"):
            if group in base:
                config[group] = base[group].copy_and_resolve_references()
        if ADAPTER in config:
            del config[ADAPTER]
    return config


def _opened(config: ConfigDict, models: dict[Any, Any]) -> Experiment:
    """The experiment of a config; a model on disk that several configs start from is read once into `models`."""
    if not config.init.folder:
        return Experiment(config)
    place = (config.init.folder, config.train.dtype)
    experiment = open_experiment(config, shared=models.get(place))
    models[place] = experiment.base
    return experiment


def behaviour(config: ConfigDict, base: ConfigDict | None = None, models: dict[Any, Any] | None = None) -> str:
    """A text that is equal for configs which give equal numbers: everything that is read, with its defaults.

    Raises:
      UserError: the config names an unknown objective, or an unknown part of one.
    """
    whole = standing_in(config, base)
    experiment = _opened(whole, {} if models is None else models)
    objective = experiment.objective
    tokens = objective.discrete
    read = workdir.to_json(whole)
    if ADAPTER in config:
        read[ADAPTER] = with_defaults(ADAPTERS, workdir.to_json(config)[ADAPTER])
    for group, registry in READ_BY_OBJECTIVES.items():
        spec = read.pop(group, None)
        if group in objective.reads:
            read[group] = with_defaults(registry, spec)
    read["process"], read["objective"] = repr(experiment.stated_process), repr(objective)
    if "model" in read:
        read["model"] = with_defaults(MODELS, read["model"])
    sampling = read["sampling"]
    sampling["sampler"] = with_defaults(SAMPLERS, sampling["sampler"])
    grid = sampling.pop("grid", None)
    if not tokens:
        sampling["grid"] = with_defaults(GRIDS, grid)
    rule = GUIDANCE.build(sampling["guidance"])
    sampling["guidance"] = "none" if rule.neutral else repr(rule)
    del sampling["projection"], sampling["inversion"]  # read by tasks, and by no evaluation
    for name in unread_fields(config.evaluation.metrics):
        del read["evaluation"][name]
    fields = flatten(ConfigDict(read))
    kept = {name: value for name, value in fields.items() if not name.startswith(_NO_RESULT)}
    return json.dumps(kept, sort_keys=True, default=str)


def with_defaults(registry: Registry, spec: Any) -> Any:
    """A spec with all arguments of its factory, where those that it leaves out have their defaults."""
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping) or spec.get("name") not in registry:
        return spec
    arguments = inspect.signature(registry[spec["name"]]).parameters.values()
    defaults = {one.name: one.default for one in arguments if one.default is not inspect.Parameter.empty}
    # In the form in which a config's spec comes back from JSON, where a tuple is a list.
    return json.loads(json.dumps({**defaults, **spec}, default=str))


def _why_alike(first: Cell, second: Cell, base: ConfigDict | None, models: dict[Any, Any]) -> str:
    axes = [axis for axis in first.values if first.values[axis] != second.values[axis]]
    moved = " and ".join(f"{axis} ({first.values[axis]}, {second.values[axis]})" for axis in axes)
    fields = [flatten(ConfigDict(workdir.to_json(cell.config))) for cell in (first, second)]
    differing = {name for name in {*fields[0], *fields[1]} if fields[0].get(name) != fields[1].get(name)}
    where = f"the cells {first.label!r} and {second.label!r}"
    if not differing:
        return f"{where} have the same config: axis {moved} changes nothing between them; leave one out"
    groups = ", ".join(sorted({_group(name) for name in differing}))
    config = first.config
    unread = {*READ_BY_OBJECTIVES, "sampling.grid"} - _opened(standing_in(config, base), models).objective.reads
    if {_group(name) for name in differing} <= unread:
        why = f"which objective {config.objective.name} does not read"
    else:
        why = "on which no number depends, or which mean the same"
    return (
        f"{where} train and sample the same: axis {moved} sets {groups}, {why}; leave the axis out, or such cells with "
        "keep(cell)"
    )


def _group(name: str) -> str:
    """The group of a field; the grid of sampling counts as its own group."""
    return "sampling.grid" if name.startswith("sampling.grid") else name.partition(".")[0]
