"""Sampling for an evaluation continues after a stop."""

import types

import numpy as np
import pytest

from diffusion_jax.samplers import NoGuidance
from diffusion_jax.specs import DataSpec
from experiments.evaluating.drawing import Drawing


class Stopped(Exception):
    """Raised in the middle of sampling."""


class Counting:
    """A generator of constant samples i / 100 in batches of four, which stops at a given sample."""

    sampler, guidance, guide, batch_size = "counting", NoGuidance(), None, 4
    grid = types.SimpleNamespace(times=np.array([1.0, 0.0]))
    experiment = types.SimpleNamespace(
        config=types.SimpleNamespace(sampling=types.SimpleNamespace(clip_x0=False)),
        shown=types.SimpleNamespace(spec=DataSpec(kind="pixels", shape=(2, 2, 1))),
    )

    def __init__(self, stop_at=None):
        self.stop_at, self.drawn = stop_at, []

    def batches(self, params, labels, num_samples, seed, *, start=0):
        for first in range(start, num_samples, self.batch_size):
            if self.stop_at is not None and first >= self.stop_at:
                raise Stopped
            index = np.arange(first, min(first + self.batch_size, num_samples))
            self.drawn += index.tolist()
            yield np.broadcast_to((index / 100)[:, None, None, None], (len(index), 2, 2, 1)).astype(np.float32)


def drawing(directory, *, seed=0, num_samples=10):
    return Drawing.of(directory, Counting(), num_samples, seed, {"step": 5})


def test_goes_on_where_it_was(tmp_path):
    whole = drawing(tmp_path / "whole").draw(Counting(), {}, None, 0)
    with pytest.raises(Stopped):
        drawing(tmp_path / "run").draw(Counting(stop_at=8), {}, None, 0)
    second = Counting()
    found = drawing(tmp_path / "run").draw(second, {}, None, 0)
    assert second.drawn == [8, 9]
    assert (found.dtype, found.shape) == (np.uint8, (10, 2, 2, 1))
    np.testing.assert_array_equal(found, whole)
    third = Counting()
    np.testing.assert_array_equal(drawing(tmp_path / "run").draw(third, {}, None, 0), whole)
    assert len(third.drawn) <= 2  # at most the last, shorter batch


def test_is_of_everything_the_samples_depend_on(tmp_path):
    directories = {
        drawing(tmp_path).directory,
        drawing(tmp_path, seed=1).directory,
        drawing(tmp_path, num_samples=12).directory,
        Drawing.of(tmp_path, Counting(), 10, 0, {"step": 6}).directory,
    }
    assert len(directories) == 4
    assert drawing(tmp_path).directory in directories


@pytest.mark.parametrize("damage", ["cut", "gone", "count"])
def test_what_is_not_whole_is_drawn_again(tmp_path, damage):
    one = drawing(tmp_path)
    with pytest.raises(Stopped):
        one.draw(Counting(stop_at=8), {}, None, 0)
    file = one.directory / "samples.npy"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:40])
    elif damage == "gone":
        file.unlink()
    else:
        (one.directory / "drawn").write_text("")
    again = Counting()
    found = one.draw(again, {}, None, 0)
    assert again.drawn == list(range(10))
    assert found[9, 0, 0, 0] == round((0.09 + 1) * 127.5)
    one.forget()
    assert not list(tmp_path.iterdir())
