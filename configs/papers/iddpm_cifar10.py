"""Improved DDPM on CIFAR-10, unconditional: cosine schedule and learned variances.

Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672): 52,546,438 parameters,
4000 steps, L_hybrid with weight 0.001 on the bound, Adam 1e-4, batch 128, dropout 0.3, EMA 0.9999, 500k steps.

Published (Table 2): FID 3.19 and 3.17 bits per dimension with 4000 steps of ancestral sampling. Not run here. These two
figures are from memory and were not looked up again: the claims say `"checked": False`.

Topology: TPU v5e 2x2 (4 chips); the train step needs 2.7 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/iddpm_cifar10.py --workdir=runs/iddpm_cifar10
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

_JUDGED = {"sampler": "ddpm", "nfe": 4000, "source": "Table 2, L_hybrid", "checked": False}
CLAIMS = {
    "paper": "Nichol & Dhariwal 2021, arXiv:2102.09672",
    "parameters": {"value": 52_546_438, "source": "counted on the authors' code"},
    "schedule": [
        {
            "quantity": "noise_to_signal",
            "t": 1.0,
            "value": 81164.64774,
            "source": "the cosine betas, clipped at 0.999",
            "tolerance": 1e-9,
        }
    ],
    "sampler": {"nfe": 4000, "source": "Table 2"},
    "weights": "guided_diffusion",
    "results": [
        {"metric": "fid", "value": 3.19, "num_samples": 50_000, "reference": "CIFAR-10, training images", **_JUDGED},
        {"metric": "bits_per_dim", "value": 3.17, "num_samples": 10_000, "reference": "CIFAR-10, test", **_JUDGED},
    ],
}

SMOKE = {
    "model": {**CONVOLUTIONS, "head_channels": 8},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()

    config.model = ConfigDict(
        dict(
            name="adm",
            base_channels=128,
            channel_multipliers=(1, 2, 2, 2),
            num_res_blocks=3,
            attention_resolutions=(16, 8),
            head_channels=None,
            num_heads=4,
            resampling="conv",
            learn_sigma=True,
            dropout=0.3,
        )
    )

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="cosine", num_steps=4000),
            prediction=dict(name="epsilon"),
            time_input=dict(name="discrete_index", num_steps=4000),
        )
    )
    config.time_sampler = ConfigDict(dict(name="discrete_uniform", num_steps=4000))
    config.objective = ConfigDict(dict(name="hybrid", num_steps=4000, vlb_weight=1e-3))

    config.train.steps = 500_000
    config.train.batch_size = 128
    config.optimizer.update(name="adam", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8)
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="ddpm", variance="learned"))
    config.sampling.steps = 4_000
    config.sampling.clip_x0 = True
    return config
