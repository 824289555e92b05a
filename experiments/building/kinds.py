"""The kind of training that a config describes: of a denoiser, from an existing model, or of a first stage."""

from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from experiments.building.base_model import BaseExperiment
from experiments.building.first_stage import FirstStageExperiment
from experiments.building.wiring import Experiment
from experiments.ground import workdir
from experiments.ground.config_files import flatten
from experiments.ground.fields import CODEC, INHERIT, runner

_INHERITED = ("data", "first_stage", "model", "process", "conditioning", "evaluation")  # groups
_FIELDS = ("train.class_conditional", "train.dtype", "sampling.batch_size", "imports")


def plan_experiment(config: ConfigDict, devices: tuple[jax.Device, ...] | None = None) -> Experiment:
    """The experiment of a config for planning, not for running: `Experiment.planned`, of the fitting kind."""
    return (BaseExperiment if config.init.folder else Experiment).planned(config, devices)


def open_experiment(config: ConfigDict, **fields: Any) -> Experiment:
    """The experiment of a config, of the fitting kind; `fields` are those of `Experiment`."""
    if CODEC in config:
        return FirstStageExperiment(config, **fields)
    if config.teacher.inherit:
        config = inherited(config)
    return (BaseExperiment if config.init.folder else Experiment)(config, **fields)


def inherited(config: ConfigDict) -> ConfigDict:
    """The config of a student, with everything that it takes from its teacher's stated (`teacher.inherit`).

    With `init.folder` data and judges are those of the run in that folder, whose model is then the teacher. In the
    inherited groups, a field of the student's counts if it differs from the runner's default; a part that it names,
    such as a schedule, replaces the teacher's part completely.

    Raises:
      UserError: no teacher is named, or there is no trained run.
    """
    named = config.init.folder or config.teacher.workdir
    if not named:
        raise UserError(
            f"{INHERIT} takes data, network and process from a trained run: name it with --config.teacher.workdir=RUN"
        )
    theirs, default = workdir.read_config(named), flatten(runner())
    groups = ("data", "evaluation") if config.init.folder else _INHERITED
    config = config.copy_and_resolve_references().unlock()
    for group in groups:
        own = config.get(group, ConfigDict())
        stated = {name: value for name, value in flatten(own, f"{group}.").items() if default.get(name) != value}
        config[group] = theirs[group].copy_and_resolve_references() if group in theirs else ConfigDict()
        config[group].unlock()
        _state(config[group], own, {name.partition(".")[2] for name in stated})
        if not config[group]:
            del config[group]
    for name in _FIELDS:
        *outer, field = name.split(".")
        there, here = (part[outer[0]] if outer else part for part in (theirs, config))
        with here.ignore_type():
            here[field] = there[field] if here[field] == default[name] else here[field]
    config.teacher.inherit = False
    config.lock()
    return config


def _state(there: ConfigDict, own: ConfigDict, stated: set[str]) -> None:
    """Override the teacher's values by the student's: `stated` are the dotted names of its fields."""
    for field in sorted({name.partition(".")[0] for name in stated}):
        value = own[field]
        deeper = {name.partition(".")[2] for name in stated if name.startswith(f"{field}.")}
        is_part = isinstance(value, ConfigDict) and "name" in value
        if isinstance(value, ConfigDict) and not is_part and isinstance(there.get(field), ConfigDict) and deeper:
            _state(there[field], value, deeper)
        else:
            with there.ignore_type():
                there[field] = value
