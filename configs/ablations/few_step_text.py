"""Few-step text-to-image: students of one guided teacher at 1 to 8 steps, and the teacher itself as the control.

For each seed, one teacher is trained first. Its students start from its weights and are told the guidance scale, so
that one evaluation of a student replaces two of the teacher. The students are latent consistency (Luo et al. 2023,
arXiv:2310.04378), trajectory consistency (Zheng et al. 2024, arXiv:2402.19159), MeanFlow (Geng et al. 2025,
arXiv:2505.13447) and shortcut models (Frans et al. 2024, arXiv:2410.12557), the last two with the guided teacher's
velocity in their targets.

Expected: nothing published at this size. The teacher is best at 24 steps. At the students' numbers of steps it is worse
than the students, most of all at 1 and 2.

    python -m experiments.ablate --config=configs/ablations/few_step_text.py --workdir=runs/few_step_text
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.scenes_text_to_image import get_config as scenes

SEEDS = (0, 1, 2)
BASELINE = {"student": "teacher", "steps": "24"}
TEACHER = {"student": "teacher"}
METRIC = "prompt_adherence"
_TOLD = {"model.guidance_channels": 64, "teacher.guidance_scale": (2.0, 5.0), "train.conditioning_dropout": 0.0}
_SHORT = {"train.steps": 1_200, "optimizer.learning_rate": 5e-4}
_TRAILING = {"sampling.grid": dict(name="trailing")}
_MAP = {"sampling.sampler": dict(name="flow_map"), "model.num_times": 2}


def get_config() -> ConfigDict:
    """The teacher, from which every cell starts."""
    config = scenes("small")
    config.model.update(guidance_channels=0, num_times=1)
    config.sampling.update(sampler=dict(name="flow_euler"), steps=24)
    config.log.sample_every = 0
    config.evaluation.metrics = ("prompt_adherence", "proxy_fd")
    return config


def sweep_student() -> Iterator[tuple[str, dict[str, Any]]]:
    """The student, or the teacher."""
    yield "teacher", {}
    for name in ("lcm", "tcd"):
        skips = {"objective": dict(name=name, solver_steps=24), "time_sampler": None}
        yield name, {**_TOLD, **_SHORT, **_TRAILING, **skips, "sampling.sampler": dict(name=name)}
    yield "meanflow", {**_TOLD, **_SHORT, **_MAP, "objective": dict(name="meanflow_distillation")}
    objective = dict(name="shortcut_distillation", base_steps=32)
    yield "shortcut", {**_TOLD, **_SHORT, **_MAP, "objective": objective, "time_sampler": dict(name="uniform")}


def sweep_steps() -> Iterator[tuple[str, dict[str, Any]]]:
    """The number of steps."""
    for number in (1, 2, 4, 8, 24):
        yield str(number), {"sampling.steps": number}


def keep(cell: Mapping[str, str]) -> bool:
    """Whether a cell is run: students are run only at few steps."""
    return cell["student"] == "teacher" or cell["steps"] != "24"
