"""Prompt adherence is 1 for true scenes, chance for shuffled ones, and falls in the category of an error."""

import dataclasses

import numpy as np
import pytest

from diffusion_jax.data.scenes import SceneOptions
from diffusion_jax.data.scenes.prompts import CATEGORIES, PromptSuite
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import METRICS, ImageSet, PromptAdherence, adherence

SUITE = PromptSuite(SceneOptions(size=32, max_objects=3), 240)


@pytest.fixture(scope="module")
def true():
    return ImageSet(images=SUITE.pictures(range(240)), texts=[prompt.text for prompt in SUITE])


@pytest.fixture(scope="module")
def found(true):
    return PromptAdherence(prompts=SUITE)(true, train=true, test=true)


def test_true_scenes_score_1_in_every_category(found):
    for name in (*CATEGORIES, "adherence", "adherence_seen", "adherence_held_out", "ceiling"):
        assert found[name] == 1
    assert found["adherence_low"] == pytest.approx(240 / (240 + 1.959964**2), rel=1e-6)  # Wilson, 240 of 240
    assert found["adherence_high"] == 1
    assert found["counting_low"] == pytest.approx(40 / (40 + 1.959964**2), rel=1e-6)
    assert found["shuffled"] < 0.02


def test_shuffled_pictures_score_chance(true, found):
    shuffled = dataclasses.replace(true, images=np.roll(true.images, 7, axis=0))
    result = PromptAdherence(prompts=SUITE)(shuffled, train=true, test=true)
    assert result["adherence"] < 0.05
    assert result["ceiling"] == 1
    assert result["shuffled"] == pytest.approx(found["shuffled"], abs=0.02)


def test_what_is_wrong_is_wrong_in_its_category(true):
    """Mirrored pictures fail only prompts with left or right; exchanging red and blue lowers the score of colours."""
    metric = PromptAdherence(prompts=SUITE)
    mirrored = metric(dataclasses.replace(true, images=true.images[:, :, ::-1]), train=true, test=true)
    sideways = [p.requirement.relations[0][1] in ("left of", "right of") for p in SUITE if p.category == "position"]
    assert mirrored["position"] == pytest.approx(1 - np.mean(sideways))
    assert all(mirrored[name] == 1 for name in CATEGORIES if name != "position")
    turned = metric(dataclasses.replace(true, images=true.images[..., ::-1]), train=true, test=true)  # swaps red, blue
    assert turned["single_object"] == turned["two_objects"] == 1
    assert turned["colours"] < 0.5


def test_seen_and_held_out_are_told_apart(true):
    images = true.images.copy()
    images[[bool(prompt.held_out) for prompt in SUITE]] = 90
    result = PromptAdherence(prompts=SUITE)(dataclasses.replace(true, images=images), train=true, test=true)
    assert (result["adherence_seen"], result["adherence_held_out"]) == (1, 0)


def test_the_scorer_takes_pictures_and_requirements_alone():
    requirements = [prompt.requirement for prompt in SUITE[:12]]
    assert adherence(SUITE.pictures(range(12)), requirements).all()
    assert not adherence(SUITE.pictures(range(6, 12)), requirements[:6]).any()
    with pytest.raises(UserError, match="12 pictures for 3 requirements"):
        adherence(SUITE.pictures(range(12)), requirements[:3])


def test_what_it_does_not_judge(true):
    metric = PromptAdherence(prompts=SUITE)
    with pytest.raises(UserError, match="they have none"):
        metric(dataclasses.replace(true, texts=None), train=true, test=true)
    with pytest.raises(UserError, match="the requirements of 'a cat' are unknown"):
        metric(dataclasses.replace(true, texts=("a cat",) * len(true)), train=true, test=true)
    with pytest.raises(UserError, match=r"data\.dataset=scenes has them"):
        METRICS.build("prompt_adherence", prompts=())


def test_the_ceiling_of_latents_is_that_of_their_first_stage(true):
    """A first stage that loses the colours of half of the pictures halves the round-trip score."""

    def round_trip(images):
        made = images.copy()
        made[::2] = made[::2].mean(-1, keepdims=True).astype(np.uint8)
        return made

    result = PromptAdherence(prompts=SUITE, round_trip=round_trip)(true, train=true, test=true)
    assert result["ceiling"] == 1
    assert result["round_trip"] == 0.5
