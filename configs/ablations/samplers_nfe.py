"""Samplers against steps on one network: which sampler is worth its network evaluations?

The quickstart's network (EDM on digits) is trained once per seed. Every sampler at every number of steps uses the same
weights and the same noise. Karras et al. 2022 (arXiv:2206.00364), Fig. 2, and Lu et al. 2022 (arXiv:2211.01095) are
experiments of this form.

Expected: at few evaluations DPM-Solver++ is ahead, and Heun is behind because it needs two per step. At 32 steps the
two agree, and the Euler method comes last.

    python -m experiments.ablate --config=configs/ablations/samplers_nfe.py --workdir=runs/samplers_nfe
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.digits_unet import get_config as digits

SEEDS = (0, 1, 2)
BASELINE = {"sampler": "heun", "steps": "16"}
METRIC = "proxy_fd"


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = digits()
    config.log.sample_every = 0
    config.evaluation.metrics = ("proxy_fd", "class_accuracy")
    return config


def sweep_sampler() -> Iterator[tuple[str, dict[str, Any]]]:
    """The sampler."""
    for name in ("euler", "heun", "dpmpp_2m"):
        yield name, {"sampling.sampler": {"name": name}}


def sweep_steps() -> Iterator[tuple[str, dict[str, Any]]]:
    """The number of steps."""
    for steps in (4, 8, 16, 32):
        yield str(steps), {"sampling.steps": steps}
