"""VDM on CIFAR-10, unconditional, without augmentation: likelihood.

Kingma et al. 2021, "Variational Diffusion Models" (arXiv:2107.00630): the score network of 30,578,179 parameters with
attention only in the middle, gamma linear from -13.3 to 5, AdamW 2e-4 (b2 0.99, weight decay 0.01), batch 128, dropout
0.1, EMA 0.9999, low-discrepancy times, 10 million steps.

This config differs from the released one: the two end points of gamma are fixed instead of learned.
`--config.objective.learned=True` learns a monotone gamma with 3,074 parameters instead.

Published: 2.65 bits per dimension on the test images; the released checkpoint reaches 2.637. Not run here.

Topology: TPU v5e 2x4 (8 chips); the train step needs 3.6 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/vdm_cifar10.py --workdir=runs/vdm_cifar10
"""

from ml_collections import ConfigDict

from configs.common import cifar10

CLAIMS = {
    "paper": "Kingma et al. 2021, arXiv:2107.00630",
    "parameters": {
        "value": 30_578_181,
        "source": "counted on the authors' code",
        "differs": "the two ends of gamma are fixed here",
    },
    "schedule": [
        {"quantity": "log_snr", "t": t, "value": value, "source": "appendix H", "tolerance": 1e-12}
        for t, value in ((0.0, 13.3), (0.5, 4.15), (1.0, -5.0))
    ],
    "sampler": {"nfe": 1000, "source": "the authors' configuration"},
    "weights": "vdm",
    "results": [
        {
            "metric": "bits_per_dim",
            "value": 2.637,
            "sampler": "ddpm",
            "nfe": 1000,
            "num_samples": 10_000,
            "reference": "CIFAR-10, test",
            "source": "the authors' README",
        }
    ],
}

SMOKE = {
    "model": {"features": 32, "depth": 2},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()
    config.data.flip = False

    config.model = ConfigDict(dict(name="vdm", features=128, depth=32, dropout=0.1))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="vdm_linear", gamma_min=-13.3, gamma_max=5.0),
            prediction=dict(name="epsilon"),
            time_input=dict(name="scaled_t", scale=1000.0),
        )
    )
    config.time_sampler = ConfigDict(dict(name="uniform", t_min=0.0, uniforms="low_discrepancy"))
    config.objective = ConfigDict(dict(name="vdm", learned=False))

    config.train.steps = 10_000_000
    config.train.batch_size = 128
    config.optimizer.update(name="adamw", learning_rate=2e-4, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01)
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="ddpm"))
    config.sampling.steps = 1_000
    config.evaluation.metrics = ("bits_per_dim", "nearest_neighbours")
    config.evaluation.likelihood_images = 10_000
    return config
