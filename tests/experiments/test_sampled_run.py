"""One call draws the same samples from a run as its command, in latents and with prompts."""

import dataclasses
import warnings

import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import StoredLatents
from diffusion_jax.specs import DataSpec
from experiments.building.restoring import restore_params
from experiments.evaluating.asked import asked_in_words
from experiments.evaluating.evaluation import generator
from tests.fresh_runs import fresh_first_stage, fresh_run, scenes_config

PROMPTS = ["a red star", "two blue rings"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on scenes whose latents are encoded in the step, with its own sampling recipe."""
    root = tmp_path_factory.mktemp("scenes")
    stage = fresh_first_stage(root / "stage")
    config = scenes_config("latents")
    config.data.dataset, config.data.image_size = "scenes", 24
    config.first_stage.update(path=str(stage), online=True)
    return fresh_run(root / "run", config)


def test_a_run_in_latents_is_sampled_as_its_command_samples_it(workdir):
    """Sampler, steps and guidance come from the config, pictures are decoded, and there are no warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, params = dj.load_model(workdir)
        drawn = dj.sample(model, params, prompts=PROMPTS, num_images=3, seed=5)
    experiment, restored, _ = restore_params(workdir)
    assert model.sampling == experiment.model.sampling
    assert model.sampling.guidance["scale"] == 2.0
    expected = generator(experiment, batch_size=8).generate(restored, asked_in_words(experiment, PROMPTS), 3, 5)
    assert drawn.shape == expected.shape == (3, 24, 24, 3)
    assert np.abs(np.asarray(drawn, int) - expected).max() <= 1
    assert expected.std() > 10
    assert drawn.captions == (*PROMPTS, PROMPTS[0])


def test_of_prepared_latents_the_pictures_are_drawn(workdir):
    model, params = dj.load_model(workdir)
    height, width, channels = model.diffused.shape
    stored = DataSpec(kind="latents", shape=(height, width, 2 * channels))
    prepared = dataclasses.replace(model, data=stored, codec=StoredLatents(first_stage=model.codec))
    one, other = (dj.sample(m, params, prompts=PROMPTS, num_inference_steps=2) for m in (model, prepared))
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_classes_of_a_model_of_texts_are_refused(workdir):
    with pytest.raises(UserError, match="unknown condition of this model 'label'; known: text"):
        dj.sample(*dj.load_model(workdir), labels=[3])
