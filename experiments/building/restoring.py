"""A trained run, read back for sampling and evaluation."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import systems, training
from diffusion_jax.errors import UserError
from experiments.building import conditions
from experiments.building.kinds import open_experiment
from experiments.building.sources import require_same_sources
from experiments.building.wiring import Experiment
from experiments.ground import workdir

_ATTEMPTS = 5  # attempts to read the newest checkpoint of a run that is under way


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


def describe_run(experiment: Experiment, directory: Path | str) -> None:
    """Write what `diffusion_jax.load_model` needs to know about a run besides its checkpoints."""
    config = experiment.config
    about = {"checkpoints": config.checkpoint.directory, "average": experiment.known_ema(config.sampling.ema)}
    systems.write_description(directory, conditions.with_text(experiment.model, experiment.text), **about)


def restore_params(
    directory: Path | str, *, step: int | None = None, ema: str | None = None, flag: str = ""
) -> tuple[Experiment, Any, dict[str, Any]]:
    """The experiment of a workdir, parameters to sample with, and their origin.

    Args:
      directory: the workdir of a run.
      step: step of the checkpoint; the newest by default.
      ema: which average, or "params" for the parameters themselves; by default what the config says. A run that keeps
        power-function averages (`ema.widths`) also offers every other width, as "width_0.07": it is combined from all
        of the run's checkpoints up to `step` (`diffusion_jax.training.post_hoc_coefficients`).
      flag: name of the flag for `step`, for the message about a damaged checkpoint.

    Raises:
      UserError: there is no run, no such checkpoint or average, or the checkpoint is damaged: then the message says
        which other one is intact, and how to select it.
    """
    config = workdir.read_config(directory)
    config.parallel.update(strategy="jit", data=-1, fsdp=1, tensor=1, context=1)  # any layout reads any checkpoint
    experiment = open_experiment(config, stored_info=workdir.read_info(directory), directory=Path(directory))
    name = config.sampling.ema if ema is None else ema
    if name not in experiment.ema.names and name.startswith("width_") and experiment.ema.widths:
        return experiment, *_post_hoc(experiment, directory, step, name, flag)
    name = experiment.known_ema(name)
    state = None
    for attempt in range(_ATTEMPTS):
        chosen, state = _read(experiment, directory, step, last=attempt == _ATTEMPTS - 1, flag=flag)
        if state is not None:
            break
    return experiment, state.evaluation_params(name), {"step": chosen, "parameters": name}


def whole_one(
    checkpointer: training.Checkpointer, damaged: int, abstract_state: Any, *, newer: bool = True
) -> int | None:
    """The nearest intact checkpoint before a damaged one, else, with `newer`, after it; None if there is none.

    The one that is returned has been read and verified.
    """
    steps = checkpointer.steps()
    after = [s for s in steps if s > damaged] if newer else []
    for step in [*(s for s in reversed(steps) if s < damaged), *after]:
        try:
            checkpointer.restore(step, abstract_state)
        except UserError:  # damaged too, or of another version
            continue
        return step
    return None


def _mend(checkpointer: training.Checkpointer, damaged: int, abstract_state: Any, flag: str) -> str:
    """How to avoid a damaged checkpoint."""
    other = whole_one(checkpointer, damaged, abstract_state)
    if other is None:
        return "and there is no whole one besides: train again, or bring a copy back"
    if flag:
        return f"checkpoint {other} is whole: {flag}={other} takes it"
    return f"checkpoint {other} is whole, and is taken once {checkpointer.directory}/{damaged} is moved away"


def _post_hoc(
    experiment: Experiment, directory: Path | str, step: int | None, name: str, flag: str
) -> tuple[Any, dict[str, Any]]:
    """The power-function average `name` from the averages in all checkpoints up to `step`, and its origin."""
    try:
        width = float(name.removeprefix("width_"))
    except ValueError:
        raise UserError(f"{name!r} names no average: width_ is followed by a number, as in width_0.07") from None
    checkpointer = open_checkpoints(experiment, directory, read_only=True)
    steps = checkpointer.steps()
    checkpointer.close()
    stored = [(kept, s) for s in steps if step is None or s <= step for kept in experiment.ema.widths]
    if not stored or step not in (None, *steps):
        raise UserError(f"no checkpoint to build {name} from in {directory}; there are: {', '.join(map(str, steps))}")
    chosen = stored[-1][1]
    coefficients = training.post_hoc_coefficients(*zip(*stored, strict=True), width=width, step=chosen)
    total = None
    for at in dict.fromkeys(s for _, s in stored):
        _, state = _read(experiment, directory, at, last=True, flag=flag)
        for (kept, s), coefficient in zip(stored, coefficients, strict=True):
            if s == at:
                part = jax.tree.map(lambda x, c=coefficient: c * np.asarray(x, np.float64), state.ema[f"width_{kept}"])
                total = part if total is None else jax.tree.map(np.add, total, part)
    params = jax.tree.map(lambda x, like: jax.device_put(x.astype(np.float32), like.sharding), total, state.params)
    return state.whole(params), {"step": chosen, "parameters": name, "from_steps": sorted({s for _, s in stored})}


def _read(
    experiment: Experiment, directory: Path | str, step: int | None, *, last: bool, flag: str
) -> tuple[int, training.TrainState | None]:
    """The chosen step and its state; None if a trainer deleted it meanwhile."""
    with contextlib.closing(open_checkpoints(experiment, directory, read_only=True)) as checkpointer:
        steps = checkpointer.steps()
        if not steps:
            workdir.require_nothing_lost(Path(directory), checkpointer.directory, mend="")
            raise UserError(f"no checkpoint in {checkpointer.directory} yet: train first, with --workdir={directory}")
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps))
            raise UserError(f"no checkpoint {step} in {checkpointer.directory}; there are: {there}")
        chosen = steps[-1] if step is None else step
        try:
            read, record = checkpointer.restore(chosen, experiment.abstract_state.saved)
            frozen, known = experiment.read_frozen()
            require_same_sources(record.get("frozen", {}), known, f"{directory}, step {chosen},")
            return chosen, training.TrainState(**read, frozen=frozen)
        except training.CorruptCheckpointError as error:
            deleted = chosen not in checkpointer.steps()  # a running trainer keeps only its newest checkpoints
            if deleted and step is None and not last:
                return chosen, None
            if deleted:
                raise UserError(
                    f"checkpoint {chosen} in {checkpointer.directory} was removed while it was read"
                ) from error
            mend = _mend(checkpointer, chosen, experiment.abstract_state.saved, flag)
            raise training.CorruptCheckpointError(f"{error}; {mend}") from error
