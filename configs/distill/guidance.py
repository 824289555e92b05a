"""Guidance distillation: one evaluation of the student is two of its teacher, at any scale that it is told.

Meng et al. 2022 (arXiv:2210.03142), stage one, in the kind of prediction and on the schedule of flow models. The
student is drawn as its teacher was, in as many steps at half the cost, and `progressive.py` goes on from it. Expected:
not measured yet.

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
