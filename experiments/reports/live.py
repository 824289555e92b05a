"""The report of a run that is under way: rewritten while the run continues, and kept however it ends.

`status.json` in the workdir holds what the page shows at its top, so that the page can be written again at any time:

    {"state": "training", "step": 450, "steps": 900, "seconds_left": 81.5, "written": 1764430000.0, "error": "",
     "process": 4711, "host": "worker"}

It depends on the clock, and nothing in the run depends on it. A killed run leaves the page of its last minute.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_jax.errors import RunError
from diffusion_jax.files import replace_file
from experiments.ground.workdir import Place
from experiments.reports.report import write_report
from experiments.reports.run import STATUS_FILE

_EVERY_SECONDS = 15.0
_SHARE = 0.02  # largest share of the time for writing the page


@dataclasses.dataclass
class LivePage:
    """The report of one run while it runs; the workdir's files are its only input.

    Args:
      directory: the workdir.
      steps: steps of the whole training.
      start: steps done before.
    """

    directory: Path
    steps: int
    start: int = 0

    def __post_init__(self) -> None:
        self._step = self.start
        self._place = Place.of(self.directory)
        self._first: tuple[int, float] | None = None  # step and time of the first row; compilation comes before it
        self._next = -float("inf")

    def __call__(self, step: int, *, drawn: bool = False) -> None:
        """Called when a row was logged at `step`; writes the page if pictures were drawn, else only now and then."""
        now = time.monotonic()
        self._step, self._first = step, self._first or (step, now)
        there = (self.directory / "report.html").exists()
        if drawn or (there and now >= self._next):
            self._write("training", seconds_left=self._seconds_left(now))

    def state(self, state: str, error: str = "") -> None:
        """The run changes its state or ends; `error` is the reason if it had to end."""
        self._write(state, error=error)

    def _seconds_left(self, now: float) -> float | None:
        step, since = self._first
        if self._step <= step:
            return None
        return round((now - since) / (self._step - step) * (self.steps - self._step), 1)

    def _write(self, state: str, **more: Any) -> None:
        """Write the status and the page. If that fails, the run continues, and a note is printed once."""
        began = time.monotonic()
        try:
            self._place.require("while its report was written")
        except RunError:
            return  # the run itself reports it, and nothing is created again
        content = {"state": state, "step": self._step, "steps": self.steps, "written": round(time.time(), 1)}
        content |= {"process": os.getpid(), "host": socket.gethostname(), **more}
        try:
            replace_file(self.directory / STATUS_FILE, (json.dumps(content) + "\n").encode(), make_folder=False)
            write_report(self.directory)
        except RunError as error:
            if self._next < float("inf"):
                print(f"note: {error}; the run goes on without its page", flush=True)
            self._next = float("inf")
            return
        took = time.monotonic() - began
        self._next = time.monotonic() + max(_EVERY_SECONDS, took / _SHARE)


class NoPage(LivePage):
    """The page for a process that is not the first: nothing is written."""

    def _write(self, state: str, **more: Any) -> None:
        pass


@contextlib.contextmanager
def live_page(directory: Path, *, steps: int, start: int, primary: bool) -> Iterator[LivePage]:
    """The page of a run while the block lasts; it shows an error that ends the block."""
    page = (LivePage if primary else NoPage)(directory, steps, start)
    try:
        yield page
    except KeyboardInterrupt:
        page.state("stopped")
        raise
    except Exception as error:
        page.state("failed", error=" ".join(str(error).split())[:500] or type(error).__name__)
        raise
