"""Distribution matching distillation: a generator of 4 steps, and a fake score that follows its samples.

Yin et al. 2024 (arXiv:2405.14867, DMD2) without the adversarial term: the fake score is updated five times for each
update of the student, and training simulates the sampler's own steps. Both networks start from the teacher's weights.
Expected: not measured yet.

    python -m experiments.train --config=configs/distill/dmd.py --config.teacher.workdir=runs/scenes64 \\
        --workdir=runs/dmd
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="dmd", num_steps=4, every=5)
    config.train.steps = 5_000
    config.optimizer.update(learning_rate=1e-4, b1=0.5)
    config.sampling.update(sampler=dict(name="lcm"), grid=dict(name="uniform"))
    return config
