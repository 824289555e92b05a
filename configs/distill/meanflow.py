"""MeanFlow from a guided teacher: a student learns the average velocity of the teacher's flow between two times.

Geng et al. 2025 (arXiv:2505.13447); the velocity in the MeanFlow identity is the guided teacher's instead of an
example's, so that the target includes guidance. The interval enters through layers that the teacher does not have.
Without a teacher, `omega` and `kappa` of the objective meanflow put guidance into the target. Expected: not measured
yet.

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
