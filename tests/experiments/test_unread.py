"""A group of a config that the chosen parts do not read is refused; shipped configs state no such group."""

import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.digits_unet import get_config
from configs.objectives import RECIPES
from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES
from experiments.building.checks import READ_BY_OBJECTIVES
from experiments.building.kinds import open_experiment
from experiments.building.wiring import Experiment
from experiments.ground.config_files import load_config
from experiments.ground.fields import complete
from experiments.sweeps.ablation import overridden

ROOT = Path(__file__).parents[2]
PARTS_OF_CONFIGS = ("base", "common", "from_json", "objectives", "__init__")
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.py")) if path.stem not in PARTS_OF_CONFIGS]
VALUES = {"schedule": "edm", "prediction": "x0", "time_input": "t", "time_sampler": "uniform"}
UNREAD = [
    (name, group) for name in OBJECTIVES for group in READ_BY_OBJECTIVES if group not in OBJECTIVES.example(name).reads
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_shipped_configs_state_what_is_read_and_nothing_else(path):
    config = runpy.run_path(str(path))["get_config"]()
    if "codec" in config:  # a first stage, whose loss is of another registry
        assert not any(group in config for group in READ_BY_OBJECTIVES)
        return
    assert {group for group in READ_BY_OBJECTIVES if group in config} == OBJECTIVES.example(config.objective.name).reads


@pytest.mark.parametrize("name", RECIPES)
def test_so_do_the_recipes_of_all_objectives(name):
    config = get_config(f"objective={name}")
    assert {group for group in READ_BY_OBJECTIVES if group in config} == OBJECTIVES.example(name).reads


def test_some_objectives_read_no_such_group():
    silent = ("consistency_training", "consistency_distillation", "ict", "progressive_distillation")
    assert {(name, "time_sampler") for name in silent} <= set(UNREAD)
    assert {(name, group) for name in ("d3pm", "mdlm", "sedd", "discrete_flow") for group in VALUES} <= set(UNREAD)


@pytest.mark.parametrize(("name", "group"), UNREAD)
def test_a_group_that_is_not_read_is_refused(name, group, data_dir):
    config = get_config(f"objective={name}")
    complete(config)
    config.data.data_dir = str(data_dir)
    config.teacher.workdir = ""
    config[group] = ConfigDict({"name": VALUES[group]})
    with pytest.raises(UserError, match=f"objective {name} does not read {group}, which the config sets") as error:
        Experiment(config).check()
    others = ", ".join(part for part in READ_BY_OBJECTIVES if part in OBJECTIVES.example(name).reads) or "none"
    assert str(error.value).endswith(f"this objective reads {others}")


@pytest.mark.parametrize("name", ["d3pm", "mdlm", "sedd", "discrete_flow"])
def test_tokens_are_sampled_at_no_grid(name, data_dir):
    config = get_config(f"objective={name}")
    complete(config)
    config.data.data_dir = str(data_dir)
    Experiment(config).check()
    config.sampling.grid = ConfigDict({"name": "trailing"})
    with pytest.raises(UserError, match=r"does not read sampling\.grid"):
        Experiment(config).check()


@pytest.mark.parametrize("group", VALUES)
def test_a_group_that_is_read_and_missing_is_named(group, data_dir):
    config = get_config()
    complete(config)
    del config[group]
    with pytest.raises(UserError, match=f"objective denoising reads {group}, which the config does not have"):
        Experiment(config).check()


def test_an_ablation_may_leave_a_part_out_and_put_one_in():
    config = get_config()
    ict = overridden(config, {"time_sampler": None, "objective": {"name": "ict"}})
    assert "time_sampler" not in ict
    again = overridden(ict, {"time_sampler": {"name": "uniform"}})
    assert again.time_sampler.name == "uniform"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            (":objective=ict", "--config.time_sampler.name=uniform"),
            "the config has no group time_sampler, and objective ict does not read one; of such groups it reads "
            "schedule, prediction, time_input",
        ),
        (
            (":objective=mdlm", "--config.schedule=edm"),
            "the config has no group schedule, and objective mdlm does not read one; of such groups it reads none",
        ),
        (
            ("", "--config.objective.name=progressive_distillation"),
            "objective progressive_distillation does not read time_sampler, which the config sets",
        ),
        ((":objective=sedd", "--config.sampling.grid.name=trailing"), "sedd does not read sampling.grid"),
    ],
)
def test_by_flag(command, tmp_path, flags, said):
    argument, *others = flags
    where = (f"--workdir={tmp_path}/run", f"--config.data.data_dir={command.data_dir}")
    line = command.fails("train", f"--config=configs/digits_unet.py{argument}", *others, *where)
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["digits_unet", "digits_autoencoder"])
def test_captions_are_not_shuffled_where_nobody_is_told_them(name, data_dir):
    config = load_config(f"configs/{name}.py")
    config.data.update(data_dir=str(data_dir), shuffle_captions=True)
    experiment = open_experiment(config)
    with pytest.raises(UserError, match=r"shuffle_captions is of (captions, and what is trained|data)"):
        experiment.check()
