"""Easy consistency tuning (ECT) on CIFAR-10, unconditional: from a trained EDM network to a two-step network.

Geng et al. 2024, "Consistency Models Made Easy" (arXiv:2406.14548): training starts from EDM's DDPM++ (55,732,739
parameters), levels are log-normal N(-1.1, 2), the gap between the two levels shrinks during training, RAdam 1e-4, batch
128, dropout 0.2, EMA 0.9993, 400k steps.

Published: FID 3.60 in one step and 2.11 in two. Not run here.

Topology: TPU v5e 2x2 (4 chips); the train step needs 3.7 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.train --config=configs/papers/edm_cifar10.py \\
        --workdir=runs/edm_uncond --config.train.class_conditional=False
    python -m experiments.train --config=configs/papers/ect_cifar10.py \\
        --workdir=runs/ect --config.teacher.workdir=runs/edm_uncond
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

_JUDGED = {
    "metric": "fid",
    "sampler": "consistency",
    "num_samples": 50_000,
    "reference": "CIFAR-10, training images",
    "source": "the paper",
}
CLAIMS = {
    "paper": "Geng et al. 2024, arXiv:2406.14548",
    "parameters": {"value": 55_732_739, "source": "EDM's DDPM++, counted on its authors' code"},
    "schedule": [
        {"quantity": "noise_to_signal", "t": 1.0, "value": 80.0, "source": "EDM, eq. 5", "tolerance": 1e-12},
        {"quantity": "noise_to_signal", "t": 0.0, "value": 0.002, "source": "EDM, eq. 5", "tolerance": 1e-12},
    ],
    "sampler": {"nfe": 2, "source": "two-step sampling"},
    "weights": "edm",
    "results": [{**_JUDGED, "nfe": 1, "value": 3.60}, {**_JUDGED, "nfe": 2, "value": 2.11}],
}

SMOKE = {
    "model": CONVOLUTIONS,
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe; `teacher.workdir` names the trained network."""
    config = cifar10()

    config.model = ConfigDict(dict(name="ddpmpp", dropout=0.2))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0),
            prediction=dict(name="consistency", sigma_data=0.5),
            time_input=dict(name="quarter_log_sigma"),
        )
    )
    config.time_sampler = ConfigDict(dict(name="log_normal", mean=-1.1, std=2.0))
    config.objective = ConfigDict(dict(name="ect", q=2.0, doubling=50_000))

    config.train.steps = 400_000
    config.train.batch_size = 128
    config.optimizer.update(name="radam", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8)
    config.ema.decays = (0.9993,)

    config.sampling.sampler = ConfigDict(dict(name="consistency"))
    config.sampling.grid = ConfigDict(dict(name="trailing"))
    config.sampling.steps = 2
    return config
