"""Train the diffusion model that a config describes, and show what it learned.

    python -m experiments.train --config=configs/digits_unet.py --workdir=runs/digits [--config.train.steps=200 ...]

The same command on the same workdir goes on where it stopped, bit for bit; on a finished one it says so. SIGTERM and
Ctrl-C save a checkpoint and exit. The workdir receives config.json, metrics.jsonl and timings.jsonl, TensorBoard
events, samples/, checkpoints/, evaluation.json and report.html.
"""

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from clu import parameter_overview

from diffusion_jax import parallel, training
from diffusion_jax.errors import RunError, UserError
from experiments import cli, evaluation, workdir
from experiments.pictures import save_grid
from experiments.progress import ProgressBar
from experiments.report import write_report
from experiments.restoring import open_checkpoints
from experiments.wiring import Experiment
from experiments.writers import RunWriter, create_writer, profile, replace_file

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run; the same one resumes")
RESUME_FROM = flags.DEFINE_integer("resume_from", None, "resume from this checkpoint and set newer ones aside")
PROFILE_STEPS = flags.DEFINE_integer("profile_steps", 0, "profile this many steps for TensorBoard")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the other hosts of this run (Cloud TPU, Slurm: detected)")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where it is not detected")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "processes of this run, where they are not detected")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this is")


class StopSignal:
    """SIGTERM or Ctrl-C asks for an orderly stop; a second Ctrl-C gets Python's usual answer."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main(argv: Sequence[str]) -> int:
    if not WORKDIR.value or CONFIG.value is None:
        raise UserError(
            "give --config=... and --workdir=..., for example --config=configs/digits_unet.py --workdir=runs/digits"
        )
    joining = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if DISTRIBUTED.value or joining != (None, None, None):
        parallel.initialize_hosts(*joining)
    stop = StopSignal()
    experiment = Experiment(CONFIG.value)
    experiment.check()
    directory = cli.writable_directory(WORKDIR.value)
    try:
        return train(experiment, directory, stop)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise RunError(
            f"process {jax.process_index()} of {jax.process_count()} had to stop: {str(error).splitlines()[0][:200]}; "
            "if another one ended first, it says why; the same command in all of them resumes from the last checkpoint"
        ) from error


def train(experiment: Experiment, directory: Path, stop: StopSignal) -> int:
    """Train to the config's last step, or until told to stop; returns the exit code."""
    config, layout, primary = experiment.config, experiment.layout, parallel.is_primary()
    ema = experiment.known_ema(config.sampling.ema)
    parallel.require_same("the config", f"{config} --resume_from={RESUME_FROM.value}")
    workdir.claim(directory, config, primary=primary)
    checkpointer = open_checkpoints(experiment, directory)

    state, start, record = begin(experiment, checkpointer, directory, RESUME_FROM.value)
    writer = create_writer(directory, primary=primary)
    writer.resume(start)
    if start >= config.train.steps:
        if primary:
            print(f"{directory} is finished: {start} of {config.train.steps} steps are done", flush=True)
        return finish(experiment, state.evaluation_params(ema), directory, again=False)
    if primary:
        workdir.write_environment(directory)
        if start == 0:
            writer.write_hparams(cli.flatten(config))
            overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            replace_file(f"{directory}/parameters.txt", (overview + "\n").encode())
            count = parameter_overview.count_parameters(state.params)
            print(f"{config.model.name}: {count:,} parameters (listed in {directory}/parameters.txt)", flush=True)

    rows = config.train.batch_size // layout.host_count
    began = time.perf_counter()
    step_fn = layout.compile(experiment.train_step(), experiment.abstract_state)
    running = layout.from_canonical(state)
    example = layout.place_batch(experiment.abstract_batch(rows))
    step_fn = step_fn.lower(running, example).compile()
    writer.write_timings(start, {"compile_seconds": time.perf_counter() - began})
    del state, example

    observer = Observer(experiment, directory, writer, primary)
    window: list[Any] = list(record.get("window", []))  # metrics of the steps since the last row
    latest: dict[str, float] = dict(record.get("latest", {}))
    batches = experiment.pipeline.batches(
        start_step=start, process_index=layout.host_index, process_count=layout.host_count
    )
    progress = ProgressBar(total=config.train.steps, start=start, description="train", primary=primary)
    with (
        progress,
        profile(directory, num_steps=PROFILE_STEPS.value, first_step=start + 10, primary=primary) as profiled,
    ):
        clock, clock_step = time.perf_counter(), start
        for step in range(start + 1, config.train.steps + 1):
            running, metrics = step_fn(running, layout.place_batch(next(batches)))
            window.append(metrics)
            profiled(step)
            last = step == config.train.steps
            logs = due(step, config.log.every) or last
            saves = due(step, config.checkpoint.every) or last
            # Several hosts must agree to stop at one step; they ask each other where they wait for the devices anyway.
            asks = logs or saves or jax.process_count() == 1
            stopping = parallel.any_process(stop.received is not None) if asks else False
            saves = saves or stopping
            if logs or saves:
                window = [fetched(layout, metrics) for metrics in window]
                check_finite(layout, running, directory, checkpointer)
            if logs:
                latest = {name: float(np.mean([row[name] for row in window])) for name in window[0]}
                window = []
                writer.write_scalars(step, latest)
                speed = (step - clock_step) * config.train.batch_size / (time.perf_counter() - clock)
                writer.write_timings(step, {"images_per_second": speed})
                progress.update(step, latest["loss"], speed)
            canonical = None
            if due(step, config.log.validate_every) or (last and config.log.validate_every):
                canonical = layout.to_canonical(running)
                latest.update(observer.validate(step, canonical))
            if due(step, config.log.sample_every):
                canonical = canonical or layout.to_canonical(running)
                observer.draw(step, canonical)
            if saves:
                writer.flush()
                canonical = canonical or layout.to_canonical(running)
                record = {"window": window, "latest": latest, "position": step * config.train.batch_size}
                checkpointer.save(step, canonical, record, latest)
            if logs:
                clock, clock_step = time.perf_counter(), step
            if stopping and not last:
                checkpointer.close()
                writer.close()
                by = stop.received.name if stop.received else "another host"
                if primary:
                    print(f"stopped by {by} at step {step}, which is saved; the same command resumes", flush=True)
                return 0
    checkpointer.close()
    writer.close()
    return finish(experiment, layout.to_canonical(running).evaluation_params(ema), directory, again=True)


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def fetched(layout: parallel.Layout, metrics: Any) -> dict[str, float]:
    """Metrics on the host; those of a resumed window are there already."""
    return {
        name: value if isinstance(value, float) else layout.fetch({name: value})[name]
        for name, value in metrics.items()
    }


def begin(
    experiment: Experiment, checkpointer: training.Checkpointer, directory: Path, resume_from: int | None
) -> tuple[training.TrainState, int, dict[str, Any]]:
    """The canonical state to start from, its step, and the record saved with it.

    Raises:
      UserError: the checkpoint to resume from is damaged or missing; the message says which others there are.
    """
    steps = checkpointer.steps()
    if resume_from is not None and resume_from not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise UserError(f"no checkpoint {resume_from} in {directory}/checkpoints; there are: {there}")
    if not steps:
        init = jax.jit(
            experiment.init_state, out_shardings=jax.tree.map(lambda x: x.sharding, experiment.abstract_state)
        )
        return init(), 0, {}
    step = steps[-1] if resume_from is None else resume_from
    try:
        state, record = checkpointer.restore(step, experiment.abstract_state)
    except training.CorruptCheckpointError as error:
        others = [s for s in steps if s < step]
        mend = (
            f"--resume_from={others[-1]} goes on from the one before"
            if others
            else "no older one is left: use another --workdir"
        )
        raise UserError(f"{error}; {mend}") from error
    moved = [] if resume_from is None else checkpointer.set_aside_after(step)
    if parallel.is_primary():
        for directory_moved in moved:
            print(f"set aside {directory_moved}", flush=True)
        print(f"resuming {directory} at step {step}", flush=True)
    return state, step, record


def check_finite(layout: parallel.Layout, running: Any, directory: Path, checkpointer: training.Checkpointer) -> None:
    """Raise RunError once a step had a loss or gradient that is not finite; what came before it is kept."""
    bad = int(layout.fetch({"step": running.nonfinite_step})["step"])
    if bad < 0:
        return
    checkpointer.wait()
    steps = checkpointer.steps()
    kept = f"the last good checkpoint is {steps[-1]}" if steps else "there is no checkpoint yet"
    raise RunError(
        f"loss or gradient is not finite at step {bad}; {kept} in {directory}/checkpoints: "
        "lower optimizer.learning_rate, set optimizer.clip_norm, or look at the data"
    )


class Observer:
    """What is looked at during training: the validation loss, and pictures."""

    def __init__(self, experiment: Experiment, directory: Path, writer: RunWriter, primary: bool):
        self.experiment, self.directory, self.writer, self.primary = experiment, directory, writer, primary
        self._ema = experiment.config.sampling.ema
        log = experiment.config.log
        if log.sample_every:
            self._generator = evaluation.generator(experiment, batch_size=log.num_samples)
        if log.validate_every:
            self._validate = jax.jit(
                training.make_validation_step(experiment.trainable, seed=experiment.config.seed), static_argnums=3
            )

    def validate(self, step: int, state: training.TrainState) -> dict[str, float]:
        """Mean loss of the averaged parameters over held-out examples, with the same noise every time."""
        config, layout = self.experiment.config, self.experiment.layout
        params = state.evaluation_params(self._ema)
        examples = self.experiment.validation_pipeline.info.num_examples
        size = min(examples, config.log.validation_examples) // config.train.batch_size * config.train.batch_size
        if not size:
            raise UserError(f"validation needs {config.train.batch_size} examples, one batch; the split has {examples}")
        batches = self.experiment.validation_pipeline.batches(
            start_step=0, process_index=layout.host_index, process_count=layout.host_count
        )
        losses = []
        for first in range(0, size, config.train.batch_size):
            metrics = self._validate(params, layout.global_batch(next(batches)), np.int32(first), size)
            losses.append(float(metrics["loss"]))
        result = {"validation_loss": float(np.mean(losses))}
        self.writer.write_scalars(step, result)
        return result

    def draw(self, step: int, state: training.TrainState) -> None:
        """A grid of samples, the same noise every time."""
        config = self.experiment.config
        params = state.evaluation_params(self._ema)
        labels = evaluation.labels_for(self.experiment, config.log.num_samples)
        images = self._generator.generate(params, labels, config.log.num_samples, config.seed)
        if self.primary and self.experiment.pipeline.info.is_image:
            save_grid(images, self.directory / "samples" / f"step_{step:07d}.png", labels=labels)
            self.writer.write_images(step, {"samples": images[:64]})


def finish(experiment: Experiment, params: Any, directory: Path, *, again: bool) -> int:
    """Final samples, evaluation and report; with `again` False only what is missing."""
    config = experiment.config
    source = {"step": config.train.steps, "parameters": experiment.known_ema(config.sampling.ema)}
    report = Path(directory) / "report.html"
    if parallel.any_process(again or (parallel.is_primary() and not report.exists())):
        results = evaluation.evaluate(experiment, params, Path(directory), source=source)
        if parallel.is_primary():
            write_report(directory)
            print(json.dumps(results, indent=2) if results else "no metrics asked for", flush=True)
    parallel.wait_for_all("finished")  # process 0 judges and draws alone; it is the one that the others depend on
    if parallel.is_primary():
        print(f"picture: {directory}/samples/final.png\nreport:  {report}", flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
