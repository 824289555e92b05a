"""Autoguidance: EDM2-S on ImageNet 512x512 latents, guided by a worse version of itself.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself" (arXiv:2406.02507): only sampling changes.
The network is that of `edm2_s_imagenet512.py`, with averages of width 0.070. Its predictions are extrapolated, with
scale 2.1, away from those of an EDM2-XS that has seen 134 million images, with averages of width 0.125. Samples take 32
steps of Heun's method.

Published: FID 1.34 (2.56 without guidance). Not run here, and the data is a stand-in, as in that config. The guide is a
separate run, a sixteenth as long:

    python -m experiments.train --config=configs/papers/edm2_s_imagenet512.py --workdir=runs/edm2_xs \
        --config.model.size=XS --config.train.steps=65536
    python -m experiments.train --config=configs/papers/autoguidance_imagenet512.py --workdir=runs/edm2_s \
        --config.sampling.guidance.guide=runs/edm2_xs

Samples drawn during training use the averages that the training keeps. The averages of width 0.070 are reconstructed
afterwards: give `experiments.sample` or `experiments.evaluate` the flags `--ema=width_0.07 --guide_ema=width_0.125`.

Topology: TPU v5e 8x8 (64 chips); the train step needs 11.8 GB per chip (compiled by libtpu 0.0.42.1). The plan's
sampler uses the null condition of the same network for guidance, since no run of a worse network exists to plan with.

    python -m experiments.params --config=configs/papers/autoguidance_imagenet512.py
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS
from configs.papers.edm2_s_imagenet512 import CLAIMS as EDM2
from configs.papers.edm2_s_imagenet512 import get_config as edm2_s

CLAIMS = {
    "paper": "Karras et al. 2024, arXiv:2406.02507",
    "parameters": EDM2["parameters"],
    "schedule": EDM2["schedule"],
    "loss": EDM2["loss"],
    "sampler": {"nfe": 126, "source": "63 of Heun, each of two networks"},
    "weights": "edm2",
    "results": [
        {
            "metric": "fid",
            "value": 1.34,
            "sampler": "heun",
            "nfe": 126,
            "guidance_scale": 2.1,
            "guide": True,
            "num_samples": 50_000,
            "reference": "ImageNet 512x512, the authors' statistics",
            "source": "the authors' generate_images.py",
            "differs": "the latents here are synthetic",
        }
    ],
}

SMOKE = {
    "model": {**CONVOLUTIONS, "base_channels": 32, "head_channels": 16},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe; `sampling.guidance.guide` names the run of the worse network."""
    config = edm2_s()
    config.sampling.guidance = ConfigDict(
        dict(name="autoguidance", scale=2.1, interval=(), rescale=0.0, guide="", guide_ema="")
    )
    return config
