"""Distances to the training set, compared with closed forms and with brute force."""

import numpy as np
import pytest

from diffusion_jax.metrics import ImageSet, NearestNeighbours, nearest
from diffusion_jax.metrics import nearest_neighbours as module


def _noise(n, seed, size=6):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def data():
    return {"train": ImageSet(images=_noise(400, 0)), "test": ImageSet(images=_noise(300, 1))}


def test_copies_of_training_images_are_flagged(data):
    copies = ImageSet(images=data["train"].images[50:90])
    result = NearestNeighbours()(copies, **data)
    assert result["exact_copies"] == 40
    assert result["median_distance"] == 0.0
    assert result["distance_ratio"] == 0.0
    assert result["fraction_closer"] == 1.0
    assert result["held_out_exact_copies"] == 0


def test_near_copies_are_flagged_without_being_exact(data):
    near = ImageSet(images=np.clip(data["train"].images[:40].astype(int) + 1, 0, 255).astype(np.uint8))
    result = NearestNeighbours()(near, **data)
    assert result["exact_copies"] == 0
    assert result["fraction_closer"] == 1.0
    assert result["median_distance"] < 1.01 / 127.5


def test_held_out_images_match_the_baseline_exactly(data):
    result = NearestNeighbours()(data["test"], **data)
    assert result["distance_ratio"] == 1.0
    assert result["median_distance"] == result["held_out_median_distance"]
    assert result["fraction_closer"] == pytest.approx(0.01, abs=0.004)


def test_fresh_draws_of_the_same_distribution_match_the_baseline(data):
    result = NearestNeighbours()(ImageSet(images=_noise(300, 2)), **data)
    assert result["distance_ratio"] == pytest.approx(1.0, abs=0.02)
    assert result["fraction_closer"] < 0.05


def test_black_against_white_is_two():
    distance, index = nearest(np.zeros((1, 3, 3, 1), np.uint8), np.full((1, 3, 3, 1), 255, np.uint8))
    assert distance[0] == 2.0
    assert index[0] == 0


def test_all_distances_zero_in_the_baseline_give_no_ratio(data):
    result = NearestNeighbours()(ImageSet(images=_noise(10, 5)), train=data["train"], test=data["train"])
    assert "distance_ratio" not in result
    assert result["held_out_exact_copies"] == 400


def test_chunks_agree_with_brute_force_and_ties_go_to_the_first(monkeypatch):
    monkeypatch.setattr(module, "_QUERY_CHUNK", 7)
    monkeypatch.setattr(module, "_REFERENCE_CHUNK", 11)
    queries, references = _noise(23, 3, size=3), _noise(50, 4, size=3)
    references[40] = references[5]
    queries[0] = references[5]
    distances, indices = nearest(queries, references)
    difference = (queries.reshape(23, 1, -1).astype(int) - references.reshape(1, 50, -1).astype(int)) / 127.5
    table = np.sqrt(np.mean(difference**2, axis=-1))
    np.testing.assert_array_equal(indices, table.argmin(axis=1))
    np.testing.assert_allclose(distances, table.min(axis=1), rtol=1e-12)
    assert indices[0] == 5
    assert distances[0] == 0.0


def test_an_exact_copy_among_many_large_bright_images_is_zero_to_the_last_bit():
    references = np.random.default_rng(0).integers(200, 256, (20, 64, 64, 3)).astype(np.uint8)
    almost = references[3:4].copy()
    almost[0, 0, 0, 0] ^= 1
    distances, indices = nearest(np.concatenate([references[7:8], almost]), references)
    assert distances[0] == 0.0
    assert distances[1] == pytest.approx(1 / 127.5 / np.sqrt(64 * 64 * 3))
    np.testing.assert_array_equal(indices, [7, 3])
