"""Metrics of edits on true edits, on copies, on edits of other pairs, and on blurred and shifted pictures."""

import numpy as np
import pytest
from scipy import ndimage

from diffusion_jax.data.scenes import SceneOptions
from diffusion_jax.data.scenes.edits import EditSource
from diffusion_jax.errors import UserError
from diffusion_jax.metrics.edits import MOST_DB, done, ground, kept, moved, untouched

COUNT = 60


@pytest.fixture(scope="module")
def made():
    """Pictures before and after the edits, and the edits."""
    source = EditSource(SceneOptions(size=24, max_objects=2, num_examples=COUNT), "train")
    examples = source.__getitems__(range(COUNT))
    before, after = (np.stack([example[name] for example in examples]) for name in ("source", "image"))
    return before, after, source.described(range(COUNT))


def test_true_edits_are_done_and_the_edits_of_others_are_not(made):
    before, after, edits = made
    assert done(after, edits).all()
    assert done(np.roll(after, 1, axis=0), edits).mean() < 0.05
    copied = done(before, edits)
    assert copied.tolist() == [edit.kind == "nothing" for edit in edits], "to change nothing does nothing else"
    with pytest.raises(UserError, match="give one for each"):
        done(after[:2], edits)


def test_the_ground_is_read(made):
    _, after, edits = made
    assert [ground(image) for image in after] == [edit.after.ground for edit in edits]


def test_what_stays_is_measured_in_decibels(made):
    before, after, _ = made
    where = untouched(before, after)
    assert (kept(after, before, where) == MOST_DB).all()
    assert np.isnan(kept(after, before, np.zeros_like(where))).all()
    noisy = np.clip(after + np.where(np.indices(after.shape).sum(0) % 2, 8, -8), 0, 255).astype(np.uint8)
    assert abs(np.median(kept(noisy, before, where)) - 20 * np.log10(255 / 8)) < 0.5
    blurred = ndimage.gaussian_filter(after.astype(float), (0, 1, 1, 0)).astype(np.uint8)
    shuffled = np.roll(after, 1, axis=0)
    ratios = [np.nanmedian(kept(images, before, where)) for images in (after, blurred, shuffled)]
    assert ratios[0] > 90 > 40 > ratios[1] > 15 > ratios[2], ratios


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, 0.0), (0.0, -0.5), (0.5, 0.5), (1.0, -0.75)])
@pytest.mark.parametrize("size", [24, 29], ids=["even", "odd"])
def test_a_shift_is_found_to_a_tenth_of_a_pixel(size, shift):
    source = EditSource(SceneOptions(size=size, max_objects=2, num_examples=8), "train")
    for example in source.__getitems__(range(4)):
        smooth = ndimage.gaussian_filter(example["source"].astype(float), (0.7, 0.7, 0))
        still = np.rint(smooth).astype(np.uint8)
        there = np.rint(np.clip(ndimage.shift(smooth, (*shift, 0), order=3, mode="nearest"), 0, 255)).astype(np.uint8)
        motion = moved(there, still)
        assert abs(motion.down - shift[0]) < 0.1, motion
        assert abs(motion.right - shift[1]) < 0.1, motion
        assert abs(motion.zoom - 1) < 0.02, motion


def test_zoom_is_found_and_edits_do_not_count():
    source = EditSource(SceneOptions(size=32, max_objects=3, num_examples=40), "train")
    example, edit = next(
        (one, edit)
        for one, edit in zip(source.__getitems__(range(40)), source.described(range(40)), strict=True)
        if edit.kind == "recolour" and len(edit.before.objects) == 3
    )
    where = untouched(example["source"][None], example["image"][None])[0]
    assert moved(example["image"], example["source"], where).offset < 0.01, edit
    smooth = ndimage.gaussian_filter(example["source"].astype(float), (0.7, 0.7, 0))
    larger = ndimage.affine_transform(
        smooth, np.diag([1 / 1.04, 1 / 1.04, 1]), (0.5962, 0.5962, 0), order=3, mode="nearest"
    )
    found = moved(np.rint(larger).astype(np.uint8), np.rint(smooth).astype(np.uint8))
    assert abs(found.zoom - 1.04) < 0.01, found
    assert found.offset < 0.1
    flat = np.full((24, 24, 3), 90, np.uint8)
    assert np.isnan(moved(flat, flat).offset)
