"""MeanFlow of a guided teacher: the average velocity of its flow between two times.

Geng et al. 2025 (arXiv:2505.13447); the velocity that the identity is written with is the guided teacher's instead of
that of an example, so that guidance is in the target. The interval enters by layers that the teacher has not. Without a
teacher guidance is in the target by `omega` and `kappa` of the objective meanflow. Expected: not measured yet.

    python -m experiments.train --config=configs/distill/meanflow.py --config.teacher.workdir=runs/scenes64 \\
        --workdir=runs/meanflow
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="meanflow_distillation")
    config.update(time_sampler=dict(name="logit_normal", mean=-0.4, std=1.0), model=dict(num_times=2))
    config.sampling.update(sampler=dict(name="flow_map"), steps=1, grid=dict(name="uniform"))
    return config
