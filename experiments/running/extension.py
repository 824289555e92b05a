"""Training a finished run longer: `train.steps` may grow once all steps are done.

The rule: a run that has done all of its N steps, and whose config differs only in `train.steps` = M > N, continues from
the checkpoint of step N with its optimizer state, averages, data and random streams. From step N on the learning rate
is the one that the new config gives at each step: after a decay to 0 at N it jumps to the value of the longer decay at
N. Logged steps up to N stay as they are. The record of every later checkpoint holds `extended`, the former numbers of
steps, so the resulting bits are a function of the config and that list.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError
from experiments.building.wiring import Experiment
from experiments.ground import workdir


def require_same_training(
    record: Mapping[str, Any], step: int, experiment: Experiment, checkpoints: object, *, known_run: bool
) -> list[int]:
    """Check a checkpoint's record against the config that continues from it; returns the former numbers of steps.

    Args:
      record: record of the checkpoint.
      step: step of the checkpoint.
      experiment: the training to continue.
      checkpoints: the directory, for messages.
      known_run: whether the workdir already belongs to this run; another run takes no checkpoints with other steps.

    Raises:
      UserError: the checkpoint belongs to a run with another config, or with more steps, or with fewer steps that are
        not all done.
    """
    config, before = experiment.config, record["config"]["train"]["steps"]
    extended, wanted = list(record.get("extended", [])), config.train.steps
    if wanted == before or not known_run:
        workdir.require_same_config(record["config"], config, checkpoints)
        return extended
    workdir.require_same_config(record["config"], config, checkpoints, but=(*workdir.AFTER_TRAINING, workdir.STEPS))
    if wanted < before:
        raise UserError(
            f"checkpoint {step} in {checkpoints} is from a training of {before} steps, but train.steps={wanted} is "
            "fewer: a run may be trained longer, not shorter"
        )
    if step != before:
        raise UserError(
            f"checkpoint {step} in {checkpoints} is not the last one of its {before} steps, and only a finished "
            f"training can continue to train.steps={wanted}: continue with --config.train.steps={before} first"
        )
    return [*extended, before]


def require_begun(former: int | None, config: Any, directory: Path) -> None:
    """Raise UserError if a run with another number of steps has no checkpoint to continue from."""
    if former not in (None, config.train.steps):
        raise UserError(
            f"the run in {directory} has none of its {former} steps done, and only a finished training can continue to "
            f"train.steps={config.train.steps}: train it with --config.train.steps={former} first"
        )


def announce(experiment: Experiment, extended: list[int], step: int, directory: Path) -> None:
    """Print that training continues beyond its former end, and how the learning rate changes there."""
    former, wanted = extended[-1], experiment.config.train.steps
    before = float(experiment.with_numbers({workdir.STEPS: former}).learning_rate(step - 1))
    after = float(experiment.learning_rate(step))
    print(
        f"{directory} is trained longer: {former} -> {wanted} steps; the learning rate was {before:.3g} at the last "
        f"step and is {after:.3g} at the next, as train.steps={wanted} gives it from here on",
        flush=True,
    )
