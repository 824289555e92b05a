"""Continuous-time consistency training (sCT) on CIFAR-10, unconditional; by name its distillation (sCD).

Lu & Song 2024, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models" (arXiv:2410.11081): TrigFlow
with sigma_data 0.5, tangents normalised with c = 0.1 after 10k steps of warm-up, a learned weight, log-normal levels
N(-1, 1.4), EDM's DDPM++ (55,732,739 parameters, and 128 of the weight). From memory, not looked up again: batch 512,
400k steps, RAdam 1e-4 with b2 = 0.99, dropout 0.2, EMA with a half-life of 0.5 million images.

Differs from the paper: there the network's normalisation is changed, with no parameter more, and training starts from a
diffusion model. The authors' code is not public.

Published: FID 2.97 in one step and 2.06 in two; distilled, 3.66 and 2.52. Not run here.

Topology: TPU v5e 2x4 (8 chips); the train step needs 5.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/scm_cifar10.py --workdir=runs/sct
    python -m experiments.train --config=configs/papers/scm_cifar10.py:distillation --workdir=runs/scd \
        --config.teacher.workdir=runs/edm
"""

from ml_collections import ConfigDict

from configs.common import cifar10

_JUDGED = {
    "metric": "fid",
    "sampler": "scm",
    "num_samples": 50_000,
    "reference": "CIFAR-10, training images",
    "source": "Table 1, sCT",
}
CLAIMS = {
    "paper": "Lu & Song 2024, arXiv:2410.11081",
    "parameters": {
        "value": 55_732_739 + 128,
        "source": "EDM's DDPM++, counted on its authors' code; the learned weight",
    },
    "schedule": [
        {"quantity": "noise_to_signal", "t": 0.5, "value": 0.5, "source": "section 3.1", "tolerance": 1e-12},
    ],
    "sampler": {"nfe": 2, "source": "two-step sampling"},
    "weights": "edm",
    "results": [{**_JUDGED, "nfe": 1, "value": 2.97}, {**_JUDGED, "nfe": 2, "value": 2.06}],
}


def get_config(argument: str = "") -> ConfigDict:
    """sCT, or "distillation" for sCD, whose teacher `teacher.workdir` names."""
    config = cifar10()

    config.model = ConfigDict(dict(name="ddpmpp", dropout=0.2))

    config.schedule = ConfigDict(dict(name="trigflow", sigma_data=0.5))
    config.prediction = ConfigDict(dict(name="edm", sigma_data=0.5))
    config.time_input = ConfigDict(dict(name="scaled_t", scale=1.5707963267948966))  # the angle
    config.time_sampler = ConfigDict(dict(name="log_normal", mean=-1.0, std=1.4))
    config.objective = ConfigDict(dict(name="scm", warmup=10_000))
    config.teacher = ConfigDict(dict(workdir="", initialize=False))

    config.train.steps = 400_000
    config.train.batch_size = 512
    config.optimizer.update(name="radam", learning_rate=1e-4, b1=0.9, b2=0.99, eps=1e-8)
    config.ema.half_lives = (500_000,)

    config.sampling.sampler = ConfigDict(dict(name="scm"))
    config.sampling.steps = 2

    if argument:
        if argument != "distillation":
            raise ValueError(f"{argument!r} is not 'distillation'")
        config.model.dropout = 0.0
        config.objective.name = "scd"
    return config
