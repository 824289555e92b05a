"""configs/digits_unet.py:objective=NAME has a recipe for every objective, and every recipe trains."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.digits_unet import get_config
from configs.objectives import RECIPES
from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.weights import read_lpips
from experiments.building.wiring import Experiment
from experiments.running.population import Population
from tests.lpips_weights import write_random_lpips
from tests.processes import ROOT

TAUGHT = {name for name in OBJECTIVES if "teacher" in OBJECTIVES.example(name).needs}
ALIGNED = {name for name in OBJECTIVES if "aligned" in OBJECTIVES.example(name).needs}
# A small network suffices to check that a step fits together.
SMALL = {"base_channels": 8, "channel_multipliers": (1,), "attention_resolutions": ()}


def config_of(name, data_dir):
    config = get_config(f"objective={name}")
    if config.model.name == "unet":
        config.model.update(ConfigDict(SMALL))
    config.data.data_dir = str(data_dir)
    return config


def test_there_is_a_recipe_for_every_objective():
    assert set(RECIPES) == set(OBJECTIVES)
    with pytest.raises(ValueError, match="objective=NAME"):
        get_config("objective=nothing")
    with pytest.raises(ValueError, match="objective=NAME"):
        get_config("meanflow")


@pytest.mark.parametrize("name", sorted(set(RECIPES) - TAUGHT - ALIGNED))
def test_the_train_step_fits_together(name, data_dir):
    """The experiment is built and checked, and one step is traced and keeps the structure of the state."""
    experiment = Experiment(config_of(name, data_dir))
    experiment.check()
    state, batch = jax.eval_shape(experiment.init_state), experiment.abstract_batch(128)
    after, metrics = jax.eval_shape(experiment.train_step(), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "loss" in metrics


@pytest.mark.parametrize("name", sorted(TAUGHT))
def test_a_missing_teacher_is_one_clear_line(name, data_dir):
    with pytest.raises(UserError, match=r"--config\.teacher\.workdir"):
        Experiment(config_of(name, data_dir)).check()


@pytest.mark.parametrize("name", sorted(ALIGNED))
def test_missing_features_are_one_clear_line(name, data_dir):
    with pytest.raises(UserError, match=r"experiments\.prepare_features"):
        Experiment(config_of(name, data_dir)).check()


@pytest.mark.slow
def test_lpips_comes_from_the_files_that_the_config_names(data_dir, tmp_path):
    """A training starts with the LPIPS weights in its state, and is refused without the files."""
    config = config_of("consistency_training", data_dir)
    config.objective.update(distance="lpips", vgg=str(tmp_path / "vgg16.safetensors"), lpips="")
    with pytest.raises(UserError, match=r"weights of VGG-16 at .*set objective\.distance=squared"):
        Experiment(config).check()
    vgg, linear = write_random_lpips(tmp_path)
    config.objective.lpips = str(linear)
    experiment = Experiment(config)
    experiment.check()
    state = experiment.first_state()
    jax.tree.map(np.testing.assert_array_equal, state.objective_state, read_lpips(vgg, linear))
    after, _ = jax.eval_shape(experiment.train_step(), state, experiment.abstract_batch(config.train.batch_size))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    with pytest.raises(UserError, match="lpips cannot be a member of a population"):
        Population([config, config], [tmp_path / "a", tmp_path / "b"])


def test_a_sampler_for_another_kind_of_network_is_refused(data_dir):
    config = config_of("ict", data_dir)
    config.sampling.sampler = ConfigDict({"name": "heun"})
    with pytest.raises(UserError, match="trains a consistency: use consistency"):
        Experiment(config).check()
    tokens = config_of("mdlm", data_dir)
    tokens.sampling.sampler = ConfigDict({"name": "heun"})
    with pytest.raises(UserError, match=r"heun is for process gaussian, but process\.name is tokens: use .*mdlm"):
        Experiment(tokens).check()


@pytest.mark.parametrize("name", ["meanflow", "mdlm", pytest.param("vdm", marks=pytest.mark.slow)])
def test_a_run_from_the_command_line(command, tmp_path, name):
    """A run of the recipe ends with a picture and a report."""
    arguments = command.train_arguments(
        tmp_path / name,
        "--config.train.steps=20",
        f"--config.sampling.sampler.name={RECIPES[name]['sampling.sampler']['name']}",
        config=f"configs/digits_unet.py:objective={name}",
    )
    command.run("train", *arguments)
    assert (tmp_path / name / "samples" / "final.png").stat().st_size > 0
    assert (tmp_path / name / "report.html").exists()
    refused = {
        "meanflow": "task invert goes back along the flow and needs a denoiser, but sampler FlowMap asks a few-step",
        "mdlm": "--task=invert needs continuous pictures, but this run diffuses them as tokens",
    }
    if name in refused:
        picture = f"--image={ROOT / 'tests' / 'golden' / 'digit.png'}"
        assert refused[name] in command.fails("sample", f"--workdir={tmp_path / name}", "--task=invert", picture)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TAUGHT))
def test_a_run_with_a_teacher(command, tmp_path, name):
    command.run("train", *command.train_arguments(tmp_path / "teacher"))
    recipe = RECIPES[name]["sampling.sampler"]["name"]
    arguments = command.train_arguments(
        tmp_path / name,
        f"--config.teacher.workdir={tmp_path / 'teacher'}",
        f"--config.sampling.sampler.name={recipe}",
        config=f"configs/digits_unet.py:objective={name}",
    )
    command.run("train", *arguments)
    assert (tmp_path / name / "samples" / "final.png").stat().st_size > 0
