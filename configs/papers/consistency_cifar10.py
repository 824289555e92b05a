"""Consistency models on CIFAR-10, unconditional: training in isolation (CT), or distillation (CD) by name.

Song et al. 2023, "Consistency Models" (arXiv:2303.01469), with the configs of the authors' code for CIFAR-10: EDM's
NCSN++ (56,395,523 parameters), EDM's noise levels, RAdam 4e-4 after 10 million images of warm-up, batch 512, 800k
steps, no dropout, EMA 0.9999. CT refines from 2 to 150 levels, and the decay of its target network rises with them from
0.9. CD has 18 levels, takes Heun steps of an EDM teacher, and starts from the teacher's weights; in the authors' code
its target is the network itself.

The distance is LPIPS, a network whose weights you provide as two files: torchvision's VGG-16, and the weights of its
channels. The error without them says where they are published. `consistency_cifar10.py:squared`, or
`:distillation,squared`, needs no files.

Published: CT 8.70 in one step and 5.83 in two, CD 3.55 and 2.93. Not run here.

Topology: TPU v5e 2x4 (8 chips); the train step needs 14.1 GB per chip (compiled by libtpu 0.0.42.1), with the squared
distance 5.7 GB.

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/papers/consistency_cifar10.py --workdir=runs/ct
    python -m experiments.train --config=configs/papers/edm_cifar10.py --workdir=runs/edm_ncsnpp \
        --config.train.class_conditional=False --config.model.name=ncsnpp
    python -m experiments.train --config=configs/papers/consistency_cifar10.py:distillation --workdir=runs/cd \
        --config.teacher.workdir=runs/edm_ncsnpp
"""

from ml_collections import ConfigDict

from configs.common import CONVOLUTIONS, cifar10

_JUDGED = {
    "metric": "fid",
    "sampler": "consistency",
    "num_samples": 50_000,
    "reference": "CIFAR-10, training images",
    "source": "Table 1",
}
_LPIPS = {"distance": "lpips", "vgg": "weights/vgg16-397923af.pth", "lpips": "weights/lpips_vgg.pth"}
CLAIMS = {
    "paper": "Song et al. 2023, arXiv:2303.01469",
    "parameters": {"value": 56_395_523, "source": "EDM's NCSN++, counted on its authors' code"},
    "schedule": [
        {"quantity": "noise_to_signal", "t": 1.0, "value": 80.0, "source": "section 5", "tolerance": 1e-12},
        {"quantity": "noise_to_signal", "t": 0.0, "value": 0.002, "source": "section 5", "tolerance": 1e-12},
        {"quantity": "noise_to_signal", "t": 16 / 17, "value": 57.585984721, "source": "section 5", "tolerance": 1e-8},
    ],
    "sampler": {"nfe": 1, "source": "one-step sampling"},
    "weights": "edm",
    "results": [
        {**_JUDGED, "nfe": 1, "value": 8.70, "checked": False},
        {**_JUDGED, "nfe": 2, "value": 5.83},
    ],
}

SMOKE = {
    "model": CONVOLUTIONS,
    "objective": {"last": 5},  # the data spreads as slowly as the target follows
    "times_the_steps": 4,  # in fewer it draws the mean of all digits
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config(argument: str = "") -> ConfigDict:
    """CT, or "distillation" for CD from the teacher in `teacher.workdir`; "squared" for a distance without files."""
    config = cifar10()

    config.model = ConfigDict(dict(name="ncsnpp", dropout=0.0))

    config.process = ConfigDict(
        dict(
            name="gaussian",
            schedule=dict(name="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0),
            prediction=dict(name="consistency", sigma_data=0.5),
            time_input=dict(name="quarter_log_sigma"),
        )
    )
    config.objective = ConfigDict(
        dict(name="consistency_training", first=2, last=150, total_steps=800_000, initial_decay=0.9)
    )

    config.train.steps = 800_000
    config.train.batch_size = 512
    config.optimizer.update(name="radam", learning_rate=4e-4, b1=0.9, b2=0.999, eps=1e-8)
    config.optimizer.warmup_steps = 10_000_000 // 512
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="consistency"))
    config.sampling.grid = ConfigDict(dict(name="trailing"))
    config.sampling.steps = 1

    named = set(filter(None, argument.split(",")))
    if not named <= {"distillation", "squared"}:
        raise ValueError(f"{argument!r} is not 'distillation', 'squared' or both with a comma between")
    if "distillation" in named:
        config.objective = ConfigDict(dict(name="consistency_distillation", levels=18, decay=0.0))
    config.objective.update({"distance": "squared"} if "squared" in named else _LPIPS)
    return config
