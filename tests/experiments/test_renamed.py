"""Configs, flags, workdirs and hashes of earlier versions are read under the current names and keep their hashes."""

import json

import pytest
from ml_collections import ConfigDict

from configs.digits_unet import get_config
from configs.objectives import RECIPES
from experiments.ground import workdir
from experiments.ground.config_files import flatten, load_config
from experiments.ground.fields import complete
from experiments.ground.renamed import names_in_hashes, new_field_names, new_flags, with_new_names
from experiments.sweeps.ablation import overridden

EARLIER = {
    "denoising": {
        "schedule": {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        "prediction": {"name": "edm", "sigma_data": 0.5},
        "time_input": {"name": "quarter_log_sigma"},
        "objective": {"name": "denoising", "weighting": "uniform"},
    },
    "d3pm": {
        "objective": {
            **{"name": "d3pm", "num_tokens": 17, "num_steps": 64, "kind": "gaussian", "cross_entropy_weight": 0.1}
        }
    },
    "mdlm": {"objective": {"name": "mdlm", "num_tokens": 17}},
    "sedd": {"objective": {"name": "sedd", "num_tokens": 17}},
    "discrete_flow": {"objective": {"name": "discrete_flow", "num_tokens": 17}},
}
# The hashes of these configs, taken before the config had a group for the process.
HASHES = {
    "denoising": "9af3674c49a2030148be38703ef7cd67a6c733ea7eb5971c6a3365d8887776ba",
    "d3pm": "727de346f17bf36321f8d9b2579342173714a558fb80bcc5db19f5ddfd15d58f",
    "mdlm": "e6798663a37489f9d197d8c14a3bf1dd51b5a733156db7b74a61311b42ad705c",
    "sedd": "b0c145ed22046f8008d055c1a98eea15c39ea78ab0dac6695019a7825e86855b",
    "discrete_flow": "d28ce4b471c9562d2e988068d24da2c58a068b9f34ed70fbc0328be26b215948",
}


def earlier(name):
    """A shipped config in its earlier form, as JSON."""
    config = workdir.to_json(get_config(f"objective={name}"))
    del config["process"], config["objective"]
    return {**config, **EARLIER[name]}


@pytest.mark.parametrize("name", EARLIER)
def test_a_config_of_before_is_the_one_of_today(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(earlier(name)))
    today = get_config(f"objective={name}")
    complete(today)
    assert workdir.to_json(workdir.read_config(tmp_path)) == workdir.to_json(today)
    assert workdir.identity(earlier(name)) == workdir.identity(workdir.to_json(today))
    found = new_field_names(flatten(ConfigDict(earlier(name))))
    if name == "sedd":  # the network received sigma without a setting
        found["process.told"] = "sigma"
    assert found == flatten(ConfigDict(workdir.to_json(get_config(f"objective={name}"))))
    assert with_new_names(today) is today


@pytest.mark.parametrize("name", EARLIER)
def test_a_config_keeps_its_hash(name):
    config = get_config(f"objective={name}")
    complete(config)
    assert workdir.digest(config) == HASHES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_names_in_hashes_lose_nothing(name):
    fields = flatten(get_config(f"objective={name}"))
    hashed = names_in_hashes(fields)
    told = {("process.name", fields["process.name"]), *([("process.told", "sigma")] if name == "sedd" else [])}
    assert len(hashed) == len(fields) - len(told)
    assert with_new_names(_nested(hashed)) == _nested(fields)


def _nested(fields):
    found = ConfigDict()
    for name, value in fields.items():
        *groups, field = name.split(".")
        inside = found
        for group in groups:
            if group not in inside:
                inside[group] = ConfigDict()
            inside = inside[group]
        inside[field] = value
    return found


def test_a_config_file_of_before(tmp_path):
    file = tmp_path / "old.py"
    groups = EARLIER["denoising"]
    file.write_text(
        "from configs.digits_unet import get_config as digits\nfrom ml_collections import ConfigDict\n\n"
        "def get_config():\n    config = digits()\n    del config.process\n"
        + "".join(f"    config.{name} = ConfigDict({value})\n" for name, value in groups.items())
        + "    return config\n"
    )
    assert workdir.digest(load_config(str(file))) == HASHES["denoising"]


def test_flags_of_before(capsys):
    words = [
        *("train", "--config=a.py", "--config.schedule.name=edm", "--config.prediction=x0", "--workdir=schedule"),
        *("--config.sampling.guidance_scale=2", "--config.objective.num_steps=4", "--config.time_sampler.name=uniform"),
    ]
    found = new_flags(words, "hybrid")
    assert found == [
        *("train", "--config=a.py", "--config.process.schedule.name=edm", "--config.process.prediction=x0"),
        *("--workdir=schedule", "--config.sampling.guidance.scale=2", "--config.objective.num_steps=4"),
        "--config.time_sampler.name=uniform",
    ]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "--config.schedule.name is --config.process.schedule.name now"
    assert len(said) == 3
    assert new_flags(["--config.objective.num_steps=4"], "d3pm") == ["--config.process.num_steps=4"]


def test_flags_of_before_through_the_command(command, tmp_path):
    line = command.fails("train", "--config=configs/digits_unet.py", f"--workdir={tmp_path}/run",
                         f"--config.data.data_dir={command.data_dir}", "--config.schedule.sigma_max=-1.0")  # fmt: skip
    assert "noise schedule 'edm': sigma_max must be a number" in line


def test_changes_of_before():
    """An ablation's overrides of earlier versions work, also a whole token objective, which defined its process."""
    config = get_config()
    changed = overridden(config, {"schedule": {"name": "vp_sde"}, "prediction": {"name": "x0"}})
    assert changed.process.schedule.to_dict() == {"name": "vp_sde"}
    assert changed.process.time_input == config.process.time_input
    none = dict.fromkeys(("schedule", "prediction", "time_input", "time_sampler"))
    tokens = overridden(config, {**none, **EARLIER["mdlm"]})
    assert tokens.process.to_dict() == {"name": "tokens", "num_tokens": 17}
    assert "time_sampler" not in tokens
