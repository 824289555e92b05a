"""The width of the average of the parameters, chosen after training (Karras et al. 2024, EDM2, arXiv:2312.02696).

The quickstart's network keeps two power-function averages, of widths 0.05 and 0.10; every other width is reconstructed
from its checkpoints (section 3.2 of the paper), so that all cells of a seed share one training. Fig. 5 of the paper
shows this curve on ImageNet.

Expected: a broad optimum. Too wide an average still contains the noise of early training, and too narrow an average
contains the noise of late training.

    python -m experiments.ablate --config=configs/ablations/post_hoc_ema.py --workdir=runs/post_hoc_ema
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.digits_unet import get_config as digits

SEEDS = (0, 1, 2)
BASELINE = {"width": "0.100"}
METRIC = "proxy_fd"


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = digits()
    config.ema.half_lives = ()
    config.ema.widths = (0.05, 0.1)
    config.sampling.ema = "width_0.1"
    config.checkpoint.every = 50
    config.checkpoint.keep_last = 18
    config.log.sample_every = 0
    config.evaluation.metrics = ("proxy_fd", "class_accuracy")
    return config


def sweep_width() -> Iterator[tuple[str, dict[str, Any]]]:
    """The standard deviation of the average's weights, as a fraction of the training."""
    for width in (0.04, 0.05, 0.075, 0.1, 0.15):
        yield f"{width:.3f}", {"sampling.ema": f"width_{width}"}
