"""LCM-LoRA: latent consistency distillation of an adapter, whose model stays as it is and is its own teacher.

Luo et al. 2023 (arXiv:2311.05556): rank 64 on the attention. A LoRA has no layer that is told a scale, so the teacher
is guided with one. `init.folder` is a run in pixels, whose data are taken too; the data of a published pipeline, such
as Stable Diffusion 1.5, are stated by a config that starts from this one, with `teacher.inherit` False. Expected: not
measured yet.

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
