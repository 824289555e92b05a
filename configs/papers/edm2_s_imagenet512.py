"""EDM2-S on ImageNet 512x512 latents.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv:2312.02696):
magnitude-preserving network of size S (280,212,837 parameters with the 128 of the loss's uncertainty), Adam (0.9,
0.99), learning rate 0.01 ramped up over 10 million images and falling as an inverse square root from step 70,000, batch
2048, noise levels ln sigma ~ N(-0.4, 1), 2147 million images, power-function averages of widths 0.05 and 0.1. The paper
computes in float16; this config computes in bfloat16.

Published: FID 2.56 without guidance, with Heun at 32 steps (63 network evaluations) and the best width, 0.13: sample
with `--ema=width_0.13`. Not run here. The data is a stand-in: `synthetic_latents`, Gaussian mixtures in the latents'
shape. The paper scales every channel of real latents to a standard deviation of 0.5; `experiments.prepare_latents`
keeps the first stage's own scale, so this config does not take real latents.

Topology: TPU v5e 8x8 (64 chips); the train step needs 11.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.params --config=configs/papers/edm2_s_imagenet512.py
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, latents

_JUDGED = {
    "sampler": "heun",
    "nfe": 63,
    "num_samples": 50_000,
    "reference": "ImageNet 512x512, the authors' statistics",
    "differs": "the latents here are synthetic",
}
CLAIMS = {
    "paper": "Karras et al. 2024, arXiv:2312.02696",
    "parameters": {"value": 280_212_837, "source": "counted on the authors' code; the paper has 280.2M"},
    "schedule": [
        {"quantity": "noise_to_signal", "t": 1 - n / 31, "value": value, "source": "EDM, eq. 5", "tolerance": 1e-5}
        for n, value in ((16, 2.17386), (17, 1.60857), (23, 0.18859))
    ],
    "loss": [{"noise_to_signal": 0.5, "value": 8.0, "source": "EDM, Table 1, before the uncertainty"}],
    "sampler": {"nfe": 63, "source": "the authors' generate_images"},
    "weights": "edm2",
    "results": [
        {"metric": "fid", "value": 2.56, "source": "the paper and the authors' README", **_JUDGED},
        {"metric": "fd_dinov2", "value": 68.64, "source": "the authors' generate_images.py, width 0.19", **_JUDGED},
    ],
}

SMOKE = {
    "model": {**CONVOLUTIONS, "base_channels": 32, "head_channels": 16},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = latents(64)

    config.model = ConfigDict(dict(name="edm2", size="S"))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0),
            prediction=dict(name="edm", sigma_data=0.5),
            time_input=dict(name="quarter_log_sigma"),
        )
    )
    config.time_sampler = ConfigDict(dict(name="log_normal", mean=-0.4, std=1.0))
    config.objective = ConfigDict(dict(name="denoising", weighting="uniform", uncertainty=True))

    config.train.steps = 1_048_576
    config.train.batch_size = 2048
    config.train.dtype = "bfloat16"
    config.train.class_conditional = True
    config.optimizer.update(name="adam", learning_rate=0.01, b1=0.9, b2=0.99, eps=1e-8)
    config.optimizer.warmup_steps = 4_883
    config.optimizer.decay = "inverse_sqrt"
    config.optimizer.decay_steps = 70_000
    config.ema.widths = (0.05, 0.1)

    config.sampling.sampler = ConfigDict(dict(name="heun"))
    config.sampling.steps = 32
    config.sampling.batch_size = 64
    return config
