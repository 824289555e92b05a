"""DDIM on CIFAR-10: DDPM's network, sampled without noise in 50 steps.

Song et al. 2021, "Denoising Diffusion Implicit Models" (arXiv:2010.02502): the training is that of DDPM, so a run of
`ddpm_cifar10.py` can be sampled with `--sampler=ddim --steps=50` without a second training.

Published, eta 0 (Table 1; 50,000 samples): FID 13.36, 6.84, 4.67, 4.16 in 10, 20, 50, 100 steps. Not run here.

The paper takes quadratic subsequences of the steps on CIFAR-10, as the grid `quadratic` does here.

Topology: TPU v5e 2x2 (4 chips); the train step needs 1.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.train --config=configs/papers/ddim_cifar10.py --workdir=runs/ddim_cifar10
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS
from configs.papers import ddpm_cifar10

_JUDGED = {"metric": "fid", "sampler": "ddim", "num_samples": 50_000, "reference": "CIFAR-10, training images"}
CLAIMS = {
    **ddpm_cifar10.CLAIMS,
    "paper": "Song et al. 2021, arXiv:2010.02502",
    "sampler": {"nfe": 50, "source": "Table 1, S = 50"},
    "results": [
        {**_JUDGED, "nfe": steps, "value": value, "source": "Table 1, eta 0"}
        for steps, value in ((10, 13.36), (20, 6.84), (50, 4.67), (100, 4.16))
    ],
}

SMOKE = {
    "model": CONVOLUTIONS,
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """DDPM's training, DDIM's sampling."""
    config = ddpm_cifar10.get_config()
    config.sampling.sampler = ConfigDict(dict(name="ddim"))
    config.sampling.grid = ConfigDict(dict(name="quadratic"))
    config.sampling.steps = 50
    return config
