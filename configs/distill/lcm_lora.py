"""LCM-LoRA: latent consistency distillation into an adapter; the frozen model is its own teacher.

Luo et al. 2023 (arXiv:2311.05556): rank 64 on the attention. A LoRA has no layer for the guidance scale, so the teacher
is guided with a single scale. `init.folder` is a run in pixels, whose data is used too. For a published pipeline such
as Stable Diffusion 1.5, write a config that starts from this one, states the data, and sets `teacher.inherit` to False.
Expected: not measured yet.

    python -m experiments.train --config=configs/distill/lcm_lora.py --config.init.folder=runs/scenes64 \\
        --workdir=runs/lcm_lora
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config() -> ConfigDict:
    config = student(name="lcm", solver_steps=50)
    del config.model
    config.init.folder = "runs/scenes64"
    config.adapter = ConfigDict(dict(name="lora", rank=64, alpha=64.0))
    config.teacher.guidance_scale = (3.0,)
    config.optimizer.learning_rate = 1e-3
    config.sampling.update(sampler=dict(name="lcm"), guidance=dict(scale=1.0))
    return config
