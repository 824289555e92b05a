"""What the network predicts, on which schedule, weighed how: the three choices of a denoising loss, crossed.

The study crosses three kinds of prediction, two schedules and two weightings on the quickstart's network and data.
Kingma & Gao 2023 (arXiv:2303.00848) and Salimans & Ho 2022 (arXiv:2202.00512, Table 1) are experiments of this form.
The weights apply to the squared error of the predicted quantity: "plain" is one, "min_snr" is Min-SNR-5 (Hang et al.
2023, arXiv:2303.09556).

Expected: nothing published at this size. The plain losses of the three kinds weigh the noise levels differently, so
their results differ most; under min_snr they weigh the levels alike.

    python -m experiments.ablate --config=configs/ablations/prediction_schedule_weighting.py --workdir=runs/psw
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.digits_unet import get_config as digits

SEEDS = (0, 1, 2)
BASELINE = {"prediction": "epsilon", "schedule": "cosine", "weighting": "plain"}
METRIC = "proxy_fd"


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = digits()
    config.process.time_input = ConfigDict(dict(name="scaled_t", scale=1000.0))
    config.time_sampler = ConfigDict(dict(name="uniform", uniforms="low_discrepancy"))
    config.sampling.sampler = ConfigDict(dict(name="ddim"))
    config.sampling.steps = 50
    config.log.sample_every = 0
    config.evaluation.metrics = ("proxy_fd", "class_accuracy")
    return config


def sweep_prediction() -> Iterator[tuple[str, dict[str, Any]]]:
    """What the network's output means."""
    for name in ("epsilon", "x0", "v"):
        yield name, {"process.prediction": {"name": name}}


def sweep_schedule() -> Iterator[tuple[str, dict[str, Any]]]:
    """The noise schedule."""
    yield "cosine", {"process.schedule": {"name": "clipped_cosine"}}
    yield "linear", {"process.schedule": {"name": "vp_sde"}}


def sweep_weighting() -> Iterator[tuple[str, dict[str, Any]]]:
    """The weights of the noise levels."""
    yield "plain", {"objective": {"name": "denoising", "weighting": "uniform"}}
    yield "min_snr", {"objective": {"name": "denoising", "weighting": {"name": "min_snr", "gamma": 5.0}}}
