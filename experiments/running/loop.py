"""The training loop: step, log, look, save, stop. It waits for the devices once per logged row, not in every step."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import parallel, training
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.specs import DATA
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation
from experiments.evaluating.reconstruction import draw_pairs
from experiments.evaluating.texts import save_texts
from experiments.ground import workdir
from experiments.ground.progress import ProgressBar
from experiments.ground.writers import RunWriter, profile


class StopSignal:
    """SIGTERM or Ctrl-C: an orderly stop in the loop; an immediate one before it, when there is nothing to save.

    With several processes all of them stop in the loop at the same step; otherwise the others would wait for one that
    left.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._in_loop = jax.process_count() > 1
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}

    def arm(self) -> None:
        """From now on, note a signal and let the loop save and stop."""
        self._in_loop = True

    def disarm(self) -> None:
        """From now on, give signals their usual effect."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if not self._in_loop:
            print(
                f"stopped by {signal.Signals(number).name} before a step was done; the same command continues",
                flush=True,
            )
            os._exit(0)  # no clean-up, because a compilation may be under way in other threads
        self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Loop:
    """The training loop of one run.

    Args:
      experiment: the experiment to train.
      directory: the workdir.
      writer: receives the numbers.
      checkpointer: stores the states.
      record: the record saved with the initial state: the metrics not yet logged; `branch`, the checkpoint that
        --resume_from went back to; `extended`, the numbers of steps after which the run was trained longer; `frozen`,
        the fingerprints of the frozen groups.
      watch: called with every logged row, the step, and whether pictures were drawn.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: Path,
        writer: RunWriter,
        checkpointer: training.Checkpointer,
        record: dict[str, Any],
        watch: Callable[..., None] = lambda step, *, drawn: None,
    ):
        self.experiment, self.config, self.layout = experiment, experiment.config, experiment.layout
        self.directory, self.writer, self.checkpointer = directory, writer, checkpointer
        self.place = workdir.Place.of(directory, checkpointer.directory) if parallel.is_primary() else workdir.Place()
        self.observer = Observer(experiment, directory, writer, self.place)
        self.watch = watch
        self.branch: int | None = record["branch"]
        self.extended: list[int] = record.get("extended", [])
        self.frozen: dict[str, Any] = record.get("frozen", {})
        self.window: list[Any] = list(record["window"])  # metrics of the steps since the last row

    def run(
        self, state: training.TrainState, start: int, stop: StopSignal, *, profile_steps: int = 0
    ) -> training.TrainState | None:
        """Train from step `start` to the last one; returns the canonical state there, or None if stopped on the way."""
        config, layout, primary = self.config, self.layout, parallel.is_primary()
        running, step_fn = self._compile(state, start)
        del state
        batches = self.experiment.pipeline.batches(
            start_step=start, process_index=layout.host_index, process_count=layout.host_count
        )
        unit = self.experiment.info.spec.unit
        progress = ProgressBar(total=config.train.steps, start=start, unit=unit, primary=primary)
        profiling = profile(self.directory, num_steps=profile_steps, first_step=start + 10, primary=primary)
        stop.arm()
        with progress, profiling as profile_step:
            self._clock = (time.perf_counter(), start)
            for step in range(start + 1, config.train.steps + 1):
                running, metrics = step_fn(running, layout.place_batch(self._next(batches, step)))
                self.window.append(metrics)
                profile_step(step)
                last = step == config.train.steps
                logs = last or due(step, config.log.every)
                saves = last or due(step, config.checkpoint.every)
                # Several hosts must agree to stop at one step; they do so where they wait for the devices anyway.
                asks = logs or saves or jax.process_count() == 1
                stops = parallel.any_process(stop.received is not None) if asks else False
                if logs or saves or stops:
                    self._fetch(running)
                with self._in_place(f"at step {step}", look=logs or saves or stops):
                    measured = self._log(step, progress) if logs else {}
                    measured |= self._look(step, running, last)
                    if saves or stops:
                        self._save(step, running, measured)
                    drawn = due(step, config.log.sample_every)
                    if logs or drawn:
                        self.watch(step, drawn=drawn)
                if logs:
                    self._clock = (time.perf_counter(), step)
                if stops and not last:
                    self.remember_saved()
                    self.checkpointer.close()
                    if primary:
                        by = stop.received.name if stop.received else "another host"
                        print(f"stopped by {by} at step {step}, which is saved; the same command resumes", flush=True)
                    return None
        return layout.to_canonical(running)

    def _compile(self, state: training.TrainState, start: int) -> tuple[Any, Any]:
        """The state in the form of the step, and the step compiled for pictures of every bucket; the parts of a
        checkpoint are compiled too."""
        began = time.perf_counter()
        running = self.layout.from_canonical(state)
        rows = self.config.train.batch_size // self.layout.host_count
        step_fn = self.layout.compile(self.experiment.train_step(), self.experiment.abstract_state)
        programs = {}
        for sides in self.experiment.pipeline.shapes:
            example = self.layout.place_batch(self.experiment.abstract_batch(rows, sides))
            programs[sides] = step_fn.lower(running, example).compile()
        self.checkpointer.prepare(self.layout.to_canonical(running.saved))
        self.writer.write_timings(start, {"compile_seconds": time.perf_counter() - began})
        if len(programs) == 1:
            return running, next(iter(programs.values()))
        return running, lambda state, batch: programs[batch[DATA].shape[-3:-1]](state, batch)

    def _next(self, batches: Iterator[Any], step: int) -> Any:
        """The batch for a step; an error of the data also says what is kept."""
        try:
            return next(batches)
        except (UserError, RunError) as error:
            raise type(error)(
                f"no data for step {step}: {error}; {self._kept()}, and the same command continues from there"
            ) from error

    def _fetch(self, running: Any) -> None:
        """Copy the metrics of the window to the host, which waits for the devices.

        Raises:
          RunError: a step's loss or gradient was not finite; everything before it is kept.
        """
        self.window = [
            {
                name: value if isinstance(value, float) else self.layout.fetch({name: value})[name]
                for name, value in metrics.items()
            }
            for metrics in self.window
        ]
        bad = int(self.layout.fetch({"step": running.nonfinite_step})["step"])
        if bad < 0:
            return
        raise RunError(
            f"loss or gradient is not finite at step {bad}; {self._kept()}: "
            "lower optimizer.learning_rate, set optimizer.clip_norm, or look at the data"
        )

    @contextlib.contextmanager
    def _in_place(self, doing: str, *, look: bool = True) -> Iterator[None]:
        """A block that writes to workdir and checkpoints, whose existence is checked before it with `look`.

        Raises:
          RunError: they were removed meanwhile; no incomplete part of them is left.
        """
        try:
            if look:
                self.place.require(doing)
            yield
        except Exception:
            try:
                self.place.require(doing)  # the failure may be a consequence
            except RunError:
                self.checkpointer.abandon()
                raise
            raise

    def _kept(self) -> str:
        """A phrase about what a stopping run leaves; waits for the write under way."""
        self.checkpointer.wait()
        steps = self.checkpointer.steps()
        found = f"the last good checkpoint is {steps[-1]}" if steps else "there is no checkpoint yet"
        return f"{found} in {self.checkpointer.directory}"

    def _log(self, step: int, progress: ProgressBar) -> dict[str, float]:
        """Log one row: the mean of every metric over the steps since the last one."""
        row = {name: float(np.mean([metrics[name] for metrics in self.window])) for name in self.window[0]}
        self.window = []
        self.writer.write_scalars(step, row)
        then, step_then = self._clock
        speed = (step - step_then) * self.config.train.batch_size / (time.perf_counter() - then)
        self.writer.write_timings(step, {"images_per_second": speed})
        progress.update(step, row["loss"], speed)
        return row

    def _look(self, step: int, running: Any, last: bool) -> dict[str, float]:
        """Do validation and pictures, if they are due; returns the validation loss."""
        log = self.config.log
        validates = log.validate_every > 0 and (last or due(step, log.validate_every))
        draws = due(step, log.sample_every)
        if not validates and not draws:
            return {}
        canonical = self.layout.to_canonical(running)
        if draws:
            self.observer.draw(step, canonical)
        return self.observer.validate(step, canonical) if validates else {}

    def _save(self, step: int, running: Any, measured: dict[str, float]) -> None:
        """Save a checkpoint, ranked by the measurements at this step; rows up to it reach the disk first.

        The seconds for which the loop waited are logged as a timing.
        """
        began = time.perf_counter()
        self.writer.flush()
        self.remember_saved()
        record = {
            "config": workdir.to_json(self.config),
            "position": step * self.config.train.batch_size,
            "window": self.window,
            "branch": self.branch,
            **({"extended": self.extended} if self.extended else {}),
            **({"frozen": self.frozen} if self.frozen else {}),
        }
        self.checkpointer.save(step, self.layout.to_canonical(running.saved), record, measured)
        self.writer.write_timings(step, {"save_seconds": time.perf_counter() - began})

    def remember_saved(self) -> None:
        """Record in the workdir that there is a checkpoint; waits for the write under way."""
        with self._in_place("while a checkpoint was written"):
            self.checkpointer.wait()
            self.place.require("while a checkpoint was written")
        steps = self.checkpointer.steps()
        if steps and parallel.is_primary():
            workdir.remember_saved(self.directory, steps[-1], self.checkpointer.directory, self.extended)


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) is due at this step."""
    return every > 0 and step % every == 0


class Observer:
    """Observes training: the validation loss, and pictures."""

    def __init__(self, experiment: Experiment, directory: Path, writer: RunWriter, place: workdir.Place):
        self.experiment, self.directory, self.writer, self.place = experiment, directory, writer, place
        self._ema = experiment.config.sampling.ema
        log = experiment.config.log
        if log.sample_every and not experiment.reconstructs:
            self._generator = evaluation.generator(experiment, batch_size=log.num_samples)
            self._asked = evaluation.asked_for(experiment, log.num_samples).first(log.num_samples)
        if log.validate_every:
            step = training.make_validation_step(experiment.trainable, seed=experiment.config.seed)
            self._validate = jax.jit(experiment.layout.placed(step), static_argnums=4)

    def validate(self, step: int, state: training.TrainState) -> dict[str, float]:
        """Mean loss of the averaged parameters over held-out examples, with the same noise every time."""
        layout = self.experiment.layout
        params = state.evaluation_params(self._ema)
        context = state.replace(params={}, opt_state=(), ema={}, frozen=None)  # the loss needs the other fields
        size = self.experiment.validation_size
        batches = self.experiment.validation_pipeline.batches(
            start_step=0, process_index=layout.host_index, process_count=layout.host_count
        )
        losses = []
        for first in range(0, size, self.experiment.validation_batch):
            metrics = self._validate(params, context, layout.global_batch(next(batches)), np.int32(first), size)
            losses.append(metrics["loss"])
        result = {"validation_loss": float(np.mean(jax.device_get(losses)))}
        self.writer.write_scalars(step, result)
        return result

    def draw(self, step: int, state: training.TrainState) -> None:
        """Draw a grid of samples, or a file of texts, with the same noise every time."""
        config = self.experiment.config
        params = state.evaluation_params(self._ema)
        path = self.directory / "samples" / f"step_{step:07d}"
        if self.experiment.reconstructs:
            made = draw_pairs(self.experiment, params, config.log.num_samples, path.with_suffix(".png"))
            if parallel.is_primary():
                self.writer.write_images(step, {"reconstructions": made[:64]})
            return
        asked = self._asked
        images = self._generator.generate(params, asked, config.log.num_samples, config.seed)
        if not parallel.is_primary():
            return
        self.place.require(f"while samples of step {step} were drawn")
        with contextlib.suppress(OSError):  # a workdir that was removed is not created again
            (self.directory / "samples").mkdir(exist_ok=True)
        path = self.directory / "samples" / f"step_{step:07d}"
        kind = self.experiment.shown.spec.kind
        if kind == "tokens":
            save_texts(images, self.experiment.pipeline.tokenizer, path.with_suffix(".txt"), make_folder=False)
        if kind == "pixels":
            evaluation.save_asked(images, asked, self.experiment, path.with_suffix(".png"), make_folder=False)
            self.writer.write_images(step, {"samples": images[:64]})
