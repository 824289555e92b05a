"""Latent consistency distillation: a student that does in 1 to 8 steps what a guided text-to-image run does in many.

Luo et al. 2023 (arXiv:2310.04378): the student's answer at x_t must match the answer of its own average one guided DDIM
step of the teacher further on, where 50 such steps are the whole path. The guidance scale is embedded. This is the
recipe reduced to a run on the scenes. Expected: not measured yet.

    python -m experiments.train --config=configs/distill/lcm.py \\
        --config.teacher.workdir=runs/scenes64 --workdir=runs/lcm
    python -m experiments.sample --workdir=runs/lcm --steps=2 --prompt="a red star left of a blue ring"
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="lcm", solver_steps=50)
    config.sampling.sampler = ConfigDict(dict(name="lcm"))
    return config
