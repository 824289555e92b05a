"""Each prompt has a requirement and a scene that meets it, and held-out pairs occur only where they should."""

import collections

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.scenes import SceneOptions, SceneSource, held_out_pairs
from diffusion_jax.data.scenes.prompts import CATEGORIES, UNCOLOURED, PromptSuite
from diffusion_jax.data.scenes.reading import read

OPTIONS = SceneOptions(size=24, max_objects=3)


@pytest.fixture(scope="module")
def suite():
    return PromptSuite(OPTIONS, 360)


def pairs(prompt):
    return {(OPTIONS.shapes.index(one.shape), OPTIONS.colours.index(one.colour)) for one in prompt.requirement.objects}


def test_every_category_comes_as_often(suite):
    assert collections.Counter(prompt.category for prompt in suite) == dict.fromkeys(CATEGORIES, 60)
    assert [prompt.category for prompt in suite[:6]] == list(CATEGORIES)
    assert len(suite) == 360


def test_half_of_the_prompts_with_colours_have_a_held_out_pair(suite):
    out = {tuple(pair) for pair in held_out_pairs(OPTIONS).tolist()}
    for prompt in suite:
        if prompt.category in UNCOLOURED:
            assert prompt.held_out is None
        else:
            assert prompt.held_out == bool(pairs(prompt) & out)
    assert collections.Counter(prompt.held_out for prompt in suite) == {None: 120, False: 120, True: 120}
    assert PromptSuite(SceneOptions(held_out=0.0), 60)[9].held_out is False


def test_the_true_scene_of_a_prompt_is_what_it_asks_for(suite):
    seen = read(suite.pictures(range(360)))
    assert all(prompt.requirement.holds(scene) for prompt, scene in zip(suite, seen, strict=True))


def test_a_prompt_requires_what_its_category_says(suite):
    for prompt in suite:
        objects = prompt.requirement.objects
        assert prompt.requirement.exact
        assert len(objects) == 1 or prompt.category not in ("single_object", "colours")
        if prompt.category == "counting":
            assert len(set(objects)) == 1
            assert 2 <= len(objects) <= 3
        if prompt.category in ("two_objects", "position", "colour_binding"):
            assert len({one.shape for one in objects}) == len(objects)
        if prompt.category == "colour_binding":
            assert len({one.colour for one in objects}) == len(objects)
        assert bool(prompt.requirement.relations) == (prompt.category == "position")
        for one in objects:
            assert one.shape in prompt.text
            assert (one.colour is None) or one.colour in prompt.text


def test_one_text_requires_one_thing(suite):
    for prompt in suite:
        assert suite.by_text()[prompt.text] == prompt


def test_prompts_are_made_of_the_words_of_captions(suite):
    captions = SceneSource(OPTIONS, "train").described(np.arange(3000))
    known = {word for _, text, _ in captions for word in text.replace(",", " ").split()}
    assert {word for prompt in suite for word in prompt.text.replace(",", " ").split()} <= known


@pytest.mark.parametrize(
    ("options", "categories"),
    [
        ({"max_objects": 1}, ("single_object", "colours")),
        ({"shapes": ("star",), "held_out": 0.0}, ("single_object", "colours")),
        ({"shapes": ("star", "ring"), "colours": ("red", "blue"), "held_out": 0.5}, CATEGORIES),
    ],
)
def test_categories_are_those_that_the_options_allow(options, categories):
    suite = PromptSuite(SceneOptions(**options), 60)
    assert suite.categories == categories
    seen = read(suite.pictures(range(60)))
    assert all(prompt.requirement.holds(scene) for prompt, scene in zip(suite, seen, strict=True))


def test_the_pipeline_has_the_prompts():
    pipeline = data.Pipeline(dataset="scenes", batch_size=4, options={"size": 24, "max_objects": 2})
    assert pipeline.prompts == PromptSuite(SceneOptions(size=24, max_objects=2))
    assert data.Pipeline(dataset="synthetic_latents", batch_size=4).prompts == ()
