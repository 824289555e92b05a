"""Captions describe their scenes correctly, and their requirements ask exactly for what they say."""

import numpy as np
import pytest

from diffusion_jax.data.scenes import Requirement, Scene, SceneObject, SceneOptions, SceneSource, Wanted
from diffusion_jax.data.scenes.captions import NUMBER_OF_DRAWS, caption, listed, named

STAR = SceneObject(shape="star", colour="red", size="small", box=(2, 2, 10, 10))
CIRCLE = SceneObject(shape="circle", colour="orange", size="large", box=(14, 12, 30, 28))
CROSS = SceneObject(shape="cross", colour="red", size="small", box=(20, 1, 28, 9))
SCENE = Scene(picture=32, objects=(STAR, CIRCLE), ground="dark", texture="striped")


def test_a_caption_is_met_by_its_own_scene(described):
    for scene, text, required in described:
        assert required.holds(scene), text


def test_a_caption_is_met_by_few_others():
    """Fewer than 3% of scenes meet the caption of another scene."""
    options = SceneOptions(size=32, max_objects=3, density="sentence")
    made = SceneSource(options, "train").described(np.arange(1000))
    met = [required.holds(made[i - 1][0]) for i, (_, _, required) in enumerate(made)]
    assert np.mean(met) < 0.03


def test_densities():
    low = [0.99] * NUMBER_OF_DRAWS
    assert caption(SCENE, "label", low)[0] == "orange circle"
    text, required = caption(SCENE, "sentence", low)
    assert text == "an image with a red star and an orange circle"
    assert required == Requirement(
        objects=(Wanted(shape="star", colour="red"), Wanted(shape="circle", colour="orange"))
    )
    text, required = caption(SCENE, "description", [0.0] * NUMBER_OF_DRAWS)
    assert text == (
        "two objects on a dark striped ground: a small red star at the top left; a large orange circle at the right. "
        "the red star is left of the orange circle."
    )
    assert required.objects[0] == Wanted(shape="star", colour="red", size="small", place=(0, 0))
    assert required.relations == ((0, "left of", 1),)


def test_some_sentences_name_no_colours_and_some_state_relations():
    made = SceneSource(SceneOptions(density="sentence", max_objects=2), "train").described(np.arange(2000))
    uncoloured = np.mean([required.objects[0].colour is None for _, _, required in made])
    assert 0.11 < uncoloured < 0.18
    pairs = [required for scene, _, required in made if len(scene.objects) == 2]
    assert 0.3 < np.mean([bool(required.relations) for required in pairs]) < 0.7
    assert len({text for _, text, _ in made}) > 1000


def test_words():
    assert named(Wanted(shape="cross", colour="orange"), 2) == "two orange crosses"
    assert named(Wanted(shape="star", colour="orange")) == "an orange star"
    assert named(Wanted(shape="heart")) == "a heart"
    assert (listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])) == ("a", "a and b", "a, b and c")


def test_two_alike_are_counted():
    twins = Scene(
        picture=32, objects=(STAR, CIRCLE, SceneObject(shape="star", colour="red", size="small", box=(20, 1, 28, 9)))
    )
    text, required = caption(twins, "sentence", [0.99] * NUMBER_OF_DRAWS)
    assert text == "an image with two red stars and an orange circle"
    assert required.holds(twins)
    assert not required.holds(SCENE)


@pytest.mark.parametrize(
    ("required", "holds"),
    [
        (Requirement(objects=(Wanted(shape="star"),)), False),  # the scene also contains a circle
        (Requirement(objects=(Wanted(shape="star"),), exact=False), True),
        (Requirement(objects=(Wanted(shape="star", colour="orange"),), exact=False), False),  # wrong binding
        (Requirement(objects=(Wanted(colour="orange"), Wanted(shape="star"))), True),
        (Requirement(objects=(Wanted(), Wanted())), True),
        (Requirement(objects=(Wanted(), Wanted(), Wanted())), False),
        (Requirement(objects=(Wanted(), Wanted()), relations=((0, "right of", 1),)), True),  # either may be the first
        (Requirement(objects=(Wanted(shape="star"), Wanted()), relations=((0, "right of", 1),)), False),
        (Requirement(objects=(Wanted(shape="star"), Wanted()), relations=((0, "above", 1),)), True),
        (Requirement(objects=(Wanted(shape="star", size="large"), Wanted())), False),
        (Requirement(objects=(Wanted(place=(0, 0)), Wanted(place=(2, 1)))), True),
        (Requirement(objects=(Wanted(place=(2, 0)), Wanted())), False),
    ],
)
def test_what_holds(required, holds):
    assert required.holds(SCENE) is holds


def test_a_relation_is_stated_by_a_clear_margin_only():
    assert SCENE.clearly(STAR, CIRCLE) == ("left of", "above")
    assert SCENE.clearly(CIRCLE, STAR) == ("right of", "below")
    assert SCENE.clearly(CROSS, CIRCLE) == ("above",)  # it is only 2 pixels to the right
    near = SceneObject(shape="star", colour="red", size="small", box=(4, 11, 12, 19))
    assert SCENE.clearly(STAR, near) == ("above",)
    assert SCENE.clearly(near, near) == ()
