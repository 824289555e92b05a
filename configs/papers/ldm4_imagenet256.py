"""LDM-4 on ImageNet 256x256: latent diffusion, class-conditional by attention to the label.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752): latents 64x64x3
(VQ, factor 4), a U-Net of 400,920,579 parameters and a table of 1001 labels of 512, betas linear in their square root
from 0.0015 to 0.0195 in 1000 steps, 178k steps of batch 1200, 10% label dropout. The learning rate 1e-4 and the EMA
0.9999 are quoted from the released configuration from memory.

Published: FID 3.60 and IS 247.67 with 250 steps of DDIM and guidance 1.5; FID 10.56 without guidance. Not run here. The
data is a stand-in, `synthetic_latents`. For real latents, train the first stage `FIRST_STAGE` below, or take its
published weights; the last two commands then train on ImageNet's latents.

Topology: TPU v5p 2x2x4 (16 chips); the train step needs 37.9 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.params --config=configs/papers/ldm4_imagenet256.py
    python -m experiments.prepare_latents --first_stage=models/vq-f4 --dataset=imagenet2012 \\
        --image_size=256 --crop=adm --splits=train,validation --out=data/imagenet256_vq
    python -m experiments.train --workdir=runs/ldm4 \\
        --config=configs/papers/ldm4_imagenet256.py:data/imagenet256_vq,models/vq-f4
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, latents

# 55,322,782 parameters; the table has 24,576 of them.
FIRST_STAGE = {"name": "vq", "size": "f4", "latent_channels": 3, "num_codes": 8192}

_JUDGED = {
    "sampler": "ddim",
    "nfe": 500,
    "guidance_scale": 1.5,
    "num_samples": 50_000,
    "reference": "ImageNet 256x256, ADM's statistics",
    "source": "the paper, LDM-4-G",
    "differs": "the latents here are synthetic",
}
CLAIMS = {
    "paper": "Rombach et al. 2022, arXiv:2112.10752",
    "parameters": {"value": 400_920_579 + 512_512, "source": "counted on the authors' code"},
    "schedule": [
        {
            "quantity": "noise_to_signal",
            "t": 1.0,
            "value": 83.82249447,
            "source": "closed form of the released betas",
            "tolerance": 1e-9,
        }
    ],
    "loss": [{"noise_to_signal": 2.0, "value": 0.25, "source": "the error of the noise"}],
    "sampler": {"nfe": 500, "source": "250 steps, each of two evaluations for guidance"},
    "weights": "latent_diffusion",
    "results": [
        {"metric": "fid", "value": 3.60, **_JUDGED},
        {"metric": "inception_score", "value": 247.67, **_JUDGED},
    ],
}

SMOKE = {
    "keeps": ("dropout",),  # the size has a name, and what it stands for is below
    "model": {
        **CONVOLUTIONS,
        "name": "unet",
        "context_channels": 32,
        "label_context": True,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "frequency_shift": 0,
    },
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config(real: str = "") -> ConfigDict:
    """The recipe; `real` names prepared latents and their first stage (`configs.common.latents`)."""
    config = latents(64, channels=3, real=real)

    config.model = ConfigDict(dict(name="ldm_unet", size="imagenet256"))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="scaled_linear", num_steps=1000, beta_start=0.0015, beta_end=0.0195),
            prediction=dict(name="epsilon"),
            time_input=dict(name="discrete_index", num_steps=1000),
        )
    )
    config.time_sampler = ConfigDict(dict(name="discrete_uniform", num_steps=1000))
    config.objective = ConfigDict(dict(name="denoising", weighting="uniform"))

    config.train.steps = 178_000
    config.train.batch_size = 1200
    config.train.class_conditional = True
    config.train.conditioning_dropout = 0.1
    config.optimizer.update(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="ddim"))
    config.sampling.steps = 250
    config.sampling.guidance.scale = 1.5
    config.sampling.batch_size = 64
    return config
