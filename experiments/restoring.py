"""A trained run, read back for sampling and evaluation."""

from pathlib import Path
from typing import Any

from diffusion_jax import training
from diffusion_jax.errors import UserError
from experiments import workdir
from experiments.wiring import Experiment

_ATTEMPTS = 5  # to read the newest checkpoint of a run that is under way


def open_checkpoints(
    experiment: Experiment, directory: Path | str, *, read_only: bool = False
) -> training.Checkpointer:
    """The checkpoints of the run in `directory`; they may lie elsewhere, for example in a bucket."""
    spec = experiment.config.checkpoint
    return training.Checkpointer(
        spec.directory or f"{directory}/checkpoints",
        keep_last=spec.keep_last,
        keep_best=spec.keep_best,
        best_metric=spec.best_metric,
        best_mode=spec.best_mode,
        read_only=read_only,
    )


def restore_params(
    directory: Path | str, *, step: int | None = None, ema: str | None = None
) -> tuple[Experiment, Any, dict[str, Any]]:
    """The experiment of a workdir, parameters to sample with, and where they come from.

    Args:
      directory: the workdir of a run.
      step: of the checkpoint; the newest by default.
      ema: which average, or "params" for the parameters themselves; by default what the config says.

    Raises:
      UserError: no run, no such checkpoint or average, or a damaged checkpoint.
    """
    config = workdir.read_config(directory)
    config.parallel.update(strategy="jit", data=-1, fsdp=1, tensor=1)  # any layout reads any checkpoint
    experiment = Experiment(config, stored_info=workdir.read_info(directory), directory=Path(directory))
    name = experiment.known_ema(config.sampling.ema if ema is None else ema)
    state = None
    for attempt in range(_ATTEMPTS):
        chosen, state = _read(experiment, directory, step, last=attempt == _ATTEMPTS - 1)
        if state is not None:
            break
    return experiment, state.evaluation_params(name), {"step": chosen, "parameters": name}


def _read(
    experiment: Experiment, directory: Path | str, step: int | None, *, last: bool
) -> tuple[int, training.TrainState | None]:
    """The step that was chosen, and its state; None if a trainer deleted it meanwhile."""
    checkpointer = open_checkpoints(experiment, directory, read_only=True)
    steps = checkpointer.steps()
    if not steps:
        raise UserError(f"no checkpoint in {directory}/checkpoints yet: train first, with --workdir={directory}")
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint {step} in {directory}/checkpoints; there are: {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    try:
        return chosen, checkpointer.restore(chosen, experiment.abstract_state)[0]
    except training.CorruptCheckpointError:
        now = open_checkpoints(experiment, directory, read_only=True)
        deleted = chosen not in now.steps()  # a trainer at work keeps only its newest checkpoints
        now.close()
        if step is not None or not deleted or last:
            raise
        return chosen, None
    finally:
        checkpointer.close()
