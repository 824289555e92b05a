"""Windows around holes, enlarged canvases, and pasting of drawn pictures."""

import numpy as np
import pytest

from diffusion_jax.data.canvas import Window, blended, expanded, window_around
from diffusion_jax.errors import UserError


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def holed(height, width, top, left, rows, columns, value=255):
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + rows, left : left + columns] = value
    return mask


@pytest.mark.parametrize("size", [(24, 24), (37, 61), (100, 80), (11, 13), (24, 90), (7, 200)])
@pytest.mark.parametrize("network", [(24, 24), (16, 32)])
def test_what_is_outside_the_mask_has_the_bytes_of_the_picture(size, network):
    """Pixels outside the mask keep their bytes for all picture sizes, holes and drawn contents."""
    rng = np.random.default_rng(1)
    given = picture(*size)
    for _ in range(12):
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask = holed(*size, top, left, 1 + rng.integers(0, size[0] - top), 1 + rng.integers(0, size[1] - left))
        window = window_around(mask, *network)
        shown, hole = window.cut(given, *network), window.cut_mask(mask, *network)
        assert shown.shape == (*network, 3)
        assert hole.shape == network
        found = window.paste(picture(*network, seed=2), given, mask)
        np.testing.assert_array_equal(found[mask == 0], given[mask == 0])
        assert (found[mask > 0] != given[mask > 0]).any()
        covered = (np.arange(size[0]) >= window.top) & (np.arange(size[0]) < window.top + window.height)
        across = (np.arange(size[1]) >= window.left) & (np.arange(size[1]) < window.left + window.width)
        assert not np.where(covered[:, None] & across, 0, mask).any(), "the window holds the whole hole"


def test_a_hole_that_fits_is_shown_as_it_is():
    """Nothing is resized if the hole fits into the network's input, and drawn pixels are pasted unchanged."""
    given, mask = picture(60, 70), holed(60, 70, 20, 30, 8, 9)
    window = window_around(mask, 24, 24)
    assert (window.height, window.width) == (24, 24)
    np.testing.assert_array_equal(window.cut(given, 24, 24), given[window.top :, window.left :][:24, :24])
    drawn = picture(24, 24, seed=3)
    found = window.paste(drawn, given, mask)
    np.testing.assert_array_equal(found[20:28, 30:39], drawn[20 - window.top :, 30 - window.left :][:8, :9])


def test_a_hole_larger_than_the_network_is_shown_with_what_is_around_it():
    window = window_around(holed(100, 100, 30, 30, 40, 40), 24, 24)
    assert window == Window(left=20, top=20, width=60, height=60)
    thin = np.zeros((100, 100), np.uint8)
    thin[10:90, 50] = 255
    assert window_around(thin, 24, 24).cut_mask(thin, 24, 24).any(axis=1).sum() >= 19, "a thin line is not lost"


def test_a_whole_picture_of_the_networks_size_is_its_own_window():
    mask = np.full((24, 24), 255, np.uint8)
    assert window_around(mask, 24, 24) == Window(left=0, top=0, width=24, height=24)
    assert window_around(holed(12, 12, 3, 3, 2, 2), 24, 24) == Window(left=0, top=0, width=12, height=12)


def test_soft_masks_blend_and_their_ends_are_exact():
    given, drawn = picture(5, 5), picture(5, 5, seed=4)
    mask = np.arange(25, dtype=np.uint8).reshape(5, 5) * 10
    mask[0, 0], mask[4, 4] = 0, 255
    found = blended(given, drawn, mask)
    np.testing.assert_array_equal(found[0, 0], given[0, 0])
    np.testing.assert_array_equal(found[4, 4], drawn[4, 4])
    between = given + (drawn.astype(float) - given) * mask[..., None] / 255
    assert np.abs(found - between).max() <= 0.51


def test_a_canvas_grows_where_it_is_told_to():
    given = picture(10, 12)
    canvas, mask = expanded(given, 1, 2, 3, 4)
    assert canvas.shape == (16, 16, 3)
    np.testing.assert_array_equal(canvas[2:12, 1:13], given)
    assert (mask == 0).sum() == 120
    assert not mask[2:12, 1:13].any()
    np.testing.assert_array_equal(canvas[0, 1:13], given[0])
    for wrong in ((0, 0, 0, 0), (-1, 2, 0, 0)):
        with pytest.raises(UserError, match="a canvas grows"):
            expanded(given, *wrong)


def test_a_black_mask_is_refused():
    with pytest.raises(UserError, match="all black"):
        window_around(np.zeros((9, 9), np.uint8), 24, 24)
