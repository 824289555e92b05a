"""What a run shows while it runs: a bar on a terminal, or an occasional line in a log."""

import sys
import time
from typing import Any, TextIO

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn


class ProgressBar:
    """A context manager around the training loop.

        with ProgressBar(total=20_000, start=restored_step, primary=jax.process_index() == 0) as progress:
            for step in ...:
                progress.update(step, loss=metrics["loss"], images_per_second=rate)

    On a terminal it is a bar that is redrawn in place; elsewhere a plain line every `every_seconds`, so that a log
    stays readable. Arrays may be given as they come from the device: the bar does not wait for an array that is not yet
    computed, and shows the last value that was ready instead.

    Args:
      total: the step at which the run ends.
      start: steps done before (a resumed run).
      description: what is being done, for instance "train".
      unit: name of an example.
      primary: False on all hosts but one; those show nothing.
      every_seconds: time between plain lines.
      stream: where to write; stderr by default.
    """

    def __init__(
        self,
        *,
        total: int,
        start: int = 0,
        description: str = "train",
        unit: str = "images",
        primary: bool = True,
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
    ):
        self._total, self._start, self._description = total, start, description
        self._unit = unit
        self._every_seconds = every_seconds
        self._stream = stream or sys.stderr
        self._loss: float | None = None
        self._rate: float | None = None
        self._first: tuple[int, float] | None = None  # step and time of the first update; compilation comes before it
        self._last_line = -float("inf")
        self._last_step = start
        self._printed_step = start
        self._bar: rich_progress.Progress | None = None
        self._task: rich_progress.TaskID | None = None
        self._primary = primary
        self._terminal = primary and self._stream.isatty()

    def __enter__(self) -> "ProgressBar":
        if self._terminal:
            self._bar = rich_progress.Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TextColumn("[dim]ETA"),
                TimeRemainingColumn(compact=True),
                console=Console(file=self._stream),
                refresh_per_second=4,
                expand=True,
            )
            self._task = self._bar.add_task(
                self._description, total=self._total, completed=self._start, numbers="compiling"
            )
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._primary and self._printed_step != self._last_step and exception[0] is None:
            self._print_line(time.monotonic())

    def update(self, step: int, loss: Any = None, images_per_second: Any = None) -> None:
        """Show that `step` steps are done. Cheap; never waits for a device.

        Args:
          step: steps done, counted from the beginning of training.
          loss: a number or a scalar array.
          images_per_second: likewise, of whatever an example is (`unit`).
        """
        if not self._primary:
            return
        now = time.monotonic()
        self._last_step = step
        self._first = self._first or (step, now)
        if self._terminal or now - self._last_line >= self._every_seconds:
            self._loss = _ready(loss, otherwise=self._loss)
            self._rate = _ready(images_per_second, otherwise=self._rate)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=self._numbers())
        elif not self._terminal and now - self._last_line >= self._every_seconds:
            self._print_line(now)

    def message(self, text: str) -> None:
        """Print a separate line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._primary:
            print(text, file=self._stream, flush=True)

    def _numbers(self) -> str:
        loss = None if self._loss is None else f"loss {self._loss:.4g}"
        rate = None if self._rate is None else f"{self._rate:,.0f} {self._unit}/s"
        return "  ".join(part for part in (loss, rate) if part)

    def _print_line(self, now: float) -> None:
        self._last_line, self._printed_step = now, self._last_step
        done = f"{self._description} {self._last_step}/{self._total} ({self._last_step / max(self._total, 1):.0%})"
        step, since = self._first
        left = ""
        if self._last_step > step and self._last_step < self._total:
            seconds = (now - since) / (self._last_step - step) * (self._total - self._last_step)
            left = f"ETA {format_seconds(seconds)}"
        print("  ".join(part for part in (done, self._numbers(), left) if part), file=self._stream, flush=True)


def format_seconds(seconds: float) -> str:
    """A duration for people: 8.2 s, 3 min 05 s, 2 h 07 min, 3 d 4 h."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hour} h {minute:02d} min" if hour else f"{minute} min {second:02d} s"


def _ready(value: Any, *, otherwise: float | None) -> float | None:
    """The value as a float, unless it is a device array that is still being computed; then `otherwise`."""
    if value is None or (hasattr(value, "is_ready") and not value.is_ready()):
        return otherwise
    return float(value)
