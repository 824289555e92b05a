"""Control pictures of scenes are exact, belong to their scene, and do not change pictures or captions."""

import numpy as np
import pytest

from diffusion_jax.data import open_dataset
from diffusion_jax.data.scenes.painting import CONTROLS, control_picture, masks

OPTIONS = {"size": 32, "num_examples": 12, "num_test": 4, "textured": False}


def examples(**options):
    opened = open_dataset("scenes", **OPTIONS, **options)
    return opened, opened.source.__getitems__(range(12))


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_control_picture_is_of_its_scene(kind):
    plain, without = examples()
    opened, found = examples(control=kind)
    assert opened.info.fields == ("text", "control")
    assert opened.info.fingerprint != plain.info.fingerprint
    for one, other, (scene, _, _) in zip(found, without, plain.source.described(range(12)), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        assert one["text"] == other["text"]
        covered = masks(scene).any(axis=0)
        shown = one["control"].any(axis=-1)
        assert one["control"].shape == (32, 32, 3)
        assert not (shown & ~covered).any(), "nothing is shown of the ground"
        if kind == "edges":
            inner = covered.copy()
            for axis in (0, 1):
                for step in (-1, 1):
                    inner &= np.roll(covered, step, axis)
            assert not (shown & inner).any() or len(scene.objects) > 1
            assert (shown | inner)[covered].all(), "every pixel at the border of an object is one of its edges"
        else:
            np.testing.assert_array_equal(shown, covered)
            values = {tuple(value) for value in one["control"][covered]}
            kinds = {one.shape for one in scene.objects} if kind == "masks" else scene.objects
            assert len(values) <= len(kinds)
        np.testing.assert_array_equal(control_picture(scene, kind), one["control"])


def test_shapes_have_colours_of_their_own():
    from diffusion_jax.data.scenes import Scene, SceneObject
    from diffusion_jax.data.scenes.vocabulary import SHAPES

    found = set()
    for shape in SHAPES:
        one = SceneObject(shape=shape, colour="red", size="large", box=(0, 0, 16, 16))
        picture = control_picture(Scene(picture=16, objects=(one,)), "masks")
        found |= {tuple(map(int, value)) for value in picture[picture.any(axis=-1)]}
    assert len(found) == len(SHAPES)
