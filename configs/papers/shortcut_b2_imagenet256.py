"""A shortcut model, DiT-B/2, on ImageNet 256x256 latents: one network for 1 to 128 steps.

Frans et al. 2024, "One Step Diffusion via Shortcut Models" (arXiv:2410.12557): 131,091,728 parameters, AdamW 1e-4 (0.9,
0.999) with weight decay 0.1, batch 256, an eighth of which is bootstrapped, 128 base steps, averaged targets with decay
0.999, 810k steps. The paper's flow-matching targets include guidance 1.5; the targets here are unguided.

Published (with that guidance): FID 15.5, 28.3, 40.3 in 128, 4, 1 steps. Not run here. The data is a stand-in,
`synthetic_latents`; the last two commands train on ImageNet's latents.

Topology: TPU v5e 2x4 (8 chips); the train step needs 4.7 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.params --config=configs/papers/shortcut_b2_imagenet256.py
    python -m experiments.prepare_latents --first_stage=models/sd-vae-ft-ema --dataset=imagenet2012 \\
        --image_size=256 --crop=adm --splits=train,validation --out=data/imagenet256
    python -m experiments.train --workdir=runs/shortcut_b2 \\
        --config=configs/papers/shortcut_b2_imagenet256.py:data/imagenet256,models/sd-vae-ft-ema
"""

from ml_collections import ConfigDict

from configs.common import TRANSFORMER, latents

_JUDGED = {
    "metric": "fid",
    "sampler": "flow_map",
    "num_samples": 50_000,
    "reference": "ImageNet 256x256, the authors' statistics",
    "source": "the authors' README",
    "differs": "the latents here are synthetic, and there is no guidance",
}
CLAIMS = {
    "paper": "Frans et al. 2024, arXiv:2410.12557",
    "parameters": {
        "value": 131_091_728,
        "source": "counted on the authors' code",
        "differs": "the authors' code has a table of 256 on which its output does not depend",
    },
    "schedule": [
        {
            "quantity": "noise_to_signal",
            "t": 0.75,
            "value": 3.0,
            "source": "x_t = (1 - t) x0 + t noise",
            "tolerance": 1e-12,
        }
    ],
    "sampler": {"nfe": 4, "source": "four steps"},
    "results": [{**_JUDGED, "nfe": n, "value": value} for n, value in ((128, 15.5), (4, 28.3), (1, 40.3))],
}

SMOKE = {
    "model": {**TRANSFORMER, "depth": 2},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config(real: str = "") -> ConfigDict:
    """The recipe; `real` names prepared latents and their first stage (`configs.common.latents`)."""
    config = latents(32, real=real)

    config.model = ConfigDict(dict(name="dit", size="B/2", num_times=2, remat="full"))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="velocity"),
            time_input=dict(name="t"),
        )
    )
    config.time_sampler = ConfigDict(dict(name="uniform"))
    config.objective = ConfigDict(dict(name="shortcut", base_steps=128, bootstrap=0.125, decay=0.999))

    config.train.steps = 810_000
    config.train.batch_size = 256
    config.train.class_conditional = True
    config.train.conditioning_dropout = 0.1
    config.optimizer.update(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
    config.ema.decays = (0.999,)

    config.sampling.sampler = ConfigDict(dict(name="flow_map"))
    config.sampling.steps = 4
    config.sampling.batch_size = 64
    return config
