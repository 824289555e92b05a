"""Crops compared with independent computations, flips, channels, and the map to [-1, 1]."""

import numpy as np
import PIL.Image
import pytest

from diffusion_jax.data import crops, to_uint8, to_unit_range, transforms
from diffusion_jax.errors import UserError


def box_halve(image):
    """Average neighbouring columns, then rows, each rounded half up as in PIL."""
    wide = image.astype(np.int64)
    wide = (wide[:, 0::2] + wide[:, 1::2] + 1) // 2
    return ((wide[0::2] + wide[1::2] + 1) // 2).astype(np.uint8)


def test_uint8_round_trip_is_exact():
    every = np.arange(256, dtype=np.uint8)
    unit = to_unit_range(every)
    assert unit.dtype == np.float32
    assert (unit[0], unit[255]) == (-1.0, 1.0)
    np.testing.assert_allclose(unit, np.arange(256) / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(to_uint8(unit), every)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, -1.001, 1.001, 9.0])), [0, 0, 255, 255])


def test_to_unit_range_does_not_touch_its_input(random_images):
    image = random_images(2, 4, 4, 1)
    before = image.copy()
    to_unit_range(image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", list(crops))
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_leaves_an_image_of_the_target_size_alone(name, channels, random_images):
    crop = crops.example(name)
    size = crop.size or 5
    image = random_images(size, size, channels)
    np.testing.assert_array_equal(crop(image), image)


@pytest.mark.parametrize("name", ["adm", "edm"])
@pytest.mark.parametrize("shape", [(37, 53, 3), (53, 37, 1), (9, 8, 3), (64, 64, 3), (5, 7, 3)])
def test_crops_give_the_target_size(name, shape, random_images):
    cropped = crops.build(name, size=8)(random_images(*shape))
    assert cropped.shape == (8, 8, shape[-1])
    assert cropped.dtype == np.uint8


def test_adm_halves_by_box_then_cuts_the_centre(random_images):
    """64x96 -> 32x48 -> 16x24 by box averages; the short side fits, so bicubic changes nothing; columns 4..19 stay."""
    image = random_images(64, 96, 3)
    expected = box_halve(box_halve(image))[:, 4:20]
    np.testing.assert_array_equal(crops.build("adm", size=16)(image), expected)


def test_adm_resizes_the_short_side_bicubically(random_images):
    """24x30 is less than twice 16, so it is resized bicubically to 16x20, and columns 2..17 remain."""
    image = random_images(24, 30, 3)
    expected = np.asarray(PIL.Image.fromarray(image).resize((20, 16), PIL.Image.Resampling.BICUBIC))[:, 2:18]
    np.testing.assert_array_equal(crops.build("adm", size=16)(image), expected)


def test_adm_halves_at_exactly_twice_the_size(random_images):
    image = random_images(16, 16, 1)
    np.testing.assert_array_equal(crops.build("adm", size=8)(image), box_halve(image))


def test_edm_cuts_the_square_before_resizing(random_images):
    """Pixels outside the central square have no influence."""
    image = random_images(20, 33, 3)
    edm = crops.build("edm", size=8)
    expected = np.asarray(PIL.Image.fromarray(image[:, 6:26]).resize((8, 8), PIL.Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(edm(image), expected)
    painted = image.copy()
    painted[:, :6] = painted[:, 26:] = 255
    np.testing.assert_array_equal(edm(painted), expected)


@pytest.mark.parametrize("name", ["adm", "edm"])
def test_crops_keep_a_gradient(name):
    """A ramp stays a ramp: the central columns of 0, 2, 4, ... become the averages of their neighbours."""
    ramp = np.broadcast_to(np.arange(0, 128, 2, dtype=np.uint8)[None, :, None], (64, 64, 1))
    columns = crops.build(name, size=16)(ramp)[8, 3:-3, 0].astype(float)
    np.testing.assert_allclose(columns, np.arange(3, 13) * 8 + 3, atol=1)


def test_pad_centres_on_black(random_images):
    image = random_images(28, 28, 1)
    padded = crops.build("pad", size=32)(image)
    np.testing.assert_array_equal(padded[2:30, 2:30], image)
    assert padded.sum() == image.sum()


def test_wrong_sizes_are_refused(random_images):
    with pytest.raises(UserError, match=r"8x9, not 8x8.*adm, edm, pad"):
        crops.build("none", size=8)(random_images(8, 9, 3))
    with pytest.raises(UserError, match="is larger"):
        crops.build("pad", size=8)(random_images(8, 9, 3))
    with pytest.raises(UserError, match="did you mean 'adm'"):
        crops.build("admm", size=8)
    with pytest.raises(UserError, match="float32"):
        crops.build("adm", size=8)(np.zeros((16, 16, 3), np.float32))


def test_flip_mirrors_the_chosen_images(random_images):
    images = random_images(4, 3, 5, 2)
    bits = np.array([0, 2**63, 2**63 - 1, 2**64 - 1], np.uint64)
    flipped = transforms.random_flip(images, bits)
    np.testing.assert_array_equal(flipped[[0, 2]], images[[0, 2]])
    np.testing.assert_array_equal(flipped[[1, 3]], images[[1, 3]][:, :, ::-1])


def test_channels(random_images):
    grey, colour = random_images(4, 5, 1), random_images(4, 5, 3)
    np.testing.assert_array_equal(transforms.with_channels(grey, 3), np.concatenate([grey] * 3, -1))
    luma = transforms.with_channels(colour, 1)[..., 0]
    np.testing.assert_allclose(luma, colour @ np.array([0.299, 0.587, 0.114]), atol=0.6)
    assert transforms.with_channels(random_images(4, 5, 4), 3).shape == (4, 5, 3)
    assert transforms.with_channels(colour, 3) is colour


def test_transparency_is_laid_on_white(random_images):
    layered = random_images(4, 5, 4)
    share = layered[..., 3:] / 255
    expected = share * layered[..., :3] + (1 - share) * 255
    np.testing.assert_allclose(transforms.with_channels(layered, 3), expected, atol=1)
    luma = expected @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(transforms.with_channels(layered, 1)[..., 0], luma, atol=1.6)
