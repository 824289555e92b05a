"""Which kind of training a config describes: of a denoiser, of a model that is there, or of a first stage."""

from typing import Any

from ml_collections import ConfigDict

from experiments.building.base_model import BaseExperiment
from experiments.building.first_stage import FirstStageExperiment
from experiments.building.wiring import Experiment
from experiments.ground.fields import CODEC


def open_experiment(config: ConfigDict, **fields: Any) -> Experiment:
    """What the config names, as the kind of experiment that it is; `fields` as of `Experiment`."""
    if CODEC in config:
        return FirstStageExperiment(config, **fields)
    return (BaseExperiment if config.init.folder else Experiment)(config, **fields)
