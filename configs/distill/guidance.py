"""Guidance distillation: one evaluation of the student replaces two of its teacher, at any guidance scale it is told.

Meng et al. 2022 (arXiv:2210.03142), stage one, with the prediction and the schedule of flow models. The student is
sampled like its teacher, with as many steps at half the cost, and `progressive.py` continues from it. Expected: not
measured yet.

    python -m experiments.train --config=configs/distill/guidance.py --config.teacher.workdir=runs/scenes64 \\
        --workdir=runs/told
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="guidance_distillation")
    config.update(time_sampler=dict(name="logit_normal", mean=0.0, std=1.0))
    config.sampling.update(sampler=dict(name="flow_heun"), steps=12, grid=dict(name="uniform"))
    return config
