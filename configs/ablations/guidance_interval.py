"""Classifier-free guidance: its scale, and the noise levels at which it acts.

Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models" (arXiv:2404.07724): guidance at high noise reduces the variety of samples, and at low noise it only costs time.
There is one training per seed; the interval is in noise levels sigma / alpha.

Expected: nothing published at this size. At all noise levels the distance to the real digits grows with the scale,
while the share of samples of the requested class stays high. With guidance in the middle alone, the distance grows
less.

    python -m experiments.ablate --config=configs/ablations/guidance_interval.py --workdir=runs/guidance_interval
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.digits_unet import get_config as digits

SEEDS = (0, 1, 2)
BASELINE = {"scale": "1", "interval": "all"}
METRIC = "proxy_fd"


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = digits()
    config.log.sample_every = 0
    config.evaluation.metrics = ("proxy_fd", "class_accuracy", "proxy_precision_recall")
    return config


def sweep_scale() -> Iterator[tuple[str, dict[str, Any]]]:
    """The scale of guidance."""
    for scale in (1.0, 1.5, 2.0, 4.0):
        yield f"{scale:g}", {"sampling.guidance.scale": scale}


def sweep_interval() -> Iterator[tuple[str, dict[str, Any]]]:
    """The interval of guidance."""
    yield "all", {"sampling.guidance.interval": ()}
    yield "middle", {"sampling.guidance.interval": (0.2, 2.0)}
    yield "low noise", {"sampling.guidance.interval": (0.0, 0.2)}


def keep(cell: Mapping[str, str]) -> bool:
    """Whether a cell is run: without guidance, only the cell without an interval is."""
    return cell["scale"] != "1" or cell["interval"] == "all"
