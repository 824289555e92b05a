"""Guidance in an interval of noise levels: EDM2-S on ImageNet 512x512 latents.

Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models" (arXiv:2404.07724): only sampling changes. The network is that of `edm2_s_imagenet512.py`. An unconditional
EDM2-XS guides it with scale 2.1, only at noise levels in (0.28, 2.90]. Samples take 32 steps of Heun's method.

Published: FID 1.68, compared with 2.23 for guidance at all levels. Not run here, and the data is a stand-in, as in that
config. The guide is a separate run. The paper tunes the width of the averages; choose your own:

    python -m experiments.train --config=configs/papers/edm2_s_imagenet512.py --workdir=runs/edm2_xs_uncond \
        --config.model.size=XS --config.train.class_conditional=False
    python -m experiments.train --config=configs/papers/guidance_interval_imagenet512.py --workdir=runs/edm2_s \
        --config.sampling.guidance.guide=runs/edm2_xs_uncond

Topology: TPU v5e 8x8 (64 chips); the train step needs 11.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.params --config=configs/papers/guidance_interval_imagenet512.py
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS
from configs.papers.edm2_s_imagenet512 import CLAIMS as EDM2
from configs.papers.edm2_s_imagenet512 import get_config as edm2_s

CLAIMS = {
    "paper": "Kynkaanniemi et al. 2024, arXiv:2404.07724",
    "parameters": EDM2["parameters"],
    "schedule": EDM2["schedule"],
    "loss": EDM2["loss"],
    "sampler": {"nfe": 77, "source": "63 of Heun, and the guide twice at each of the 7 of 32 levels in the interval"},
    "weights": "edm2",
    "results": [
        {
            "metric": "fid",
            "value": 1.68,
            "sampler": "heun",
            "nfe": 77,
            "guidance_scale": 2.1,
            "guide": True,
            "guidance_interval": (0.28, 2.90),
            "num_samples": 50_000,
            "reference": "ImageNet 512x512, the authors' statistics",
            "source": "Table 1",
            "differs": "the latents here are synthetic",
        }
    ],
}

SMOKE = {
    "model": {**CONVOLUTIONS, "base_channels": 32, "head_channels": 16},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe; `sampling.guidance.guide` names the run of the unconditional network."""
    config = edm2_s()
    config.sampling.guidance = ConfigDict(
        dict(name="autoguidance", scale=2.1, interval=(0.28, 2.90), rescale=0.0, guide="", guide_ema="")
    )
    return config
