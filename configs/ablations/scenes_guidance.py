"""Guidance by words: how its scale and its interval of noise levels change adherence and distance.

Ho & Salimans 2022, "Classifier-Free Diffusion Guidance" (arXiv:2207.12598); Kynkaanniemi et al. 2024 (arXiv:2404.07724)
for the interval, which is in noise levels sigma / alpha. There is one training per seed.

Expected: nothing published at this size. Adherence rises with the scale up to some value, while the distance to real
pictures is smallest at a lower scale.

    python -m experiments.ablate --config=configs/ablations/scenes_guidance.py --workdir=runs/scenes_guidance
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.scenes_text_to_image import get_config as scenes

SEEDS = (0, 1, 2)
BASELINE = {"scale": "3", "interval": "all"}
METRIC = "prompt_adherence"


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = scenes("small")
    config.log.sample_every = 0
    config.evaluation.metrics = ("prompt_adherence", "proxy_fd")
    return config


def sweep_scale() -> Iterator[tuple[str, dict[str, Any]]]:
    """The scale of guidance."""
    for scale in (1.0, 2.0, 3.0, 5.0, 8.0):
        yield f"{scale:g}", {"sampling.guidance.scale": scale}


def sweep_interval() -> Iterator[tuple[str, dict[str, Any]]]:
    """The interval of guidance."""
    yield "all", {"sampling.guidance.interval": ()}
    yield "middle", {"sampling.guidance.interval": (0.2, 5.0)}


def keep(cell: Mapping[str, str]) -> bool:
    """Whether a cell is run: without guidance, only the cell without an interval is."""
    return cell["scale"] != "1" or cell["interval"] == "all"
