"""U-ViT-S/2 on CIFAR-10, unconditional.

Bao et al. 2023, "All are Worth Words: A ViT Backbone for Diffusion Models" (arXiv:2209.12152): 44,255,328 parameters,
the variance-preserving SDE in continuous time, noise prediction, AdamW 2e-4 (0.99, 0.999) with weight decay 0.03 after
2500 steps of warm-up, batch 128, EMA 0.9999, 500k steps.

Published: FID 3.11 with 1000 Euler-Maruyama steps. Here the 1000 steps are ancestral. Not run here.

Topology: TPU v5e 2x2 (4 chips); the train step needs 11.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/uvit_s2_cifar10.py --workdir=runs/uvit_s2_cifar10
"""

from ml_collections import ConfigDict

from configs.common import TRANSFORMER, cifar10

CLAIMS = {
    "paper": "Bao et al. 2023, arXiv:2209.12152",
    "parameters": {"value": 44_255_328, "source": "counted on the authors' code; the paper has 44M"},
    "schedule": [
        {"quantity": "log_snr", "t": 1.0, "value": -10.04995681, "source": "beta from 0.1 to 20", "tolerance": 1e-8},
        {
            "quantity": "noise_to_signal",
            "t": 1e-3,
            "value": 0.010485992787,
            "source": "beta from 0.1 to 20",
            "tolerance": 1e-9,
        },
    ],
    "loss": [{"noise_to_signal": 2.0, "value": 0.25, "source": "the error of the noise"}],
    "sampler": {"nfe": 1000, "source": "the authors' configuration"},
    "weights": "uvit",
    "results": [
        {
            "metric": "fid",
            "value": 3.11,
            "sampler": "euler_maruyama",
            "nfe": 1000,
            "num_samples": 50_000,
            "reference": "CIFAR-10, training images",
            "source": "Table 1",
        }
    ],
}

SMOKE = {
    "model": {**TRANSFORMER, "depth": 4},
    "times_the_steps": 4,  # a momentum of 0.99 looks back on 100
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()

    config.model = ConfigDict(dict(name="uvit", size="S/2"))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="vp_sde"),
            prediction=dict(name="epsilon"),
            time_input=dict(name="scaled_t", scale=999.0),
        )
    )
    config.time_sampler = ConfigDict(dict(name="uniform", t_min=1e-5))
    config.objective = ConfigDict(dict(name="denoising", weighting="uniform"))

    config.train.steps = 500_000
    config.train.batch_size = 128
    config.optimizer.update(name="adamw", learning_rate=2e-4, b1=0.99, b2=0.999, eps=1e-8, weight_decay=0.03)
    config.optimizer.warmup_steps = 2_500
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="ddpm"))
    config.sampling.steps = 1_000
    return config
