"""The proxy's feature space on real digits: what it must rank, and what it must not depend on."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import METRICS, ImageSet
from diffusion_jax.metrics.proxy import ProxyTraining, accuracy, fingerprint, proxy_features, train_proxy

HOW = ProxyTraining(steps=300)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"train": order[:1000], "test": order[1000:1400], "samples": order[1400:]}
    return {name: ImageSet(images=images[index], labels=labels[index]) for name, index in parts.items()}


@pytest.fixture(scope="module")
def space(digits, optimised):
    return proxy_features(train_proxy(digits["train"], HOW), digits["train"], HOW)


def blurred(images, noise):
    noisy = images.images + noise * np.random.default_rng(0).standard_normal(images.images.shape)
    return ImageSet(images=np.clip(noisy, 0, 255).astype(np.uint8), labels=images.labels)


def test_the_classifier_has_learned(space, digits):
    assert accuracy(space, digits["test"]) > 0.93


def test_features_are_standardised_on_the_training_images(space, digits):
    pooled = space(digits["train"].images).pooled
    np.testing.assert_allclose(pooled.mean(axis=0), 0, atol=1e-3)
    std = pooled.std(axis=0)
    assert np.all((abs(std - 1) < 1e-3) | (std < 1e-3))


@pytest.mark.parametrize("name", ["proxy_fd", "proxy_kd"])
def test_distances_grow_with_noise(name, space, digits):
    metric = METRICS.build(name, space=space)
    real = {"train": digits["train"], "test": digits["test"]}
    values = [metric(blurred(digits["samples"], noise), **real)[name] for noise in (0, 30, 60, 120)]
    assert values == sorted(values)
    assert values[-1] > 5 * values[0]


def test_recall_falls_when_classes_are_missing(space, digits):
    metric = METRICS.build("proxy_precision_recall", space=space)
    real = {"train": digits["train"], "test": digits["test"]}
    whole = metric(digits["samples"], **real)
    few = digits["samples"].labels < 3
    part = metric(ImageSet(images=digits["samples"].images[few], labels=digits["samples"].labels[few]), **real)
    assert part["recall"] < 0.6 < whole["recall"]
    assert part["precision"] > 0.7


def test_an_image_has_the_same_features_in_any_company(space, digits):
    images = digits["test"].images
    np.testing.assert_allclose(space(images[:7]).pooled, space(images).pooled[:7], rtol=1e-4, atol=1e-5)


def test_real_images_are_seen_by_the_network_once(digits):
    """The features of real images are computed once, for any number of sample sets."""
    train, seen = digits["train"].subset(100), []
    space = proxy_features(train_proxy(train, ProxyTraining(steps=1)), train, ProxyTraining(steps=1))
    extract = type(space)._extract

    class Counting(type(space)):
        def _extract(self, images, order):
            seen.append(len(images))
            return extract(self, images, order)

    space = Counting(space.apply, space.params, space.settings, space.channels)
    metric = METRICS.build("proxy_fd", space=space)
    for seed in range(6):
        metric(blurred(digits["samples"].subset(50, seed=seed), 9), train=train, test=digits["test"].subset(70))
    assert seen.count(100) == 1
    assert seen.count(70) == 1
    assert seen.count(50) == 6


def test_of_images_on_disk_a_batch_is_read_at_a_time(digits, tmp_path):
    """Images on disk are read batch by batch, and each row of features belongs to its own image."""
    train = digits["train"].subset(900)
    space = proxy_features(train_proxy(train, ProxyTraining(steps=1)), train, ProxyTraining(steps=1))
    np.save(tmp_path / "images.npy", train.images)
    read = []

    class OnDisk(np.memmap):
        def __getitem__(self, index):
            part = super().__getitem__(index)
            read.append(part.nbytes)
            return part

    images = np.load(tmp_path / "images.npy", mmap_mode="r").view(OnDisk)
    found = space(images).pooled
    assert max(read) == space.batch_size * train.images[0].nbytes
    turned = np.random.default_rng(0).permutation(len(train))
    again = proxy_features(space.params, train, ProxyTraining(steps=1))(train.images[turned]).pooled
    np.testing.assert_array_equal(again, found[turned])


def test_training_is_repeatable_and_its_fingerprint_is_of_all_that_matters(digits):
    train = digits["train"].subset(200)
    few = ProxyTraining(steps=5)
    a, b = (proxy_features(train_proxy(train, few), train, few)(train.images).pooled for _ in range(2))
    np.testing.assert_array_equal(a, b)
    prints = {
        fingerprint(train, few),
        fingerprint(train, HOW),
        fingerprint(digits["train"], few),
        fingerprint(ImageSet(images=train.images, labels=train.labels[::-1]), few),
    }
    assert len(prints) == 4


def test_data_without_classes_is_refused(digits):
    with pytest.raises(UserError, match="labels of at least two classes"):
        train_proxy(ImageSet(images=digits["train"].images), HOW)
