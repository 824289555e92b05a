"""Pictures are prepared for published models as in the reference's arrays; unsupported settings are refused."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.data.model_pictures import EncoderPictures, codec_pixels, mask_pixels
from diffusion_jax.errors import UserError

ARRAYS = np.load(Path(__file__).parents[1] / "golden" / "text" / "preprocess.npz")


def last(x):
    return x.transpose(0, 2, 3, 1)


def test_they_are_the_references():
    clip = EncoderPictures.of_config(
        {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}, "resample": 3, "do_convert_rgb": True}
    )
    np.testing.assert_allclose(clip(ARRAYS["img_image"]), last(ARRAYS["clip_pixel_values"]), atol=1e-5)
    pixels = codec_pixels(ARRAYS["img_image"], 32, 48)
    np.testing.assert_allclose(pixels, last(ARRAYS["vae_pixel_values"]), atol=1e-5)
    np.testing.assert_array_equal(mask_pixels(ARRAYS["mask_image"], 32, 48), last(ARRAYS["mask_binarised"]))
    assert clip == EncoderPictures.of_config({"crop_size": 32, "size": 32})


def test_a_picture_of_the_right_size_stays():
    picture = ARRAYS["img_image"]
    np.testing.assert_allclose(codec_pixels(picture, 37, 50), picture.astype(np.float64) / 127.5 - 1, atol=1e-6)


def test_fields_change_what_is_done():
    picture = ARRAYS["img_image"]
    raw = EncoderPictures.of_config(
        {"do_resize": False, "do_center_crop": False, "do_normalize": False, "do_rescale": False}
    )
    np.testing.assert_array_equal(raw(picture), picture.astype(np.float32))
    siglip = EncoderPictures.of_config(
        {"size": {"height": 20, "width": 30}, "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    )
    assert siglip(picture).shape == (1, 20, 30, 3)
    assert np.abs(siglip(picture)).max() <= 1


def test_what_is_not_known_or_does_not_fit_is_refused():
    with pytest.raises(UserError, match="do_flip = True: there is no such field here"):
        EncoderPictures.of_config({"do_flip": True})
    with pytest.raises(UserError, match=r"a size .*longest_edge"):
        EncoderPictures.of_config({"size": {"longest_edge": 5}})
    with pytest.raises(UserError, match="a picture of 37x50 is too small for a crop of 64x64"):
        EncoderPictures(size=None, crop=(64, 64))(ARRAYS["img_image"])
    with pytest.raises(UserError, match="a picture must have 8 bits"):
        codec_pixels(ARRAYS["img_image"].astype(np.float32), 8, 8)
