"""ADM on ImageNet 64x64, class-conditional.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), Table 11: 295,904,454
parameters, cosine schedule in 1000 steps, L_hybrid with learned variances, AdamW 3e-4 without decay, batch 2048,
dropout 0.1, EMA 0.9999, 540k steps. The paper computes in float16 with float32 copies; this config computes in
bfloat16.

Published: FID 2.07 with 250 steps and without guidance. Not run here.

Topology: TPU v5e 8x8 (64 chips); the train step needs 15.9 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=imagenet_resized/64x64
    python -m experiments.train --config=configs/papers/adm_imagenet64.py --workdir=runs/adm_imagenet64
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, imagenet64

CLAIMS = {
    "paper": "Dhariwal & Nichol 2021, arXiv:2105.05233",
    "parameters": {"value": 295_904_454, "source": "counted on the authors' code; the paper has 296M"},
    "schedule": [
        {
            "quantity": "noise_to_signal",
            "t": 1.0,
            "value": 20291.16961,
            "source": "the cosine betas, clipped at 0.999",
            "tolerance": 1e-9,
        }
    ],
    "sampler": {"nfe": 250, "source": "the authors' README"},
    "weights": "guided_diffusion",
    "results": [
        {
            "metric": "fid",
            "value": 2.07,
            "sampler": "ddpm",
            "nfe": 250,
            "num_samples": 50_000,
            "reference": "ImageNet 64x64, the authors' statistics",
            "source": "the authors' README",
        }
    ],
}

SMOKE = {
    "model": {**CONVOLUTIONS, "head_channels": 8},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = imagenet64()

    config.model = ConfigDict(dict(name="adm", learn_sigma=True, dropout=0.1))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="cosine", num_steps=1000),
            prediction=dict(name="epsilon"),
            time_input=dict(name="discrete_index", num_steps=1000),
        )
    )
    config.time_sampler = ConfigDict(dict(name="discrete_uniform", num_steps=1000))
    config.objective = ConfigDict(dict(name="hybrid", num_steps=1000, vlb_weight=1e-3))

    config.train.steps = 540_000
    config.train.batch_size = 2048
    config.train.dtype = "bfloat16"
    config.train.class_conditional = True
    config.optimizer.update(name="adamw", learning_rate=3e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="ddpm", variance="learned"))
    config.sampling.steps = 250
    config.sampling.clip_x0 = True
    return config
