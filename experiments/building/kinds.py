"""Which kind of training a config describes: of a denoiser, or of a first stage."""

from typing import Any

from ml_collections import ConfigDict

from experiments.building.first_stage import FirstStageExperiment
from experiments.building.wiring import Experiment
from experiments.ground.fields import CODEC


def open_experiment(config: ConfigDict, **fields: Any) -> Experiment:
    """What the config names, as the kind of experiment that it is; `fields` as of `Experiment`."""
    return (FirstStageExperiment if CODEC in config else Experiment)(config, **fields)
