"""Data fixtures: digits prepared once, and TFDS's mock with a fix."""

import numpy as np
import pytest

from diffusion_jax import data


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A TFDS directory that contains the digits."""
    directory = tmp_path_factory.mktemp("tfds")
    data.open_dataset("digits", data_dir=str(directory))
    return str(directory)


@pytest.fixture
def mock_tfds(monkeypatch):
    """Replace TFDS by its mock, which needs no data or network: seven random examples of every data set."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.data_sources import base

    def read_one_by_one(self, keys):  # the mock's own batched read loses its `self`
        return [self[key] for key in keys]

    monkeypatch.setattr(base.BaseDataSource, "__getitems__", read_one_by_one)
    with tfds.testing.mock_data(num_examples=7):
        yield


@pytest.fixture
def random_images():
    """Random uint8 images of a given shape."""

    def make(*shape, seed=0):
        return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)

    return make
