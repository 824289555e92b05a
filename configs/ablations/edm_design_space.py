"""EDM's design space, configurations A to F, on digits: what each change of the training is worth.

Karras et al. 2022 (arXiv:2206.00364), Table 2, on a network and data that two CPU cores can train: A is score SDE's VP
training, B adjusts its hyperparameters (learning rate, warm-up, clipping), C moves the network's capacity to its lower
resolution, D adds EDM's preconditioning with an unchanged loss, E draws noise levels from a log-normal and uses EDM's
loss weight, F augments the images and tells the network how. All are sampled as in the paper: Heun, 18 steps on EDM's
spacing of the noise levels.

Expected: nothing published at this size; in the paper (CIFAR-10, VP) the larger steps are B and E. Mirrored and turned
digits are not digits, and a network of this size has to learn them as well, so F costs more here than it gains
(docs/results/edm_design_space.md).

    python -m experiments.ablate --config=configs/ablations/edm_design_space.py --workdir=runs/edm_design_space
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.digits_unet import get_config as digits

SEEDS = (0, 1, 2, 3, 4)
BASELINE = {"configuration": "A"}
METRIC = "proxy_fd"


def get_config() -> ConfigDict:
    """Configuration A: VP schedule, epsilon, uniform times, score SDE's optimizer; a narrower network."""
    config = digits()
    config.model.base_channels = 24
    config.model.augment_channels = 0
    config.data.augmentation = ConfigDict(dict(name="none"))
    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="vp_sde"),
            prediction=dict(name="epsilon"),
            time_input=dict(name="scaled_t", scale=999.0),
        )
    )
    config.time_sampler = ConfigDict(dict(name="uniform", t_min=1e-5))
    config.train.steps = 600
    config.optimizer.update(learning_rate=1e-3, b2=0.999, warmup_steps=200, decay="constant", clip_norm=1.0)
    config.sampling.grid = ConfigDict(dict(name="karras"))
    config.log.sample_every = 0
    config.evaluation.metrics = ("proxy_fd", "class_accuracy")
    return config


_B = {"optimizer.learning_rate": 2e-3, "optimizer.b2": 0.99, "optimizer.warmup_steps": 100, "optimizer.clip_norm": 0.0}
_C = {**_B, "model.channel_multipliers": (1, 3)}
_PRECONDITIONED = {
    "process.prediction": {"name": "edm", "sigma_data": 0.5},
    "process.time_input": {"name": "quarter_log_sigma"},
}
_D = {**_C, **_PRECONDITIONED, "objective": {"name": "denoising", "weighting": "snr"}}
_E = {
    **_C,
    **_PRECONDITIONED,
    "process.schedule": {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
    "time_sampler": {"name": "log_normal", "mean": -1.2, "std": 1.2},
    "objective": {"name": "denoising", "weighting": "uniform"},
}
_F = {**_E, "data.augmentation": {"name": "edm", "probability": 0.12}, "model.augment_channels": 9}


def sweep_configuration() -> Iterator[tuple[str, dict[str, Any]]]:
    """The configurations A to F; each one includes the changes of all before it."""
    yield from {"A": {}, "B": _B, "C": _C, "D": _D, "E": _E, "F": _F}.items()
