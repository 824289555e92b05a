"""A shortcut model from a guided teacher: two jumps teach a jump of twice the length; the teacher teaches the shortest.

Frans et al. 2024 (arXiv:2410.12557), with the guided teacher's velocity in the place of an example's. The length of a
jump enters through layers that the teacher does not have. Expected: not measured yet.

    python -m experiments.train --config=configs/distill/shortcut.py --config.teacher.workdir=runs/scenes64 \\
        --workdir=runs/shortcut
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="shortcut_distillation", base_steps=32)
    config.update(time_sampler=dict(name="uniform"), model=dict(num_times=2))
    config.sampling.update(sampler=dict(name="flow_map"), grid=dict(name="uniform"))
    return config
