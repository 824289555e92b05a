"""Trackers beside the files of a run: what is written to TensorBoard goes to Weights & Biases, trackio or MLflow, too.

A tracker is an extra of the install, and is told where it keeps its runs as its own pages say, by variables such as
WANDB_MODE and MLFLOW_TRACKING_URI. A run that goes on keeps its run there: `tracker.json` in the workdir has its id and
the last step that it was told. What was told before a kill is not told again, for a run that goes on writes the same
numbers. Where a tracker fails on the way the run goes on without it: `metrics.jsonl` has everything, whatever it does.
"""

import abc
import importlib
import importlib.util
import json
import os
import re
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from diffusion_jax.data.grids import make_grid
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json, replace_file
from diffusion_jax.registry import Registry

FILE = "tracker.json"
PROJECT = "diffusion_jax"
TRACKERS: Registry["Tracker"] = Registry("tracker")


class Tracker(abc.ABC):
    """One run at a tracker.

    Attributes:
      package: what is imported, which is the name of the extra as well.
      variable: environment variable that names the project if the command does not.
      mend: what to do where a run cannot be begun.
    """

    package: ClassVar[str]
    variable: ClassVar[str]
    mend: ClassVar[str]

    def __init__(self, module: Any):
        self._module = module

    @abc.abstractmethod
    def begin(self, project: str, name: str, known: str | None, fields: Mapping[str, Any], directory: Path) -> str:
        """Begin a run, or go on with the one whose id is `known`; returns its id.

        Args:
          project: that the run belongs to.
          name: readable name of the run.
          known: None for a new one.
          fields: fields of the config, by dotted name.
          directory: the workdir.
        """

    @abc.abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""

    @abc.abstractmethod
    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture of a step."""

    @abc.abstractmethod
    def end(self, *, failed: bool) -> None:
        """End the run, for now."""


@TRACKERS.register("wandb")
class WeightsAndBiases(Tracker):
    """Weights & Biases (https://docs.wandb.ai)."""

    package, variable = "wandb", "WANDB_PROJECT"
    mend = "`wandb login` logs in, WANDB_MODE=offline keeps the run here"

    def begin(self, project, name, known, fields, directory):
        settings = self._module.Settings(console="off")
        self._run = self._module.init(
            project=project, name=name, id=known, resume="allow", dir=str(directory), settings=settings
        )
        self._run.config.update(dict(fields), allow_val_change=True)
        return self._run.id

    def scalars(self, step, values):
        self._run.log(dict(values), step=step)

    def picture(self, step, name, picture):
        self._run.log({name: self._module.Image(picture)}, step=step)

    def end(self, *, failed):
        self._run.finish(exit_code=int(failed))


@TRACKERS.register("trackio")
class Trackio(Tracker):
    """trackio, which keeps runs on this machine (https://huggingface.co/docs/trackio); a run is known by its name."""

    package, variable = "trackio", "TRACKIO_PROJECT"
    mend = "see its pages for where it keeps its runs"

    def begin(self, project, name, known, fields, directory):
        called = known or f"{name}-{uuid.uuid4().hex[:8]}"
        self._run = self._module.init(
            project=project, name=called, config=dict(fields), resume="allow" if known else "never"
        )
        return called

    def scalars(self, step, values):
        self._run.log(dict(values), step=step)

    def picture(self, step, name, picture):
        self._run.log({name: self._module.Image(picture)}, step=step)

    def end(self, *, failed):
        self._run.finish()


@TRACKERS.register("mlflow")
class MLflow(Tracker):
    """MLflow (https://mlflow.org/docs)."""

    package, variable = "mlflow", "MLFLOW_EXPERIMENT_NAME"
    mend = "MLFLOW_TRACKING_URI says where its runs are"
    _MOST_PARAMS = 100  # of one call

    def begin(self, project, name, known, fields, directory):
        self._module.set_experiment(project)
        run = self._module.start_run(run_id=known) if known else self._module.start_run(run_name=name)
        texts = [(self._plain(field), str(value)[:6000]) for field, value in fields.items()]
        for first in range(0, 0 if known else len(texts), self._MOST_PARAMS):  # those of a run cannot be changed
            self._module.log_params(dict(texts[first : first + self._MOST_PARAMS]))
        return run.info.run_id

    def scalars(self, step, values):
        self._module.log_metrics({self._plain(name): value for name, value in values.items()}, step=step)

    def picture(self, step, name, picture):
        self._module.log_image(picture, key=self._plain(name), step=step)

    def end(self, *, failed):
        self._module.end_run("FAILED" if failed else "FINISHED")

    @staticmethod
    def _plain(name: str) -> str:
        """A name of characters that MLflow takes."""
        return re.sub(r"[^\w./ -]", "_", name)


def require(name: str) -> None:
    """Raise UserError where the tracker of that name is not installed."""
    package = TRACKERS[name].package
    if importlib.util.find_spec(package) is None:
        raise UserError(f"--tracker={name} needs {package}, which is not installed: `pip install '.[{name}]'`")


class TrackerWriter:
    """A writer of a run that tells a tracker; with the methods of the other writers.

    Args:
      name: name of the tracker.
      directory: the workdir, which keeps the run's id.
      fields: fields of the config, by dotted name.
      project: that the run belongs to; by default what the tracker's variable says, else "diffusion_jax".

    Raises:
      UserError: the tracker is not installed, or cannot begin a run.
    """

    def __init__(self, name: str, directory: Path, fields: Mapping[str, Any], *, project: str | None = None):
        require(name)
        self._name, self._file = name, directory / FILE
        known = (read_json(self._file) if self._file.is_file() else {}).get(name) or {}
        self._told = known.get("step", -1)  # what comes before was told by an earlier start
        self._at = self._told
        kind = TRACKERS[name]
        plain = {field: _plain_value(value) for field, value in fields.items()}
        try:
            self._tracker: Tracker | None = kind(importlib.import_module(kind.package))
            self._id = self._tracker.begin(
                project or os.environ.get(kind.variable) or PROJECT,
                directory.resolve().name,
                known.get("run"),
                plain,
                directory,
            )
        except Exception as error:  # whatever a tracker may raise, of the network or of its own
            raise UserError(
                f"{name} cannot begin a run: {_one_line(error)}; {kind.mend}, or leave out --tracker"
            ) from error
        self._note()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Numbers of a step."""
        self._tell(step, lambda tracker: tracker.scalars(step, {n: _number(value) for n, value in scalars.items()}))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Images [n, h, w, c], uint8 or floats in [-1, 1], as one picture for each name."""

        def tell(tracker: Tracker) -> None:
            for name, batch in images.items():
                tracker.picture(step, name, Image.fromarray(make_grid(batch)))

        self._tell(step, tell)

    def close(self, *, failed: bool = False) -> None:
        """End the run at the tracker, for now."""
        if self._tracker is not None:
            self._guarded(lambda tracker: tracker.end(failed=failed))
        self._tracker = None

    def _tell(self, step: int, tell: Any) -> None:
        if self._tracker is None or step < self._told:
            return
        if step > self._at:
            self._at = step
            self._note()
        self._guarded(tell)

    def _guarded(self, tell: Any) -> None:
        """Tell the tracker; one that fails is left out from then on."""
        try:
            tell(self._tracker)
        except Exception as error:  # whatever a tracker may raise, of the network or of its own
            self._tracker = None
            print(f"note: {self._name} failed, and the run goes on without it: {_one_line(error)}", file=sys.stderr)

    def _note(self) -> None:
        noted = read_json(self._file) if self._file.is_file() else {}
        noted[self._name] = {"run": self._id, "step": self._at}
        replace_file(self._file, (json.dumps(noted, indent=2) + "\n").encode(), make_folder=False)


def _plain_value(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _number(value: Any) -> float:
    return float(np.asarray(value))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
