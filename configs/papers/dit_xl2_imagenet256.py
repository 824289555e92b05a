"""DiT-XL/2 on ImageNet 256x256 latents (Peebles & Xie 2023, arXiv:2212.09748): the paper's recipe.

674,834,720 trainable parameters, latents 32x32x4, 1000 classes with 10% label dropout, AdamW 1e-4 constant without
weight decay, batch 256, EMA 0.9999, linear betas in 1000 steps, 7 million steps. The loss is iDDPM's hybrid: the MSE of
the noise, plus the variational bound for the learned variances, which does not train the mean. Published, with 250
ancestral steps, learned variances and guidance 1.5: FID 2.27, sFID 4.60, IS 278.24 (9.62 FID without guidance).

The data is a stand-in, `synthetic_latents`, Gaussian mixtures in the latents' shape; the last two commands train on
ImageNet's latents. The network can load the authors' weights (`experiments.convert`).

Topology: TPU v5e 4x4 (16 chips); the train step needs 2.0 GB per chip (compiled by libtpu 0.0.42.1), with parameters,
optimizer and EMA sharded over all of them.

    python -m experiments.params --config=configs/papers/dit_xl2_imagenet256.py
    python -m experiments.prepare_latents --first_stage=models/sd-vae-ft-ema --dataset=imagenet2012 \\
        --image_size=256 --crop=adm --splits=train,validation --out=data/imagenet256
    python -m experiments.train --workdir=runs/dit_xl2 \\
        --config=configs/papers/dit_xl2_imagenet256.py:data/imagenet256,models/sd-vae-ft-ema
"""

from ml_collections import ConfigDict

from configs.common import TRANSFORMER, latents

_JUDGED = {
    "sampler": "ddpm",
    "nfe": 500,
    "guidance_scale": 1.5,
    "num_samples": 50_000,
    "reference": "ImageNet 256x256, ADM's statistics",
    "source": "Table 2, DiT-XL/2-G",
    "differs": "the latents here are synthetic",
}
CLAIMS = {
    "paper": "Peebles & Xie 2023, arXiv:2212.09748",
    "parameters": {"value": 674_834_720, "source": "counted on the authors' code, without the fixed positions"},
    "schedule": [
        {
            "quantity": "log_snr",
            "t": 1.0,
            "value": -10.1176731833,
            "source": "closed form of DDPM's betas",
            "tolerance": 1e-10,
        }
    ],
    "sampler": {"nfe": 500, "source": "250 steps, each of two evaluations for guidance"},
    "weights": "dit",
    "results": [
        {"metric": "fid", "value": 2.27, **_JUDGED},
        {"metric": "sfid", "value": 4.60, **_JUDGED},
        {"metric": "inception_score", "value": 278.24, **_JUDGED},
    ],
}

SMOKE = {
    "model": {**TRANSFORMER, "depth": 2},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config(real: str = "") -> ConfigDict:
    """The recipe; `real` names prepared latents and their first stage (`configs.common.latents`)."""
    config = latents(32, real=real)

    config.model = ConfigDict(dict(name="dit", size="XL/2", learn_sigma=True, remat="full"))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="ddpm_linear", num_steps=1000, beta_start=1e-4, beta_end=0.02),
            prediction=dict(name="epsilon"),
            time_input=dict(name="discrete_index", num_steps=1000),
        )
    )
    config.time_sampler = ConfigDict(dict(name="discrete_uniform", num_steps=1000))
    config.objective = ConfigDict(dict(name="hybrid", num_steps=1000, vlb_weight=1e-3))

    config.train.steps = 7_000_000
    config.train.batch_size = 256
    config.train.dtype = "bfloat16"
    config.train.class_conditional = True
    config.train.conditioning_dropout = 0.1
    config.optimizer.update(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    config.ema.decays = (0.9999,)
    config.parallel.data = 1
    config.parallel.fsdp = -1

    config.sampling.sampler = ConfigDict(dict(name="ddpm", variance="learned"))
    config.sampling.steps = 250
    config.sampling.guidance.scale = 1.5
    config.sampling.batch_size = 64
    config.log.num_samples = 16
    return config
