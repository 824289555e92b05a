"""Invalid values in any leaf field of any shipped config are refused, by flag and by JSON."""

import json
import math
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from diffusion_jax.domains import check
from diffusion_jax.errors import UserError
from experiments.ground.cli import flatten
from experiments.ground.fields import FIELDS, check_fields

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if "\ndef get_config(" in path.read_text())
CONFIGS.remove(ROOT / "configs" / "from_json.py")
BAD = (
    *(math.nan, math.inf, -math.inf, -1, 0, 10**22, 2**63, 1e-320, "", "garbage", None, True, [], {"a": 1}),
    *((0.9, 0.1), [math.nan], -0.0, "x" * 5000, "\0", 1.5),
)


def refusal(call, *arguments):
    """The message of the UserError, or None if there was none."""
    try:
        call(*arguments)
    except UserError as error:
        return str(error)
    return None


def shipped(path):
    return runpy.run_path(str(path))["get_config"]()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_within_bounds_and_every_field_is_known(path):
    config = shipped(path)
    check_fields(config)
    again = ConfigDict(json.loads(config.to_json_best_effort()))
    check_fields(again)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_nonsense_in_any_field_of_the_runner(path):
    config = shipped(path)
    for name in flatten(config):
        if name not in FIELDS:
            continue
        *groups, field = name.split(".")
        for value in BAD:
            changed = config.copy_and_resolve_references().unlock()
            group = changed
            for part in groups:
                group = group[part]
            with group.ignore_type():
                group[field] = value
            error = refusal(check_fields, changed)
            if error is None:
                kind, _, bounds, _ = FIELDS[name]
                check(name, group[field], kind, bounds)  # the config group turns True into the number 1
            else:
                assert field in error
                assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling.guidance_scale": 2.0}, "did you mean 'sampling.guidance'"),
        ({"train.stepz": 3}, "did you mean 'train.steps'"),
        ({"trian": {"steps": 3}}, "did you mean 'train'"),
        ({"train": 3}, "train must be a group"),
        ({"evaluation.bins": 1}, "evaluation.bins must be a whole number of at least 2"),
        ({"sampling.batch_size": 0}, "sampling.batch_size must be"),
        ({"checkpoint.best_mode": "anything"}, "'min' or 'max'"),
        ({"optimizer.clip_norm": -1.0}, "optimizer.clip_norm must be a number of at least 0"),
        ({"ema.ramp_up_ratio": math.nan}, "ema.ramp_up_ratio must be a number above 0"),
        ({"parallel.rules": ("garbage",)}, "parallel.rules must be"),
    ],
)
def test_what_is_refused(change, message):
    config = shipped(ROOT / "configs" / "digits_unet.py").unlock()
    for name, value in change.items():
        *groups, field = name.split(".")
        group = config
        for part in groups:
            group = group[part]
        with config.ignore_type():
            group[field] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        check_fields(config)
