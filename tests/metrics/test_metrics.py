"""What every registered metric must satisfy."""

import math

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import METRICS, ImageSet, evaluate_all, wilson_interval


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    centres = rng.integers(40, 216, size=(3, 6, 5, 2))

    def draw(n):
        labels = rng.integers(0, 3, size=n)
        return ImageSet(
            images=np.clip(centres[labels] + rng.normal(0, 30, (n, 6, 5, 2)), 0, 255).astype(np.uint8), labels=labels
        )

    return {"samples": draw(40), "train": draw(120), "test": draw(60)}


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_is_a_hashable_value(name):
    assert METRICS.example(name) == METRICS.example(name)
    assert hash(METRICS.example(name)) == hash(METRICS.example(name))
    assert METRICS.example(name).__doc__


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_gives_a_flat_dict_of_finite_numbers(name, data):
    result = METRICS.example(name)(data["samples"], train=data["train"], test=data["test"])
    assert result
    for key, value in result.items():
        assert isinstance(key, str)
        assert isinstance(value, int | float), key
        assert math.isfinite(value), key
        if key.endswith("_low"):
            centre = result[key.removesuffix("_low")]
            assert value <= centre <= result[key.removesuffix("_low") + "_high"]


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_is_deterministic_and_does_not_depend_on_the_order_of_samples(name, data):
    metric = METRICS.example(name)
    samples = data["samples"]
    order = np.random.default_rng(1).permutation(len(samples))
    turned = ImageSet(images=samples.images[order], labels=samples.labels[order])
    first = metric(samples, train=data["train"], test=data["test"])
    assert first == metric(samples, train=data["train"], test=data["test"])
    again = metric(turned, train=data["train"], test=data["test"])
    assert set(again) == set(first)
    for key, value in first.items():
        assert again[key] == pytest.approx(value, rel=1e-12), key


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_leaves_its_inputs_alone(name, data):
    before = {key: value.images.copy() for key, value in data.items()}
    METRICS.example(name)(data["samples"], train=data["train"], test=data["test"])
    for key, images in before.items():
        np.testing.assert_array_equal(images, data[key].images)


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_refuses_images_of_another_size(name, data):
    other = ImageSet(images=np.zeros((4, 7, 5, 2), np.uint8), labels=np.zeros(4, np.int32))
    with pytest.raises(UserError, match="resolution"):
        METRICS.example(name)(other, train=data["train"], test=data["test"])


@pytest.mark.parametrize("name", ["fid", "sfid", "kid", "inception_score", "proxy_fd"])
def test_a_metric_of_features_is_not_had_without_its_space(name):
    with pytest.raises(UserError, match=r"needs a feature space: that of (inception|proxy)"):
        METRICS.build(name)


def test_an_unknown_metric_lists_the_known_ones(data):
    with pytest.raises(UserError, match=r"did you mean 'class_accuracy'.*nearest_neighbours"):
        evaluate_all(["class_acuracy"], data["samples"], train=data["train"], test=data["test"])


def test_evaluate_all_names_each_metric(data):
    result = evaluate_all(
        {name: METRICS.example(name) for name in METRICS}, data["samples"], train=data["train"], test=data["test"]
    )
    assert list(result) == list(METRICS)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), None),
        (np.zeros((2, 4, 4), np.uint8), None),
        (np.zeros((0, 4, 4, 1), np.uint8), None),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, np.int32)),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.float32)),
    ],
)
def test_bad_image_sets_are_refused(images, labels):
    with pytest.raises(UserError):
        ImageSet(images=images, labels=labels)


def test_a_subset_is_fixed_and_keeps_pairs_together():
    full = ImageSet(images=np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1), labels=np.arange(200))
    part = full.subset(50)
    assert len(part) == 50
    np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
    np.testing.assert_array_equal(part.labels, full.subset(50).labels)
    assert full.subset(None) is full


def test_the_wilson_interval_against_its_equation_and_limits():
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    for p in (low, high):  # the ends solve (p - p_hat)^2 = z^2 p (1 - p) / n
        assert (p - 0.8) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / 10)
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    assert wilson_interval(0, 5)[1] > 0.3
    with pytest.raises(ValueError, match="6 successes"):
        wilson_interval(6, 5)
