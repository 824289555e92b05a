"""Where a run writes its numbers: `metrics.jsonl`, `timings.jsonl`, TensorBoard events, and a tracker if it is asked.

tensorboardX writes the events, without TensorFlow; the methods have the names of `clu.metric_writers`.

`metrics.jsonl` depends only on the configuration: a killed and resumed run writes the same bytes as an uninterrupted
one. Numbers that depend on the clock go to `timings.jsonl`. One line is one JSON object: "step" first, then the names
in order; floats have the shortest form that reads back to the same bits.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from diffusion_jax.errors import RunError, UserError
from diffusion_jax.files import replace_file

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
TIMING_NAMES = frozenset(  # these depend on the clock
    {"steps_per_sec", "uptime", "images_per_second", "compile_seconds", "elapsed_seconds"}
)


class TensorboardWriter:
    """TensorBoard events. The file is opened by the first write.

    Events are written at once, in the calling thread: tensorboardX's own queue would block for ever on a full disk.

    Args:
      logdir: directory of the event files.
      purge_step: on resume, TensorBoard discards events of this step and later ones.
    """

    def __init__(self, logdir: str | os.PathLike, *, purge_step: int | None = None):
        self._logdir = Path(logdir)
        self._purge_step = purge_step
        self._file: EventsWriter | None = None

    def resume(self, step: int) -> None:
        """Make TensorBoard discard everything logged after `step`; call this before the first write."""
        self.close()
        self._purge_step = step + 1

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._write(step, summary.scalar(name, float(value)))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Images [h, w, c] or [n, h, w, c]: uint8, or floats in [0, 1]."""
        for name, value in images.items():
            value = np.asarray(value)
            batch = value[None] if value.ndim == 3 else value
            self._write(step, summary.image(name, batch, dataformats="NHWC"))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        flat = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in hparams.items()}
        for part in summary.hparams(flat, {}):
            self._write(0, part)

    def flush(self) -> None:
        if self._file is not None:
            with self._one_clear_error():
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._one_clear_error():
                self._file.close()
            self._file = None

    def _write(self, step: int, content: summary_pb2.Summary) -> None:
        with self._one_clear_error():
            if self._file is None:
                self._logdir.mkdir(parents=True, exist_ok=True)
                # Files are read in the order of their names; two within one second must not have the same name.
                self._file = EventsWriter(str(self._logdir / "events"), f".{time.time_ns()}")
                if self._purge_step is not None:
                    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                    self._file.write_event(event_pb2.Event(step=self._purge_step, session_log=start))
            self._file.write_event(event_pb2.Event(step=int(step), wall_time=time.time(), summary=content))

    @contextlib.contextmanager
    def _one_clear_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"could not write TensorBoard events in {self._logdir}: {error.strerror}") from error


class JsonlWriter:
    """Scalars as JSON lines; the names in TIMING_NAMES go to `timings.jsonl`, all others to `metrics.jsonl`.

    Several calls for one step make one line. It is written when another step begins, by `flush` and by `close`. Flush
    before saving a checkpoint: rows up to a checkpoint must not be lost with the process. Pictures, texts and
    hyperparameters are stored elsewhere in a workdir and are skipped here.
    """

    def __init__(self, workdir: str | os.PathLike):
        Path(workdir).mkdir(parents=True, exist_ok=True)  # once: a directory that is removed later is not made again
        self._files = {name: _JsonLines(Path(workdir) / name) for name in (METRICS_FILE, TIMINGS_FILE)}

    def resume(self, step: int) -> None:
        """Drop the rows after `step`, all rows if `step` is 0, and half-written ones."""
        for file in self._files.values():
            file.resume(step)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._files[TIMINGS_FILE if name in TIMING_NAMES else METRICS_FILE].add(step, name, value)

    def write_timings(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._files[TIMINGS_FILE].add(step, name, value)

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        self.flush()


class _JsonLines:
    """One file of rows; the row of the current step waits in memory until it is complete."""

    def __init__(self, path: Path):
        self._path = path
        self._step: int | None = None
        self._row: dict[str, int | float] = {}
        self._mended = self._unsynced = self._there = False

    def add(self, step: int, name: str, value: Any) -> None:
        if step != self._step:
            self._write()
        self._step = int(step)
        self._row[name] = _number(name, value)

    def flush(self) -> None:
        """Write waiting rows, and force them to the disk, since the machine may fail, not only the process."""
        self._write(sync=True)

    def _write(self, *, sync: bool = False) -> None:
        if not self._row and not (sync and self._unsynced):
            return
        line = json.dumps({"step": self._step, **dict(sorted(self._row.items()))}) + "\n" if self._row else ""
        try:
            if self._there and not self._path.exists():
                raise FileNotFoundError(errno.ENOENT, "it was removed while the run was under way")
            if not self._mended:
                self._rewrite(lambda _: True)
            with open(self._path, "ab") as file:
                file.write(line.encode())
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            self._mended = False  # a part of the line may have been written
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
            safe = "checkpoints" if gone else "rows and checkpoints"
            raise RunError(
                f"could not write {self._path}: {error.strerror}; {safe} written so far are safe, the same command "
                "goes on from the last checkpoint"
            ) from error
        self._row, self._unsynced, self._there = {}, not sync, True

    def resume(self, step: int) -> None:
        self._step, self._row = None, {}
        self._rewrite(lambda row: step > 0 and row["step"] <= step)

    def _rewrite(self, keep: Callable[[dict], bool]) -> None:
        """Replace the file by the rows that `keep` accepts, unless nothing changes; an incomplete line is always
        dropped."""
        self._mended = True
        if not self._path.exists():
            return
        before = self._path.read_bytes()
        kept = "".join(json.dumps(row) + "\n" for row in _parse(self._path, before) if keep(row)).encode()
        if kept != before:
            replace_file(self._path, kept)


class Extra(Protocol):
    """A further place for numbers and pictures, which knows by itself what it was told before a resume."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def write_images(self, step: int, images: Mapping[str, Any]) -> None: ...

    def close(self, *, failed: bool = False) -> None: ...


class RunWriter:
    """Where one run writes: rows of JSON, TensorBoard events, and a tracker. Made by `create_writer`.

    Args:
      rows: None where nothing is written.
      events: likewise.
      extra: likewise.
    """

    def __init__(self, rows: JsonlWriter | None, events: TensorboardWriter | None, extra: Extra | None = None):
        self._rows, self._events, self._extra = rows, events, extra

    @property
    def _both(self) -> list[JsonlWriter | TensorboardWriter]:
        return [writer for writer in (self._rows, self._events) if writer is not None]

    @property
    def _extras(self) -> list[Extra]:
        return [] if self._extra is None else [self._extra]

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Numbers that are a function of the config: to `metrics.jsonl`, TensorBoard and the tracker."""
        for writer in (*self._both, *self._extras):
            writer.write_scalars(step, scalars)

    def write_timings(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Numbers that depend on the clock: to all but `metrics.jsonl`."""
        if self._rows is not None:
            self._rows.write_timings(step, scalars)
        for writer in (*([] if self._events is None else [self._events]), *self._extras):
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Pictures, to TensorBoard and the tracker; see `TensorboardWriter.write_images`."""
        for writer in (*([] if self._events is None else [self._events]), *self._extras):
            writer.write_images(step, images)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the config by dotted names to TensorBoard."""
        if self._events is not None:
            self._events.write_hparams(hparams)

    def resume(self, step: int) -> None:
        """Discard everything logged after `step`, the step of the restored checkpoint; 0 is a fresh start.

        Call this once, before the first write.
        """
        for writer in self._both:
            writer.resume(step)

    def flush(self) -> None:
        """Force everything written to the disk."""
        for writer in self._both:
            writer.flush()

    def close(self, *, failed: bool = False) -> None:
        """Write what waits, and let go of the files; `failed` says whether the run ends by an error."""
        try:
            for writer in self._both:
                writer.close()
        finally:
            for writer in self._extras:
                writer.close(failed=failed)


def create_writer(
    workdir: str | os.PathLike, *, primary: bool = True, extra: Callable[[], Extra] | None = None
) -> RunWriter:
    """The writer of a run: JSON lines and TensorBoard events in `workdir`, and what `extra` makes.

    With `primary` False (every host but the first) it writes nothing at all.

    Raises:
      UserError: the workdir is a URL; rows cannot be appended to an object in a bucket.
    """
    if "://" in os.fspath(workdir):
        raise UserError(f"{workdir}: metrics are written to a file system; mount the bucket and give its path")
    if not primary:
        return RunWriter(None, None)
    return RunWriter(JsonlWriter(workdir), TensorboardWriter(workdir), extra and extra())


@contextlib.contextmanager
def open_writer(
    workdir: str | os.PathLike, *, primary: bool = True, extra: Callable[[], Extra] | None = None
) -> Iterator[RunWriter]:
    """The writer of a run, closed after the block; an error of the block is the one that is raised."""
    writer = create_writer(workdir, primary=primary, extra=extra)
    try:
        yield writer
    except BaseException:
        with contextlib.suppress(RunError):
            writer.close(failed=True)
        raise
    writer.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` or `timings.jsonl`, merged by step, in the order of their steps.

    Raises:
      UserError: there is no such file, or a line is no row of metrics. An incomplete last line, from a killed process,
        is skipped.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}; has this workdir been trained in?")
    rows: dict[int, dict[str, Any]] = {}
    for row in _parse(path, path.read_bytes()):
        rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


@contextlib.contextmanager
def profile(
    workdir: str | os.PathLike, *, num_steps: int = 0, first_step: int = 10, primary: bool = True
) -> Iterator[Callable[[int], None]]:
    """One profile of `num_steps` training steps, for TensorBoard or xprof.

        with profile(workdir, num_steps=5, first_step=start + 10) as profile_step:
            for step in range(start, end):
                ...
                profile_step(step)

    With num_steps = 0, and on hosts that are not primary, it does nothing. A profile that is still open at the end of
    the block is written there.
    """
    if not num_steps or not primary:
        yield lambda step: None
        return
    open_until: int | None = None

    def profile_step(step: int) -> None:
        nonlocal open_until
        if open_until is None and step >= first_step:
            jax.profiler.start_trace(os.fspath(workdir))
            open_until = step + num_steps
        elif open_until is not None and step == open_until:
            jax.profiler.stop_trace()
            open_until = 0

    try:
        yield profile_step
    finally:
        if open_until:
            jax.profiler.stop_trace()


def _parse(path: Path, content: bytes) -> list[dict[str, Any]]:
    lines = content.decode(errors="replace").split("\n")
    last = len(lines) - 1  # after the last newline there is nothing, or an incomplete line
    rows = []
    for number, line in enumerate(lines):
        if not line and number == last:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: also a number of more digits than Python reads
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif number != last:
            raise UserError(
                f"{path}, line {number + 1} is not a row of metrics: {line[:60]!r}; repair or remove that line"
            )
    return rows


def _number(name: str, value: Any) -> int | float:
    value = np.asarray(value)
    if value.size != 1 or not (value.dtype.kind in "biuf" or value.dtype.name == "bfloat16"):
        raise ValueError(f"{name!r} is not a scalar: {value.dtype} {list(value.shape)}")
    return int(value.item()) if value.dtype.kind in "biu" else float(value.item())
