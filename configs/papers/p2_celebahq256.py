"""P2 weighting (perception prioritized training) on CelebA-HQ 256x256, unconditional.

Choi et al. 2022, "Perception Prioritized Training of Diffusion Models" (arXiv:2204.00227), with the command of the
authors' README: a light ADM of 93,563,910 parameters (128 channels, one block to a level, attention at 16x16), linear
schedule in 1000 steps, L_hybrid whose squared epsilon errors are weighted by 1 / (k + SNR)^gamma, k = gamma = 1 (the
paper also uses gamma = 0.5), AdamW 2e-5 without decay, batch 8, no dropout, EMA 0.9999. We chose the training length of
500k steps, since the README does not state it.

Published: FID 6.91, with 500 steps (from memory). Not run here. TFDS needs the files of CelebA-HQ. To train on another
folder of images, give `--config.data.dataset=folder:/path` and `--config.data.crop=adm`.

Topology: TPU v5e 2x4 (8 chips); the train step needs 3.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=celeb_a_hq/256
    python -m experiments.train --config=configs/papers/p2_celebahq256.py --workdir=runs/p2_celebahq256
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, celeba_hq256

CLAIMS = {
    "paper": "Choi et al. 2022, arXiv:2204.00227",
    "parameters": {"value": 93_563_910, "source": "counted on the authors' code; the paper has 93M"},
    "schedule": [
        {
            "quantity": "noise_to_signal",
            "t": 1.0,
            "value": 157.4072808,
            "source": "betas 1e-4 to 0.02 in 1000 steps",
            "tolerance": 1e-8,
        },
    ],
    "loss": [
        {"noise_to_signal": 1.0, "value": 0.5, "source": "SNR / (1 + SNR): eq. 8, in x0"},
        {"noise_to_signal": 10.0, "value": 0.01 / 1.01, "source": "SNR / (1 + SNR): eq. 8, in x0"},
    ],
    "sampler": {"nfe": 500, "source": "as remembered"},
    "weights": "guided_diffusion",
    "results": [
        {
            "metric": "fid",
            "value": 6.91,
            "sampler": "ddpm",
            "nfe": 500,
            "num_samples": 50_000,
            "reference": "CelebA-HQ 256x256, training images",
            "source": "the paper's table of CelebA-HQ",
            "checked": False,
        }
    ],
}

SMOKE = {
    "model": {**CONVOLUTIONS, "head_channels": 8},
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = celeba_hq256()

    config.model = ConfigDict(
        dict(name="adm", base_channels=128, num_res_blocks=1, attention_resolutions=(16,), learn_sigma=True)
    )

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="ddpm_linear"),
            prediction=dict(name="epsilon"),
            time_input=dict(name="discrete_index", num_steps=1000),
        )
    )
    config.time_sampler = ConfigDict(dict(name="discrete_uniform", num_steps=1000))
    config.objective = ConfigDict(
        dict(name="hybrid", weighting=dict(name="p2", k=1.0, gamma=1.0), num_steps=1000, vlb_weight=1e-3)
    )

    config.train.steps = 500_000
    config.train.batch_size = 8
    config.optimizer.update(name="adamw", learning_rate=2e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="ddpm", variance="learned"))
    config.sampling.steps = 500
    config.sampling.clip_x0 = True
    return config
