"""Three objectives against network evaluations: EDM, flow matching and MeanFlow on one network.

Each objective trains on the quickstart's network, data and budget, with the schedule, prediction and sampler that
belong to it (`configs/digits_unet.py:objective=NAME`). The same weights are then sampled with 1 to 32 network
evaluations. EDM and flow matching use Euler's method here, so that a step is one evaluation; MeanFlow jumps (Geng et
al. 2025, arXiv:2505.13447).

Expected: MeanFlow draws digits in one evaluation, where the other two draw blurs; with 16 and more evaluations the
other two are ahead.

    python -m experiments.ablate --config=configs/ablations/objectives_nfe.py --workdir=runs/objectives_nfe
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.digits_unet import get_config as digits
from configs.objectives import RECIPES

SEEDS = (0, 1, 2)
BASELINE = {"objective": "edm", "evaluations": "16"}
METRIC = "proxy_fd"
_ONE_EVALUATION = {"denoising": "euler", "flow_matching": "flow_euler", "meanflow": "flow_map"}


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = digits()
    config.model.num_times = 1
    config.log.sample_every = 0
    config.evaluation.metrics = ("proxy_fd", "class_accuracy")
    return config


def sweep_objective() -> Iterator[tuple[str, dict[str, Any]]]:
    """The objective."""
    for name, label in (("denoising", "edm"), ("flow_matching", "flow"), ("meanflow", "meanflow")):
        recipe = {field: value for field, value in RECIPES[name].items() if field != "sampling.steps"}
        yield label, {**recipe, "sampling.sampler": {"name": _ONE_EVALUATION[name]}}


def sweep_evaluations() -> Iterator[tuple[str, dict[str, Any]]]:
    """The number of network evaluations."""
    for number in (1, 2, 4, 8, 16, 32):
        yield str(number), {"sampling.steps": number}
