"""Progressive distillation of a guided teacher: a student does in one DDIM step what its teacher does in two.

Salimans & Ho 2022 (arXiv:2202.00512), with guidance in the target as in the second stage of Meng et al. 2022
(arXiv:2210.03142). A student becomes the teacher of the next student, which has half the steps. A teacher that takes
the guidance scale as an input gets it. Expected: not measured yet.

    python -m experiments.train --config=configs/distill/progressive.py --config.teacher.workdir=runs/scenes64 \\
        --workdir=runs/student_8
    python -m experiments.train --config=configs/distill/progressive.py:steps=4 \\
        --config.teacher.workdir=runs/student_8 --workdir=runs/student_4
"""

from ml_collections import ConfigDict

from configs.objectives import student


def get_config(argument: str = "steps=8") -> ConfigDict:
    """The config of the student with 8 steps, or with N for "steps=N"."""
    name, _, number = argument.partition("=")
    if name != "steps" or not number.isdigit() or not int(number):
        raise ValueError(f"{argument!r} is not steps=N")
    config = student(name="progressive_distillation", num_steps=int(number))
    config.sampling.steps = int(number)
    return config
