"""Score SDE on CIFAR-10, unconditional: the deep NCSN++ on the variance-exploding SDE.

Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv:2011.13456):
107,586,947 trainable parameters, Adam 2e-4 after 5000 steps of warm-up, gradient clipping at 1, batch 128, dropout 0.1,
EMA 0.999, 950k steps; predictor-corrector sampling in 1000 steps at signal-to-noise ratio 0.16.

The paper's noise levels 0.01 to 50 are for images in [0, 1]; here images span [-1, 1], so the levels are doubled. The
network predicts the noise, whereas the paper's network predicts its negative.

Published (Table 3): FID 2.20, Inception Score 9.89 with 2000 network evaluations. Not run here.

Topology: TPU v5e 2x2 (4 chips); the train step needs 4.5 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/score_sde_cifar10.py --workdir=runs/score_sde_cifar10
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

_JUDGED = {
    "sampler": "predictor_corrector",
    "nfe": 2000,
    "num_samples": 50_000,
    "reference": "CIFAR-10, training images",
    "source": "Table 3, NCSN++ cont. (deep, VE)",
}
CLAIMS = {
    "paper": "Song et al. 2021, arXiv:2011.13456",
    "parameters": {
        "value": 107_586_947,
        "source": "counted on the authors' PyTorch code, without 128 fixed frequencies",
    },
    "schedule": [
        {"quantity": "noise_to_signal", "t": t, "value": value, "source": "appendix C", "tolerance": 1e-12}
        for t, value in ((0.0, 0.02), (1.0, 100.0))
    ],
    "loss": [{"noise_to_signal": 2.0, "value": 0.25, "source": "eq. 7 with lambda = sigma^2"}],
    "sampler": {"nfe": 2000, "source": "Table 3"},
    "weights": "score_sde",
    "results": [
        {"metric": "fid", "value": 2.20, **_JUDGED},
        {"metric": "inception_score", "value": 9.89, **_JUDGED},
    ],
}

SMOKE = {
    "model": CONVOLUTIONS,
    "sampling": {"steps": 64},  # a corrector leaves noise with fewer
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = cifar10()

    config.model = ConfigDict(
        dict(
            name="ncsnpp", channel_multipliers=(1, 2, 2, 2), num_res_blocks=8, attention_resolutions=(16,), dropout=0.1
        )
    )

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="ve_sde", sigma_min=0.02, sigma_max=100.0),
            prediction=dict(name="epsilon"),
            time_input=dict(name="log_half_sigma"),
        )
    )
    config.time_sampler = ConfigDict(dict(name="uniform", t_min=1e-5))
    config.objective = ConfigDict(dict(name="denoising", weighting="uniform"))

    config.train.steps = 950_000
    config.train.batch_size = 128
    config.optimizer.update(name="adam", learning_rate=2e-4, b1=0.9, b2=0.999, eps=1e-8)
    config.optimizer.warmup_steps = 5_000
    config.optimizer.clip_norm = 1.0
    config.ema.decays = (0.999,)

    config.sampling.sampler = ConfigDict(dict(name="predictor_corrector", predictor="reverse_diffusion", snr=0.16))
    config.sampling.steps = 1_000
    return config
