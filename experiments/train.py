"""Train the diffusion model that a config describes, and report what it has learned.

    python -m experiments.train --config=configs/digits_unet.py --workdir=runs/digits [--config.train.steps=200 ...]

The same command on the same workdir continues where it stopped, bit for bit; on a finished one it says so, and with a
larger --config.train.steps it trains on from there (docs/reliability.md states the rule). SIGTERM and Ctrl-C save a
checkpoint and exit. The workdir receives config.json, metrics.jsonl and timings.jsonl, TensorBoard events, samples/,
checkpoints/, evaluation.json and report.html.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
DATA = FLAGS.path("data", None, "folder of pictures to train on, of any kind in docs/pictures.md")
RESOLUTION = FLAGS.integer(
    "resolution", None, "side in pixels; a config such as folder adapts its network to it", lower=1, upper=2**14
)
WORKDIR = FLAGS.path("workdir", None, "directory of the run; the same directory resumes it")
RESUME_FROM = FLAGS.integer("resume_from", None, "resume from this checkpoint and set newer ones aside")
RESTART = FLAGS.boolean("restart", False, "train again from the start, if the run's checkpoints are lost")
PRINT_CONFIG = FLAGS.boolean("print_config", False, "print the config with all its fields as JSON, and train nothing")
DRY_RUN = FLAGS.boolean("dry_run", False, "check all that a start checks and read a batch; train and write nothing")
TRACKER = FLAGS.choice("tracker", None, ("wandb", "trackio", "mlflow"), "tracker that also gets what the run logs")
TRACKER_PROJECT = FLAGS.string(
    "tracker_project", None, "project of the tracker; by default its variable, or diffusion_jax"
)
PROFILE_STEPS = FLAGS.integer("profile_steps", 0, "profile this many steps for TensorBoard", upper=10_000)
DISTRIBUTED = FLAGS.boolean("distributed", False, "join the other hosts of this run (Cloud TPU, Slurm: detected)")
COORDINATOR = FLAGS.string(
    "coordinator_address", None, "address of process 0, if not detected", check=cli.host_and_port, allowed="HOST:PORT"
)
NUM_PROCESSES = FLAGS.integer(
    "num_processes", None, "number of processes of this run, if not detected", lower=1, upper=2**16
)
PROCESS_ID = FLAGS.integer("process_id", None, "number of this process, counted from 0", upper=2**16 - 1)
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax import parallel, training
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.files import replace_file
from diffusion_jax.objectives import with_copies
from diffusion_jax.systems import NETWORK
from experiments.building import conditions
from experiments.building.kinds import open_experiment
from experiments.building.restoring import describe_run, open_checkpoints, restore_params, whole_one
from experiments.building.sources import require_same_sources
from experiments.building.wiring import Experiment
from experiments.evaluating import class_pictures, evaluation, judging, reconstruction
from experiments.ground import workdir
from experiments.ground.writers import RunWriter, open_writer
from experiments.reports.live import LivePage, live_page
from experiments.reports.summary import next_commands, summary_table
from experiments.running import extension, inspection
from experiments.running.loop import Loop, StopSignal
from experiments.services import trackers


def main(argv: Sequence[str]) -> int:
    if CONFIG.value is not None and PRINT_CONFIG.value:
        print(json.dumps(workdir.to_json(CONFIG.value), indent=2))
        return 0
    if (not WORKDIR.value and not DRY_RUN.value) or CONFIG.value is None:
        raise UserError(
            "give --config=... and --workdir=..., for example --config=configs/digits_unet.py --workdir=runs/digits"
        )
    joining = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if DISTRIBUTED.value or joining != (None, None, None):
        parallel.initialize_hosts(*joining)
    if TRACKER.value:
        trackers.require(TRACKER.value)
    elif TRACKER_PROJECT.value:
        raise UserError("--tracker_project needs a tracker: give --tracker=... too")
    stop = StopSignal()
    experiment = checked_experiment()
    if DRY_RUN.value:
        return dry_run(experiment)
    directory = cli.writable_directory(WORKDIR.value)
    try:
        with contextlib.ExitStack() as held:
            if parallel.is_primary():
                held.enter_context(workdir.lock(directory))
                held.enter_context(workdir.lock_checkpoints(experiment.config))
            if experiment.draws_class:
                class_pictures.ensure(experiment, directory)
                experiment.check()
            return train(experiment, directory, stop)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise RunError(
            f"process {jax.process_index()} of {jax.process_count()} had to stop: {str(error).splitlines()[0][:200]}; "
            "if another one ended first, it says why; the same command in all of them resumes from the last checkpoint"
        ) from error


def checked_experiment() -> Experiment:
    """What the config names, held against all that can be known before anything is begun."""
    experiment = open_experiment(CONFIG.value, directory=Path(WORKDIR.value) if WORKDIR.value else None)
    checked = class_pictures.without_class(experiment) if experiment.draws_class else experiment
    checked.check()
    if not experiment.reconstructs:
        evaluation.require_guide(checked)
    judging.available(checked, tuple(experiment.config.evaluation.metrics))
    return experiment


def dry_run(experiment: Experiment) -> int:
    """Say what a start would do, and do none of it."""
    directory = WORKDIR.value and Path(WORKDIR.value)
    if directory and directory.exists():
        kept = conditions.kept(experiment.text)
        workdir.claim(directory, experiment.config, experiment.info, kept=kept, write=False, other_steps=True)
    for line in inspection.rehearse(experiment):
        print(line)
    known = workdir.known_steps(directory) if directory else None
    print(f"{directory} has a run of this config, which would continue" if known else "nothing was written or claimed")
    return 0


def train(experiment: Experiment, directory: Path, stop: StopSignal) -> int:
    """Train to the config's last step, or until told to stop; returns the exit code."""
    config, primary = experiment.config, parallel.is_primary()
    parallel.require_same("the config", f"{config} --resume_from={RESUME_FROM.value}")
    former = workdir.known_steps(directory)
    kept = conditions.kept(experiment.text)
    workdir.claim(directory, config, experiment.info, kept=kept, primary=primary, write=False, other_steps=True)
    checkpointer = open_checkpoints(experiment, directory)
    state, start, record = begin(experiment, checkpointer, directory, RESUME_FROM.value, restart=RESTART.value)
    frozen, known = experiment.read_frozen()
    if start:
        require_same_sources(record.get("frozen", {}), known, f"{directory}, step {start},")
    state, record = state.replace(frozen=frozen), {**record, "frozen": known}
    if primary:  # a start that is refused claims nothing
        workdir.claim(directory, config, experiment.info, kept=kept, other_steps=True)
        others = (*record.get("extended", []), *([former] if former else []))
        workdir.own_checkpoints(directory, config, checkpointer.directory, other_steps=others)
        if not experiment.reconstructs:
            describe_run(experiment, directory)
        if experiment.teacher is not None:
            workdir.keep_teacher(directory, experiment.teacher.directory)
    with live_page(directory, steps=config.train.steps, start=start, primary=primary) as live:
        with open_writer(directory, primary=primary, extra=tracked(experiment, directory)) as writer:
            writer.resume(start)
            if start < config.train.steps:
                if primary:
                    (directory / workdir.FINISHED).unlink(missing_ok=True)  # --resume_from may go back from the end
                    announce(experiment, state, directory, writer)
                loop = Loop(experiment, directory, writer, checkpointer, record, live)
                state = loop.run(state, start, stop, profile_steps=PROFILE_STEPS.value)
                loop.remember_saved()
                checkpointer.close()
            elif primary:
                print(f"{directory} is finished: {start} of {config.train.steps} steps are done", flush=True)
        stop.disarm()
        if state is None:
            live.state("stopped")
            return 0
        return finish(experiment, state.evaluation_params(experiment.known_ema(config.sampling.ema)), directory, live)


def tracked(experiment: Experiment, directory: Path) -> Callable[[], trackers.TrackerWriter] | None:
    """What begins the run at the tracker that was asked for, or goes on with it; None where none was."""
    if not TRACKER.value:
        return None
    fields = cli.flatten(experiment.config)
    return lambda: trackers.TrackerWriter(TRACKER.value, directory, fields, project=TRACKER_PROJECT.value)


def announce(experiment: Experiment, state: training.TrainState, directory: Path, writer: RunWriter) -> None:
    """Announce what is trained and where, for people and for the report."""
    count = int(parameter_overview.count_parameters(state.params))
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    replace_file(f"{directory}/parameters.txt", (overview + "\n").encode())
    workdir.write_environment(directory, num_parameters=count)
    writer.write_hparams(cli.flatten(experiment.config))
    print(f"{experiment.title}: {count:,} parameters (listed in {directory}/parameters.txt)", flush=True)
    if experiment.validation_pipeline is not None and experiment.validation_batch < experiment.config.train.batch_size:
        few = f"{experiment.validation_pipeline.info.num_examples} held-out examples"
        print(f"note: validation takes batches of {experiment.validation_batch}, there are {few}", flush=True)
    for remark in experiment.remarks:
        print(f"note: {remark}", flush=True)
    if experiment.text is not None:
        captions = [part for part in (experiment.pipeline, experiment.validation_pipeline) if part is not None]
        for remark in conditions.remarks(experiment.text, captions):
            print(f"note: {remark}", flush=True)


def begin(
    experiment: Experiment,
    checkpointer: training.Checkpointer,
    directory: Path,
    resume_from: int | None,
    *,
    restart: bool = False,
) -> tuple[training.TrainState, int, dict[str, Any]]:
    """The canonical state to start from, its step, and the record saved with it.

    Raises:
      UserError: the checkpoint to resume from is damaged or missing; the message says which others exist. Or there is
        none although the run had one, unless `restart` says to begin again.
    """
    steps, known_run = checkpointer.steps(), workdir.known_steps(directory) is not None
    if resume_from is not None and resume_from not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise UserError(f"no checkpoint {resume_from} in {checkpointer.directory}; there are: {there}")
    if steps and restart:
        raise UserError(
            f"--restart is for a run whose checkpoints are lost; there are {', '.join(map(str, steps))} in "
            f"{checkpointer.directory}: leave it out, or give another --workdir"
        )
    if not steps:
        if restart:
            for name in (workdir.SAVED, workdir.FINISHED):
                (directory / name).unlink(missing_ok=True)
        workdir.require_nothing_lost(directory, checkpointer.directory)
        extension.require_begun(workdir.known_steps(directory), experiment.config, directory)
        state = experiment.first_state()
        if experiment.teacher is not None:
            state = taught(experiment, state)
        return state, 0, {"branch": None, "window": [], "extended": []}
    step = steps[-1] if resume_from is None or grown_from(checkpointer, steps[-1], resume_from) else resume_from
    try:
        extended = extension.require_same_training(
            checkpointer.read_record(step), step, experiment, checkpointer.directory, known_run=known_run
        )
        read, record = checkpointer.restore(step, experiment.abstract_state.saved)
        state = training.TrainState(**read)
    except training.CorruptCheckpointError as error:
        other = whole_one(checkpointer, step, experiment.abstract_state.saved, newer=False)
        mend = (
            "no older one is whole: use another --workdir"
            if other is None
            else f"checkpoint {other} is whole: --resume_from={other} goes on from it"
        )
        raise UserError(f"{error}; {mend}") from error
    if record["position"] != step * experiment.config.train.batch_size:
        raise UserError(
            f"checkpoint {step} in {checkpointer.directory} was at example {record['position']} of the data"
        )
    moved = [] if resume_from is None else checkpointer.set_aside_after(step)
    if parallel.is_primary():
        for directory_moved in moved:
            print(f"set aside {directory_moved}", flush=True)
        print(f"resuming {directory} at step {step}", flush=True)
        if extended != record.get("extended", []):
            extension.announce(experiment, extended, step, directory)
    branch = record["branch"] if resume_from is None else resume_from
    return state, step, {**record, "branch": branch, "extended": extended}


def taught(experiment: Experiment, state: training.TrainState) -> training.TrainState:
    """An initial state with the teacher's weights: as the teacher, and as the start if `teacher.initialize`.

    Raises:
      UserError: the network cannot start from the teacher's weights; the message names the differences.
    """
    spec = experiment.config.teacher
    _, params, source = restore_params(spec.workdir)
    if parallel.is_primary():
        print(f"teacher: {spec.workdir}, step {source['step']} ({source['parameters']})", flush=True)

    def placed(like: Any) -> Any:
        theirs = {group: params[group] for group in like}
        return jax.tree.map(lambda x, old: jax.device_put(jnp.array(x, copy=True), old.sharding), theirs, like)

    if state.teacher is not None:
        state = state.replace(teacher=placed(state.teacher))
    if not spec.initialize:
        return state
    own = {name: value for name, value in state.params.items() if name != training.OBJECTIVE}
    fresh = only_here(own, {name: params.get(name) for name in own}, spec.workdir)
    if fresh and parallel.is_primary():
        names = ", ".join("/".join(path) for path in fresh)
        print(f"note: the network of {spec.workdir} has no {names}: these start as in a fresh network", flush=True)

    def started(tree: Any) -> Any:
        if tree is None:
            return None
        flat, theirs = (flatten_dict({name: one[name] for name in own}) for one in (tree, params))
        found = {
            path: jax.device_put(jnp.array(old if path in fresh else theirs[path], copy=True), old.sharding)
            for path, old in flat.items()
        }
        found = {**tree, **unflatten_dict(found)}
        loss = with_copies(experiment.objective, tree.get(training.OBJECTIVE), found.get(NETWORK))
        return found if loss is None else {**found, training.OBJECTIVE: loss}

    ema = {name: started(average) for name, average in state.ema.items()}
    return state.replace(params=started(state.params), ema=ema, target=started(state.target))


def only_here(own: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], ...]:
    """The paths of parameters that only the student has: layers for its additional inputs.

    Raises:
      UserError: there is any other difference.
    """
    here, there = (flatten_dict(jax.tree.map(jnp.shape, tree), keep_empty_nodes=True) for tree in (own, theirs))
    fresh = {path for path in set(here) - set(there) if theirs[path[0]] is not None}
    different = sorted(
        {"/".join(path) for path, _ in here.items() ^ there.items()} - {"/".join(path) for path in fresh}
    )
    if different:
        raise UserError(
            f"teacher.initialize: the network is not that of {where}; {len(different)} parameters differ, "
            f"among them {', '.join(different[:4])}; "
            "give it the same model, or set teacher.initialize=False"
        )
    return tuple(sorted(fresh))


def grown_from(checkpointer: training.Checkpointer, newest: int, resume_from: int) -> bool:
    """Whether the newest checkpoint already descends from `--resume_from`: then the flag has taken effect before."""
    if newest == resume_from:
        return True
    try:
        return checkpointer.read_record(newest)["branch"] == resume_from
    except training.CorruptCheckpointError:
        return False


def finish(experiment: Experiment, params: Any, directory: Path, live: LivePage) -> int:
    """Make final samples, evaluation and report, unless they exist; finished.json is written last."""
    config, place = experiment.config, workdir.Place.of(directory)
    marker = directory / workdir.FINISHED
    if parallel.any_process(parallel.is_primary() and not marker.exists()):
        live.state("evaluating")
        source = {"step": config.train.steps, "parameters": experiment.known_ema(config.sampling.ema)}
        if experiment.reconstructs:
            reconstruction.publish(experiment, params, directory, source)
        evaluation.evaluate(experiment, params, directory, source=source)
        if parallel.is_primary():
            place.require("while it was evaluated")
            live.state("finished")
            replace_file(marker, json.dumps({"step": config.train.steps}).encode())
            summary_table(directory).print()
    parallel.wait_for_all("finished")  # process 0 evaluates and draws alone, and the others depend on it
    if parallel.is_primary():
        if experiment.shown.spec.kind == "pixels":
            print(f"picture: {directory}/samples/final.png")
        if experiment.shown.spec.kind == "tokens":
            print(f"texts:   {directory}/samples/final.txt")
        print(f"report:  {directory}/report.html", flush=True)
        for meaning, line in next_commands(directory).items():
            print(f"{meaning + ':':<20} {line}", flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
