"""Which kind of training a config describes: of a denoiser, of a model that is there, or of a first stage."""

from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.building.base_model import BaseExperiment
from experiments.building.first_stage import FirstStageExperiment
from experiments.building.wiring import Experiment
from experiments.ground.fields import CODEC


def plan_experiment(config: ConfigDict, devices: tuple[jax.Device, ...] | None = None) -> Experiment:
    """What the config names, to look at and not to run: `Experiment.planned`, of the kind that it is."""
    return (BaseExperiment if config.init.folder else Experiment).planned(config, devices)


def open_experiment(config: ConfigDict, **fields: Any) -> Experiment:
    """What the config names, as the kind of experiment that it is; `fields` as of `Experiment`."""
    if CODEC in config:
        return FirstStageExperiment(config, **fields)
    return (BaseExperiment if config.init.folder else Experiment)(config, **fields)
