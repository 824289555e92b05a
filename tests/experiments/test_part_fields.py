"""Walk over the fields of all parts in shipped configs with 22 bad values each: no traceback, no silent acceptance.

`test_fields.py` does the same for the fields of the runner. This file covers numbers, strings, tuples and nested parts.
"""

import functools
import json
import math
import numbers
import runpy
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from experiments.building.checks import check_read
from experiments.building.wiring import Experiment
from experiments.ground.cli import flatten
from experiments.ground.fields import FIELDS, check_fields, complete

ROOT = Path(__file__).parents[2]
PARTS_OF_CONFIGS = ("base", "common", "from_json", "objectives", "__init__")
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.py")) if path.stem not in PARTS_OF_CONFIGS]
BAD = (
    *(math.nan, math.inf, -math.inf, -1, 0, 10**22, 2**63, 1e-320, "", "garbage", None, True, [], {"a": 1}),
    *((0.9, 0.1), [math.nan], -0.0, "x" * 5000, "\0", 1.5, "uniform\n", {"name": {"name": "edm"}}),
)
# The object that is built from each group, as in `Experiment.check`.
BUILT = {
    "model": lambda e: e.network,
    "process": lambda e: (e.objective, e.process),
    "time_sampler": lambda e: e.objective,
    "objective": lambda e: e.objective,
    "optimizer": lambda e: e.optimizer,
    "sampling.sampler": lambda e: e.sampler(),
    "sampling.grid": lambda e: (check_read(e), e.grid()),
    "data.options": lambda e: e.info,
    "data.augmentation": lambda e: e.pipeline if e.stored_info is None else e.info,
}


def in_group(config, name):
    for part in name.split("."):
        config = config.get(part, ConfigDict()) if isinstance(config, ConfigDict) else ConfigDict()
    return config


@pytest.fixture(scope="module")
def shipped():
    """All shipped configs, completed with defaults."""
    configs = [runpy.run_path(str(path))["get_config"]() for path in CONFIGS]
    for config in configs:
        complete(config)
    return configs


def fields_of(configs, group):
    """Yield (config, dotted field) once for every field of every part in a group."""
    seen = set()
    for config in configs:
        part = in_group(config, group)
        for field in flatten(part) if isinstance(part, ConfigDict) else ():
            name = f"{group}.{field}"
            if (part.get("name"), field) not in seen and name not in FIELDS:
                seen.add((part.get("name"), field))
                yield config, name


def changed(config, name, value):
    """A copy of the config with another value, which may be a dict as in JSON."""
    config = config.copy_and_resolve_references().unlock()
    *groups, field = name.split(".")
    group = in_group(config, ".".join(groups))
    with group.ignore_type():
        group[field] = ConfigDict(value) if isinstance(value, dict) else value
    return config


@pytest.mark.parametrize("group", BUILT)
def test_nonsense_in_any_field_of_a_part(shipped, group, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    walked, wrong = 0, []
    for config, name in fields_of(shipped, group):
        for value in BAD:
            walked += 1
            try:
                other = changed(config, name, value)
                experiment = Experiment.planned(other)
                check_fields(other)
                BUILT[group](experiment)
                taken = in_group(other, name)
                if isinstance(taken, numbers.Number):
                    wrong += [] if math.isfinite(taken) else [f"{name} = {taken} was taken"]
                elif group in ("model", "objective"):  # a string, tuple or None: the object must have a state
                    jax.eval_shape(experiment.init_state)
            except UserError as error:
                fits = len(str(error).splitlines()) == 1 and len(str(error)) < 2500
                wrong += [] if fits else [f"{name} = {value!r:.40} gives {len(str(error))} letters: {error!s:.200}"]
            except Exception as error:  # the user would see a traceback
                wrong.append(f"{name} = {value!r:.40}: {type(error).__name__}: {error!s:.200}")
    assert not wrong, "\n".join(wrong)
    assert walked or group == "data.augmentation"


@pytest.mark.parametrize(
    ("group", "value"),
    [
        ("objective", {"name": "denoising", "weighting": 3}),
        ("process.schedule", {"name": ["edm"]}),
        ("process.prediction", 7),
    ],
)
def test_by_json_through_the_command(command, tmp_path, group, value):
    config = json.loads(runpy.run_path(str(ROOT / "configs/digits_unet.py"))["get_config"]().to_json_best_effort())
    path = tmp_path / "config.json"
    *outer, last = group.split(".")
    functools.reduce(dict.__getitem__, outer, config)[last] = value
    path.write_text(json.dumps(config))
    line = command.fails("train", f"--config=configs/from_json.py:{path}", f"--workdir={tmp_path}/run")
    assert "must be" in line
    assert not (tmp_path / "run").exists()
