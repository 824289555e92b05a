"""DDPM on CIFAR-10, unconditional: the paper's recipe.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239): 35,746,307 parameters, linear betas from
1e-4 to 0.02 in 1000 steps, epsilon-prediction, Adam 2e-4 after 5000 steps of warm-up, batch 128, dropout 0.1, random
flips, gradient clipping at 1, EMA 0.9999, 800k steps.

Published: FID 3.17, Inception Score 9.46 with ancestral sampling of the larger variance at 1000 network evaluations
(50,000 samples against the training set). Not run here: the paper's run took 10.6 hours on a TPU v3-8. With Inception's
weights, `--config.evaluation.inception=...`, the metrics `fid` and `inception_score` measure both.

Topology: TPU v5e 2x2 (4 chips); the train step needs 1.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/ddpm_cifar10.py --workdir=runs/ddpm_cifar10
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

_CHAIN = {"source": "closed form of the paper's betas", "tolerance": 1e-10}
_JUDGED = {"sampler": "ddpm", "nfe": 1000, "num_samples": 50_000, "reference": "CIFAR-10, training images"}
CLAIMS = {
    "paper": "Ho et al. 2020, arXiv:2006.11239",
    "parameters": {"value": 35_746_307, "source": "counted on the authors' code; the paper has 35.7M"},
    "schedule": [
        {"quantity": "log_snr", "t": 0.001, "value": 9.2102403670, **_CHAIN},
        {"quantity": "log_snr", "t": 1.0, "value": -10.1176731833, **_CHAIN},
    ],
    "loss": [{"t": 1.0, "value": 4.03599265117e-05, "source": "eq. 14: abar / (1 - abar)"}],
    "sampler": {"nfe": 1000, "variance": 0.2507520750, "source": "recursion of the variances, from N(0, 1)"},
    "weights": "diffusers_unet",
    "results": [
        {"metric": "fid", "value": 3.17, **_JUDGED, "source": "Table 1"},
        {"metric": "inception_score", "value": 9.46, **_JUDGED, "source": "Table 1"},
    ],
}

SMOKE = {
    "model": CONVOLUTIONS,
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()

    config.model = ConfigDict(
        dict(
            name="unet",
            base_channels=128,
            channel_multipliers=(1, 2, 2, 2),
            num_res_blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
        )
    )

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="ddpm_linear", num_steps=1000, beta_start=1e-4, beta_end=0.02),
            prediction=dict(name="epsilon"),
            time_input=dict(name="discrete_index", num_steps=1000),
        )
    )
    config.time_sampler = ConfigDict(dict(name="discrete_uniform", num_steps=1000))
    config.objective = ConfigDict(dict(name="denoising", weighting="uniform"))

    config.train.steps = 800_000
    config.train.batch_size = 128
    config.optimizer.update(name="adam", learning_rate=2e-4, b1=0.9, b2=0.999, eps=1e-8)
    config.optimizer.warmup_steps = 5_000
    config.optimizer.clip_norm = 1.0
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="ddpm", variance="large"))
    config.sampling.steps = 1_000
    config.sampling.clip_x0 = True
    return config
