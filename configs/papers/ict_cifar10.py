"""Improved consistency training (iCT) on CIFAR-10, unconditional.

Song & Dhariwal 2023, "Improved Techniques for Training Consistency Models" (arXiv:2310.14189): EDM's NCSN++ of
56,395,523 parameters, no averaged teacher, pseudo-Huber distance, levels that double from 11 to 1281, log-normal levels
N(-1.1, 2), batch 1024, 400k steps; RAdam 1e-4, dropout 0.3 and EMA 0.99993. These last three values are from memory.
The authors' code is not public, and the paper does not state the network in full detail.

Published: FID 2.83 in one step and 2.46 in two. Not run here.

Topology: TPU v5e 4x4 (16 chips); the train step needs 5.7 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/ict_cifar10.py --workdir=runs/ict_cifar10
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

_JUDGED = {
    "metric": "fid",
    "sampler": "consistency",
    "num_samples": 50_000,
    "reference": "CIFAR-10, training images",
    "source": "Table 2",
}
CLAIMS = {
    "paper": "Song & Dhariwal 2023, arXiv:2310.14189",
    "parameters": {"value": 56_395_523, "source": "EDM's NCSN++, counted on its authors' code"},
    "schedule": [
        {"quantity": "noise_to_signal", "t": 1.0, "value": 80.0, "source": "EDM, eq. 5", "tolerance": 1e-12},
        {"quantity": "noise_to_signal", "t": 0.0, "value": 0.002, "source": "EDM, eq. 5", "tolerance": 1e-12},
    ],
    "sampler": {"nfe": 2, "source": "two-step sampling"},
    "weights": "edm",
    "results": [{**_JUDGED, "nfe": 1, "value": 2.83}, {**_JUDGED, "nfe": 2, "value": 2.46}],
}

SMOKE = {
    "model": CONVOLUTIONS,
    "objective": {"last": 160},  # the data spreads as slowly as the target follows
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()

    config.model = ConfigDict(dict(name="ncsnpp", dropout=0.3))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0),
            prediction=dict(name="consistency", sigma_data=0.5),
            time_input=dict(name="quarter_log_sigma"),
        )
    )
    config.objective = ConfigDict(dict(name="ict", first=10, last=1280, total_steps=400_000))

    config.train.steps = 400_000
    config.train.batch_size = 1024
    config.optimizer.update(name="radam", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8)
    config.ema.decays = (0.99993,)

    config.sampling.sampler = ConfigDict(dict(name="consistency"))
    config.sampling.grid = ConfigDict(dict(name="trailing"))
    config.sampling.steps = 2
    return config
