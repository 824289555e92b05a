"""The files of a workdir, read for its report; missing or damaged files do no harm."""

import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.data import DatasetInfo
from diffusion_jax.errors import UserError
from experiments.ground.renamed import with_new_names
from experiments.ground.writers import METRICS_FILE, TIMINGS_FILE, read_metrics
from experiments.reports.charts import Series
from experiments.reports.metrics import read_groups

STATUS_FILE = "status.json"
_HELD_OUT = re.compile(r"^(validation|valid|val|eval|test)[_/]")


class Run:
    """The content of a workdir; `problems` names the files that could not be read."""

    def __init__(self, workdir: str | os.PathLike):
        self.given, self.path = os.fspath(workdir), Path(workdir)
        self.problems: list[str] = []
        self.config = with_new_names(ConfigDict(self._json("config.json"))).to_dict()
        self.environment = self._json("environment.json")
        self.status = self._json(STATUS_FILE)
        self.groups, self.settings = read_groups(self._json("evaluation.json"))
        self.metrics = self._rows(METRICS_FILE)
        self.timings = self._rows(TIMINGS_FILE)
        steps = {
            int(m[1]): p for p in self.path.glob("samples/*.png") if (m := re.fullmatch(r"step_(\d+)\.png", p.name))
        }
        self.pictures = dict(sorted(steps.items()))

    def _json(self, name: str) -> dict[str, Any]:
        if not (self.path / name).is_file():
            return {}
        try:
            content = json.loads((self.path / name).read_text())
        except (ValueError, OSError, RecursionError) as error:
            self.problems.append(f"{name} could not be read: {error}")
            return {}
        if not isinstance(content, dict):
            self.problems.append(f"{name} holds no object")
            return {}
        return content

    def _rows(self, name: str) -> list[dict[str, Any]]:
        if not (self.path / name).is_file():
            return []
        try:
            return read_metrics(self.path / name)
        except UserError as error:
            self.problems.append(str(error))
            return []

    def train_field(self, name: str) -> int | None:
        """A whole number of the config's `train` group."""
        group = self.config.get("train")
        value = group.get(name) if isinstance(group, dict) else None
        return value if isinstance(value, int) else None

    @property
    def unit(self) -> str:
        """The word for an example."""
        try:
            return DatasetInfo.from_json(self._json("data.json")).spec.unit
        except (TypeError, KeyError, AttributeError):  # the file is missing or damaged
            return "images"

    @property
    def reconstructs(self) -> bool:
        """Whether a first stage was trained, so that pictures are pairs."""
        return "codec" in self.config

    @property
    def is_under_way(self) -> bool:
        """Whether the process that wrote the status may still run; unknown for a process on another machine."""
        process = self.status.get("process")
        if self.status.get("state") not in ("training", "evaluating"):
            return False
        if self.status.get("host") != socket.gethostname() or not isinstance(process, int) or process <= 0:
            return True
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it belongs to another user
            return True
        return True

    @property
    def step(self) -> int | None:
        """The last step recorded in any file."""
        steps = [rows[-1]["step"] for rows in (self.metrics, self.timings) if rows] + list(self.pictures)
        return max(steps, default=None)

    def column(self, name: str, rows: list[dict[str, Any]] | None = None) -> tuple[list[int], list[float]]:
        """Steps and values for one name."""
        rows = self.metrics if rows is None else rows
        pairs = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def curves(self) -> dict[str, list[Series]]:
        """All curves by the name of their chart: `validation_loss` joins `loss`."""
        charts: dict[str, list[Series]] = {}
        names = sorted({name for row in self.metrics for name in row if name != "step"}, key=_is_held_out)
        for name in names:
            steps, values = self.column(name)
            if not values:
                continue
            held_out = _is_held_out(name)
            chart = _HELD_OUT.sub("", name).removeprefix("train/").removeprefix("train_")
            label = "validation" if held_out else "training"
            charts.setdefault(chart, []).append(Series(name=label, steps=steps, values=values, sparse=held_out))
        return charts

    def repeated(self) -> list[str]:
        """Names of charts that repeat the loss: an unweighted error is the loss itself."""
        charts = self.curves()
        loss = {one.name: one for one in charts.get("loss", [])}
        return [
            name
            for name, series in charts.items()
            if name != "loss" and all(one.name in loss and _equal(one, loss[one.name]) for one in series)
        ]


def _is_held_out(name: str) -> bool:
    return bool(_HELD_OUT.match(name))


def _equal(one: Series, other: Series) -> bool:
    same_steps = list(one.steps) == list(other.steps)
    return same_steps and np.allclose(one.values, other.values, rtol=1e-6, atol=0.0, equal_nan=True)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
