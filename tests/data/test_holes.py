"""Random holes depend only on seed and position; a stated share covers the whole picture, others leave a strip."""

import numpy as np
import pytest

from diffusion_jax.data import Pipeline
from diffusion_jax.data.holes import Boxes, hole_words, holes
from diffusion_jax.errors import UserError

COUNT = 2000


@pytest.fixture(scope="module")
def masks():
    return Boxes()(hole_words(0, 0, COUNT), 24, 32)[..., 0]


def test_shares_are_as_stated(masks):
    assert set(np.unique(masks)) == {0.0, 1.0}
    share = masks.mean((1, 2))
    assert (share > 0).all()
    assert abs((share == 1).mean() - Boxes().whole) < 0.04
    strips = [~mask.astype(bool) for mask in masks if mask.min() == 0]
    kept = [(rows := strip.any(1), columns := strip.any(0)) and strip[np.ix_(rows, columns)].all() for strip in strips]
    full = [strip.any(1).all() != strip.any(0).all() for strip in strips]
    assert 0.15 < np.mean(np.logical_and(kept, full)) < 0.4, "a strip alone is left of some"


def test_a_hole_depends_on_seed_and_position_alone(masks):
    np.testing.assert_array_equal(Boxes()(hole_words(0, 5, 9), 24, 32)[..., 0], masks[5:9])
    assert (Boxes()(hole_words(1, 0, COUNT), 24, 32)[..., 0] != masks).any()
    assert not np.array_equal(masks[0], masks[1])


def test_batches_have_a_mask_beside_the_picture():
    options = {"size": 24, "num_examples": 8, "num_test": 4}
    pipeline = Pipeline(dataset="scenes", batch_size=4, options=options, holes={"name": "boxes"})
    first = pipeline.reader()[0]
    assert first["mask"].shape == (4, 24, 24, 1)
    assert first["mask"].dtype == np.float32
    np.testing.assert_array_equal(pipeline.reader(1, 2)[0]["mask"], first["mask"][2:])
    assert "mask" not in Pipeline(dataset="scenes", batch_size=4, options=options).reader()[0]


def test_what_makes_no_holes_is_refused():
    for wrong in ({"smallest": 0.8}, {"whole": 0.9, "beyond": 0.2}, {"most": 9}, {"least": 1}):
        with pytest.raises(UserError):
            holes.build({"name": "boxes", **wrong})
    assert not holes.build("none").any
