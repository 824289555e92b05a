"""The rank of LoRA, against training all of the network: digits that are dark on light, from a model of light on dark.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). The model is trained first, in
base/ of the workdir: a class-conditional transformer on scikit-learn's digits, 8x8 pixels. Then every cell adapts it to
the same digits with light and dark exchanged, all kernels of its blocks and its last layer by LoRA of one rank, or the
whole network, each for 300 steps at one learning rate. A class counts as right where a classifier of real inverted
digits says so; the model as it is has never seen such a picture.

Expected: nothing published at this size. The paper has small ranks nearly as good as large ones where the task is close
to what the model knows; an inversion changes what all layers see, and should want more.

    python -m experiments.ablate --config=configs/ablations/lora_rank.py --workdir=runs/lora_rank
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.digits_dit import get_config as digits

SEEDS = (0, 1, 2)
BASELINE = {"rank": "4"}
METRIC = "class_accuracy"
KERNELS = (r"network/(blocks|final)/\w+/kernel",)


def base() -> ConfigDict:
    """What all cells start from: a smaller transformer, trained shortly on the digits."""
    config = digits()
    config.model.update(hidden_size=64, depth=3)
    config.train.update(steps=800, batch_size=64)
    config.log.update(every=100, validate_every=0, sample_every=0)
    config.checkpoint.update(every=800, keep_best=0)
    config.evaluation.update(metrics=(), num_samples=100)
    return config


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = digits()
    with config.unlocked():
        del config.model, config.process
        config.init.folder = "base"
        config.adapter = ConfigDict(dict(name="lora", rank=4, targets=KERNELS))
    config.data.options = ConfigDict(dict(inverted=True))
    config.train.update(steps=300, batch_size=64)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=30)
    config.ema.half_lives = (3_000,)
    config.log.update(every=100, validate_every=0, sample_every=0)
    config.checkpoint.update(every=300, keep_best=0)
    config.evaluation.update(metrics=("class_accuracy", "proxy_fd"), num_samples=500)
    return config


def sweep_rank() -> Iterator[tuple[str, dict[str, Any]]]:
    """The rank of LoRA, or training of the whole network."""
    for rank in (1, 4, 16):
        yield str(rank), {"adapter": {"name": "lora", "rank": rank, "targets": KERNELS}}
    yield "all", {"adapter": None}
