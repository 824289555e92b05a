"""The rank of LoRA against training the whole network: a model of light digits on dark learns dark digits on light.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). A class-conditional transformer
is trained first, in base/ of the workdir, on scikit-learn's digits of 8x8 pixels. Then every cell adapts it to the same
digits with light and dark exchanged. A cell trains LoRA of one rank on all kernels of the blocks and on the last layer,
or it trains the whole network; each takes 300 steps at one learning rate. A class counts as right if a classifier of
real inverted digits says so; the unadapted model has never seen such a picture.

Expected: nothing published at this size. In the paper small ranks are nearly as good as large ones where the task is
close to what the model knows. An inversion changes the input of every layer, and should need larger ranks.

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
    """The model from which all cells start: a smaller transformer, trained briefly on the digits."""
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
