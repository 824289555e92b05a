"""The reader recovers the graph of every true picture, with stated accuracy on blurred and noisy pictures."""

import numpy as np
import pytest
from scipy import ndimage

from diffusion_jax.data.scenes import SceneOptions, SceneSource, compose, paint
from diffusion_jax.data.scenes.reading import read
from diffusion_jax.errors import UserError


def pictures(source, count):
    return np.stack([example["image"] for example in source.__getitems__(np.arange(count))])


def objects(scene):
    return sorted((one.box, one.shape, one.colour, one.size) for one in scene.objects)


def kinds(scene):
    """The sorted shapes and colours of a scene, with "" for those that the reader cannot determine."""
    return sorted((one.shape or "", one.colour or "") for one in scene.objects)


def test_the_graph_is_recovered_from_the_picture_alone(source, described):
    for found, (scene, text, required) in zip(read(pictures(source, 300)), described, strict=True):
        assert objects(found) == objects(scene)
        assert required.holds(found), text


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("size", [24, 29, 32, 48, 64])
def test_the_graph_is_recovered_from_thousands_of_pictures(size, split):
    options = SceneOptions(size=size, max_objects=4, num_examples=2000, num_test=2000)
    source = SceneSource(options, split)
    for found, (scene, _, _) in zip(read(pictures(source, 2000)), source.described(range(2000)), strict=True):
        assert objects(found) == objects(scene)


def test_shuffled_captions_are_at_chance():
    """About 3% of pictures meet the caption of another scene by chance, mostly captions that are mere labels."""
    source = SceneSource(SceneOptions(max_objects=3), "train")
    found, made = read(pictures(source, 300)), source.described(range(300))
    assert all(required.holds(scene) for scene, (_, _, required) in zip(found, made, strict=True))
    by_chance = [required.holds(found[i - k]) for i, (_, _, required) in enumerate(made) for k in range(1, 11)]
    assert np.mean(by_chance) < 0.05


@pytest.mark.parametrize(
    ("size", "sigma", "noise", "share"),
    [
        (24, 0.7, 0, 0.99),
        (24, 1.0, 0, 0.82),
        (24, 1.5, 0, 0.38),
        (32, 1.0, 0, 0.98),
        (32, 1.5, 0, 0.78),
        (24, 0, 10, 0.98),
        (24, 0, 20, 0.82),
        (32, 0, 10, 0.98),
        (32, 0, 20, 0.9),
        (32, 0, 30, 0.4),
    ],
)
def test_blurred_and_noisy_pictures(size, sigma, noise, share):
    """At least the stated share of pictures has all shapes and colours read correctly; blur in pixels, noise of 255."""
    source = SceneSource(SceneOptions(size=size, max_objects=4), "train")
    images = ndimage.gaussian_filter(pictures(source, 150).astype(np.float64), (0, sigma, sigma, 0))
    images += noise * np.random.default_rng(0).standard_normal(images.shape)
    found = read(np.clip(np.rint(images), 0, 255).astype(np.uint8))
    scenes = [scene for scene, _, _ in source.described(range(150))]
    right = np.mean([kinds(one) == kinds(scene) for one, scene in zip(found, scenes, strict=True)])
    assert share <= right <= share + 0.2


def test_an_empty_ground_and_noise_have_no_objects():
    grey = np.full((1, 32, 32, 3), 90, np.uint8)
    assert read(grey)[0].objects == ()
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    assert all(one.shape is None for scene in read(noise) for one in scene.objects)


def test_a_speck_is_no_object_and_a_second_shape_is():
    source = SceneSource(SceneOptions(max_objects=1, textured=False), "train")
    image, (scene, _, _) = pictures(source, 1)[0], source.described([0])[0]
    left, top, _, _ = scene.objects[0].box
    free = 0 if min(top, left) > 12 else 27
    specked, doubled = image.copy(), image.copy()
    specked[free : free + 2, free : free + 2] = (225, 35, 35)
    assert kinds(read(specked[None])[0]) == kinds(scene)
    start = 1 if top > 12 else 24
    doubled[start : start + 7, start : start + 7] = (40, 165, 65)
    assert kinds(read(doubled[None])[0]) == sorted([*kinds(scene), ("square", "green")])


def test_two_colours_that_touch_are_two_objects():
    image = np.full((32, 32, 3), 40, np.uint8)
    image[4:14, 4:14], image[4:14, 14:24] = (225, 35, 35), (40, 75, 225)
    assert kinds(read(image[None])[0]) == [("square", "blue"), ("square", "red")]


def test_a_shape_that_is_none_is_read_as_none():
    image = np.full((32, 32, 3), 40, np.uint8)
    image[4:28, 4:7] = image[25:28, 4:28] = (225, 35, 35)  # an L shape
    (one,) = read(image[None])[0].objects
    assert (one.shape, one.colour, one.size) == (None, "red", "large")


def test_a_colour_that_is_none_is_read_as_none():
    image = np.full((32, 32, 3), 40, np.uint8)
    image[4:14, 4:14] = (150, 240, 30)  # between yellow and green
    (one,) = read(image[None])[0].objects
    assert (one.shape, one.colour) == ("square", None)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 32, 32, 3)), np.zeros((1, 32, 32, 1), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)]
)
def test_what_the_reader_does_not_take(images):
    with pytest.raises(UserError, match="the reader of scenes takes square uint8 pictures"):
        read(images)


def test_pictures_do_not_depend_on_each_other():
    images = paint(compose(SceneOptions(size=24), "train", np.arange(8))[0])
    assert read(images)[5] == read(images[5:6])[0]
