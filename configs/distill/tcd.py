"""Trajectory consistency distillation: a student that jumps to any time of its guided teacher's flow.

Zheng et al. 2024 (arXiv:2402.19159); the sampler `tcd` goes further down than it means to, and back up by fresh noise
(gamma 0.3). The paper distils SDXL; this is its reduction to a run of the scenes. Expected: not measured yet.

    python -m experiments.train --config=configs/distill/tcd.py \\
        --config.teacher.workdir=runs/scenes64 --workdir=runs/tcd
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="tcd", solver_steps=50)
    config.sampling.sampler = ConfigDict(dict(name="tcd"))
    return config
