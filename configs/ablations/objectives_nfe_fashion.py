"""Three objectives against network evaluations on Fashion-MNIST: EDM, flow matching and MeanFlow on one network.

The study of `objectives_nfe.py` on 28x28 images that hold more than digits. The recipes are those of that file (Karras
et al. 2022, arXiv:2206.00364; Liu et al. 2022, arXiv:2209.03003; Geng et al. 2025, arXiv:2505.13447). Data and network
are those of `configs/fashion_mnist_unet.py`, whose docstring says how to prepare the data. Training takes 10,000 steps
of 64 images, ten passes through the data.

Expected: MeanFlow is ahead with up to eight evaluations, and with 32 the three are equal (docs/results.md). One seed
takes two hours on a CPU core; `--seeds=0` runs only the first.

    python -m experiments.ablate --config=configs/ablations/objectives_nfe_fashion.py --workdir=runs/objectives_fashion
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations import objectives_nfe
from configs.fashion_mnist_unet import get_config as fashion_mnist

SEEDS = (0, 1, 2)
BASELINE = objectives_nfe.BASELINE
METRIC = objectives_nfe.METRIC


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config, fashion = objectives_nfe.get_config(), fashion_mnist()
    config.data, config.model = fashion.data, fashion.model
    config.model.num_times = 1
    config.train.steps = 10_000
    config.train.batch_size = 64
    config.optimizer.learning_rate = 1e-3
    config.ema.half_lives = (50_000,)
    config.log.validate_every = config.checkpoint.every = 500
    config.sampling.clip_x0 = True
    config.evaluation.num_samples = 2_000
    config.evaluation.bins = 256
    config.evaluation.max_real = 10_000
    return config


def sweep_objective() -> Iterator[tuple[str, dict[str, Any]]]:
    """The objective."""
    yield from objectives_nfe.sweep_objective()


def sweep_evaluations() -> Iterator[tuple[str, dict[str, Any]]]:
    """The number of network evaluations."""
    yield from objectives_nfe.sweep_evaluations()
