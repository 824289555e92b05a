"""Input pictures and masks, and pasting a crop back."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import pictures


def test_a_box_holds_what_is_white_and_has_the_shape_that_is_asked_for():
    mask = np.zeros((100, 200), np.uint8)
    mask[40:50, 60:100] = 255
    left, top, right, bottom = pictures.crop_box(Image.fromarray(mask), 64, 64, 5)
    assert (left <= 55, top <= 35, right >= 105, bottom >= 55) == (True,) * 4
    assert right - left == bottom - top == 50
    assert pictures.crop_box(Image.fromarray(mask), 64, 64, 500) == (0, 0, 200, 100)


def test_a_crop_comes_back_to_its_place_and_leaves_the_rest():
    random = np.random.default_rng(0)
    original = Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8))
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:50] = 255
    box = pictures.crop_box(Image.fromarray(mask), 32, 32, 4)
    found = np.asarray(pictures.overlaid(Image.new("RGB", (32, 32), "red"), original, Image.fromarray(mask), box))
    white = mask == 255
    np.testing.assert_array_equal(found[~white], np.asarray(original)[~white])
    np.testing.assert_array_equal(found[white], np.broadcast_to([255, 0, 0], found[white].shape))


def test_pictures_are_bytes_or_shares():
    assert pictures.listed(np.zeros((2, 8, 8, 3)), "image")[1].size == (8, 8)
    assert pictures.masks([Image.new("L", (8, 8), 128)], 4, 4).min() == 1
    np.testing.assert_allclose(pictures.pixels([Image.new("RGB", (8, 8), "white")], 4, 4), 1)
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        pictures.listed(np.full((8, 8, 3), 2.0), "image")
    with pytest.raises(UserError, match="image"):
        pictures.listed(np.zeros((8, 8, 5), np.uint8), "image")
