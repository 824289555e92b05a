"""Trajectory consistency distillation: a student that jumps to any time of its guided teacher's flow.

Zheng et al. 2024 (arXiv:2402.19159); the sampler `tcd` jumps to a lower noise level than the next step needs, and adds
fresh noise to return to it (gamma 0.3). The paper distils SDXL; this config reduces the recipe to a run on the scenes.
Expected: not measured yet.

    python -m experiments.train --config=configs/distill/tcd.py \\
        --config.teacher.workdir=runs/scenes64 --workdir=runs/tcd
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="tcd", solver_steps=50)
    config.sampling.sampler = ConfigDict(dict(name="tcd"))
    return config
