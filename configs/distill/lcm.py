"""Latent consistency distillation: a guided text-to-image run, learned to be drawn in 1 to 8 steps.

Luo et al. 2023 (arXiv:2310.04378): the student answers at x_t as its average answers one guided DDIM step of the
teacher further on, 50 steps being the whole way; the scale of guidance is embedded. This is the recipe reduced to a run
of the scenes. Expected: not measured yet.

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
