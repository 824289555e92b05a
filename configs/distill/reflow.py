"""Reflow: a flow along straight lines between noise and the sample that a guided teacher makes from it.

Liu et al. 2022 (arXiv:2209.03003), for text as in InstaFlow (Liu et al. 2023, arXiv:2309.06380). The teacher's guided
steps make the pairs during training. Expected: not measured yet.

    python -m experiments.train --config=configs/distill/reflow.py --config.teacher.workdir=runs/scenes64 \\
        --workdir=runs/reflow
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="reflow", steps=16)
    config.update(time_sampler=dict(name="uniform"))
    config.sampling.update(sampler=dict(name="flow_euler"), grid=dict(name="uniform"))
    return config
