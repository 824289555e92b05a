"""A config group that the chosen parts do not read is refused, and shipped configs contain no such group."""

import re
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.digits_unet import get_config
from configs.objectives import RECIPES
from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.samplers import SAMPLERS
from diffusion_jax.schedulers import PROCESSES
from experiments.building.checks import READ_BY_OBJECTIVES
from experiments.building.fitting import built_sampler
from experiments.building.kinds import open_experiment
from experiments.building.wiring import Experiment
from experiments.ground.config_files import load_config
from experiments.ground.fields import complete
from experiments.sweeps.ablation import overridden

ROOT = Path(__file__).parents[2]
PARTS_OF_CONFIGS = ("base", "common", "from_json", "objectives", "__init__")
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.py")) if path.stem not in PARTS_OF_CONFIGS]
TOKENS = ("d3pm", "mdlm", "sedd", "discrete_flow")
UNREAD = [
    (name, group) for name in OBJECTIVES for group in READ_BY_OBJECTIVES if group not in OBJECTIVES.example(name).reads
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_shipped_configs_state_what_is_read_and_nothing_else(path):
    config = runpy.run_path(str(path))["get_config"]()
    if "codec" in config:  # a first stage, whose loss is in another registry
        assert not any(group in config for group in ("process", *READ_BY_OBJECTIVES))
        return
    objective = OBJECTIVES.example(config.objective.name)
    assert {group for group in READ_BY_OBJECTIVES if group in config} == objective.reads
    if config.init.folder or config.teacher.inherit:  # the process comes from the model or from the teacher
        assert "process" not in config
    if config.init.folder:
        assert "model" not in config
    elif not config.teacher.inherit:
        assert PROCESSES.build(config.process).process_kind == objective.process_kind


@pytest.mark.parametrize("name", RECIPES)
def test_so_do_the_recipes_of_all_objectives(name):
    config = get_config(f"objective={name}")
    objective = OBJECTIVES.example(name)
    assert {group for group in READ_BY_OBJECTIVES if group in config} == objective.reads
    assert PROCESSES.build(config.process).process_kind == objective.process_kind


def test_some_objectives_read_no_such_group():
    silent = ("consistency_training", "consistency_distillation", "ict", "progressive_distillation")
    assert {(name, "time_sampler") for name in silent} <= set(UNREAD)
    assert {(name, "time_sampler") for name in TOKENS} <= set(UNREAD)


@pytest.mark.parametrize(("name", "group"), UNREAD)
def test_a_group_that_is_not_read_is_refused(name, group, data_dir):
    config = get_config(f"objective={name}")
    complete(config)
    config.data.data_dir = str(data_dir)
    config.teacher.workdir = ""
    config[group] = ConfigDict({"name": "uniform"})
    with pytest.raises(UserError, match=f"objective {name} does not read {group}, which the config sets") as error:
        Experiment(config).check()
    others = ", ".join(part for part in READ_BY_OBJECTIVES if part in OBJECTIVES.example(name).reads) or "none"
    assert str(error.value).endswith(f"this objective reads {others}")


@pytest.mark.parametrize("process", list(PROCESSES))
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_an_objective_of_another_process_is_refused_with_what_fits(name, process, data_dir):
    config = get_config("objective=mdlm")
    complete(config)
    config.data.data_dir = str(data_dir)
    config.process = {"gaussian": get_config(), "tokens": config, "token_chain": get_config("objective=d3pm")}[
        process
    ].process
    config.objective = ConfigDict({"name": name})
    kind = PROCESSES.build(config.process).process_kind
    if OBJECTIVES.example(name).process_kind == kind:
        return
    with pytest.raises(UserError, match=f"objective {name} is for process .*, but process.name is {process}") as error:
        Experiment(config).check()
    (fitting,) = re.findall("which fits objective (.*): change one", str(error.value))
    assert set(fitting.split(", ")) == {one for one in OBJECTIVES if OBJECTIVES.example(one).process_kind == kind}


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("process", list(PROCESSES))
def test_a_sampler_of_another_process_is_refused_with_what_fits(sampler, process):
    made = PROCESSES.example(process)
    kinds = {name: SAMPLERS.example(name).process_kind for name in SAMPLERS}
    if kinds[sampler] == made.process_kind:
        assert type(built_sampler(sampler, made)) is type(built_sampler({"name": sampler}, made))
        return
    with pytest.raises(UserError, match=f"sampler {sampler} is for process .*process.name is {process}: use ") as error:
        built_sampler(sampler, made)
    (fitting,) = re.findall("use sampler (.*)", str(error.value))
    assert set(fitting.split(", ")) == {name for name, kind in kinds.items() if kind == made.process_kind}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_are_sampled_at_no_grid(name, data_dir):
    config = get_config(f"objective={name}")
    complete(config)
    config.data.data_dir = str(data_dir)
    Experiment(config).check()
    config.sampling.grid = ConfigDict({"name": "trailing"})
    with pytest.raises(UserError, match=r"does not read sampling\.grid"):
        Experiment(config).check()


@pytest.mark.parametrize(
    ("field", "value"), [("clip_x0", True), ("projection", {"name": "repaint"}), ("inversion", {"name": "rk45"})]
)
def test_tokens_are_sampled_without_what_is_of_numbers(field, value, data_dir):
    config = get_config("objective=mdlm")
    complete(config)
    config.data.data_dir = str(data_dir)
    config.sampling[field] = value if value is True else ConfigDict(value)
    with pytest.raises(UserError, match=rf"objective mdlm does not read sampling\.{field}"):
        Experiment(config).check()


def test_a_group_that_is_read_and_missing_is_named():
    config = get_config()
    complete(config)
    del config.time_sampler
    with pytest.raises(UserError, match="objective denoising reads time_sampler, which the config does not have"):
        Experiment(config).check()
    del config.process
    with pytest.raises(UserError, match="the config lacks process, which has no default"):
        complete(config)


@pytest.mark.parametrize("part", ["schedule", "prediction", "time_input"])
def test_a_part_of_the_process_that_is_missing_is_named(part):
    config = get_config()
    complete(config)
    del config.process[part]
    with pytest.raises(UserError, match=f"process 'gaussian': missing a required argument: '{part}'"):
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
            "the config has no group time_sampler, and objective ict does not read one; of such groups it reads none",
        ),
        (
            (":objective=mdlm", "--config.process.schedule=edm"),
            "the config has no field 'process.schedule'",
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
    with pytest.raises(UserError, match=r"shuffle_captions needs (captions, but the trained model|data)"):
        experiment.check()
