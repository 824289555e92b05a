"""The classifier that judges class-conditional samples, on real digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import ClassAccuracy, ImageSet


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"train": order[:1200], "test": order[1200:1500], "samples": order[1500:]}
    return {name: ImageSet(images=images[index], labels=labels[index]) for name, index in parts.items()}


def test_real_digits_score_as_the_judge_does(digits):
    result = ClassAccuracy()(digits["samples"], train=digits["train"], test=digits["test"])
    assert result["accuracy"] > 0.97
    assert result["classifier_test_accuracy"] > 0.97
    assert result["accuracy_low"] < result["accuracy"] < result["accuracy_high"] + 1e-12
    assert (result["num_samples"], result["num_classifier_train"], result["num_classifier_test"]) == (297, 1200, 300)


def test_per_class_accuracies_average_to_the_whole(digits):
    samples = digits["samples"]
    result = ClassAccuracy(max_train=300)(samples, train=digits["train"], test=digits["test"])
    counts = np.bincount(samples.labels, minlength=10)
    mean = sum(counts[k] * result[f"class_{k}"] for k in range(10)) / len(samples)
    assert mean == pytest.approx(result["accuracy"])
    assert result["num_classifier_train"] == 300


def test_shuffled_labels_score_chance(digits):
    samples = digits["samples"]
    shuffled = ImageSet(images=samples.images, labels=np.random.default_rng(3).permutation(samples.labels))
    result = ClassAccuracy()(shuffled, train=digits["train"], test=digits["test"])
    assert result["accuracy"] == pytest.approx(0.1, abs=0.06)
    assert result["classifier_test_accuracy"] > 0.97


def test_wrong_labels_score_nothing(digits):
    samples = digits["samples"]
    wrong = ImageSet(images=samples.images, labels=(samples.labels + 1) % 10)
    result = ClassAccuracy()(wrong, train=digits["train"], test=digits["test"])
    assert result["accuracy"] < 0.03
    assert result["accuracy_low"] >= 0.0


def test_noise_scores_chance(digits):
    rng = np.random.default_rng(0)
    noise = ImageSet(images=rng.integers(0, 256, (500, 8, 8, 1)).astype(np.uint8), labels=np.arange(500) % 10)
    assert ClassAccuracy()(noise, train=digits["train"], test=digits["test"])["accuracy"] < 0.2


def test_labels_are_needed(digits):
    bare = ImageSet(images=digits["samples"].images)
    with pytest.raises(UserError, match="the samples have none"):
        ClassAccuracy()(bare, train=digits["train"], test=digits["test"])


def test_one_class_is_not_enough(digits):
    one = ImageSet(images=digits["train"].images[:20], labels=np.zeros(20, np.int32))
    with pytest.raises(UserError, match="two classes"):
        ClassAccuracy()(digits["samples"], train=one, test=digits["test"])
