"""Prepared data sets: digits equal scikit-learn's, and idx files are read back by stock TFDS."""

import gzip
import json
import multiprocessing
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from diffusion_jax import data
from diffusion_jax.data import builders, scenes
from diffusion_jax.errors import UserError
from tests.arrays import digits as digits_arrays
from tests.data.damage import copied


def sources(name, directory):
    return {split: tfds.data_source(name, split=split, data_dir=str(directory)) for split in ("train", "test")}


def test_digits_equal_scikit_learns(digits_dir):
    digits = load_digits()
    seen = {}
    for split, source in sources("digits", digits_dir).items():
        for example in source:
            seen[int(example["index"])] = split
            original = digits.images[example["index"]]
            np.testing.assert_array_equal(np.rint(example["image"][..., 0] * (16 / 255)), original)
            assert example["image"].max() <= 255
            assert example["label"] == digits.target[example["index"]]
    assert sorted(seen) == list(range(1797))  # disjoint and complete
    assert sum(split == "test" for split in seen.values()) == 360


def test_digits_split_is_stratified(digits_dir):
    counts = {split: np.bincount(digits_arrays(split, digits_dir)[1]) for split in ("train", "test")}
    share = counts["test"] / (counts["train"] + counts["test"])
    assert np.abs(share - 0.2).max() < 0.005


def test_digits_use_the_whole_range(digits_dir):
    images, _ = digits_arrays("train", digits_dir)
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17


def test_prepared_scenes_are_those_that_are_made_when_read(tmp_path, monkeypatch):
    """Prepared scenes, read by stock TFDS, equal generated ones in image, caption, graph and order."""
    monkeypatch.setattr(scenes.SceneSource, "__len__", lambda self: 20 if self.split == "train" else 5)
    prepared = builders.prepare("scenes/24", str(tmp_path), progress=False)
    assert prepared.num_examples == {"train": 20, "validation": 5, "test": 5, "held_out": 5}
    for split in ("train", "held_out"):
        made = scenes.SceneSource(scenes.SceneOptions(size=24), split)
        records = tfds.data_source("scenes/24", split=split, data_dir=str(tmp_path))
        read = data.open_dataset("scenes/24", split=split, data_dir=str(tmp_path)).source
        graphs = [scene for scene, _, _ in made.described(range(5))]
        for i in range(5):
            np.testing.assert_array_equal(read[i]["image"], made[i]["image"])
            assert read[i]["text"] == made[i]["text"] == records[i]["text"].decode()
            boxes = [tuple(one["box"]) for one in json.loads(records[i]["graph"])["objects"]]
            assert boxes == [one.box for one in graphs[i].objects]
    with pytest.raises(UserError, match=r"'graph'.*is not a class label"):
        data.open_dataset("scenes/24", data_dir=str(tmp_path), label_key="graph")
    with pytest.raises(UserError, match=r"'index'.*is not a text"):
        data.open_dataset("scenes/24", data_dir=str(tmp_path), text_key="index")


def _open_digits(directory):
    return data.open_dataset("digits", data_dir=directory).info.num_examples


def test_several_processes_may_prepare_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_open_digits, [str(tmp_path)] * 3, chunksize=1) == [1437] * 3
    assert not list(tmp_path.glob(".preparing-*"))


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, split):
        yield 0, {"image": np.zeros(3), "label": 0, "index": 0}

    monkeypatch.setattr(builders.Digits, "_generate_examples", fail)
    with pytest.raises(Exception, match=r"."):
        builders.prepare("digits", str(tmp_path), progress=False)
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.glob(".preparing-*"))
    monkeypatch.undo()
    assert _open_digits(str(tmp_path)) == 1437


def test_digits_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the data set to"):
        data.open_dataset("digits", data_dir=str(tmp_path / "file" / "data"))


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "kmnist"])
def test_idx_files_are_read_back_by_stock_tfds(name, idx_dir, tmp_path):
    prepared = builders.prepare(name, str(tmp_path), idx_dir=str(idx_dir), progress=False)
    assert prepared.num_examples == {"train": 12, "test": 128}
    assert not prepared.was_there
    assert Path(prepared.directory).parts[-2:] == (name, "3.0.1")
    for split, stem in [("train", "train"), ("test", "t10k")]:
        expected = builders.read_idx(idx_dir / f"{stem}-images-idx3-ubyte.gz", 3)
        source = sources(name, tmp_path)[split]
        images = sorted(example["image"].tobytes() for example in source)
        assert images == sorted(image.tobytes() for image in expected)
        for example in source:
            (index,) = np.flatnonzero((expected == example["image"][..., 0]).all((1, 2)))
            assert example["label"] == index % 10
    assert builders.prepare(name, str(tmp_path), progress=False).was_there
    info = data.open_dataset(name, data_dir=str(tmp_path)).info
    assert (info.spec.shape, info.num_classes, info.num_examples) == ((28, 28, 1), 10, 12)


def test_fashion_mnist_keeps_its_class_names(idx_dir, tmp_path):
    builders.prepare("fashion_mnist", str(tmp_path), idx_dir=str(idx_dir), progress=False)
    assert data.open_dataset("fashion_mnist", data_dir=str(tmp_path)).info.class_names[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "cannot read the idx file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x0c"), "not an idx file of 3-dimensional"),
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3i", 12, 28, 28) + b"x"), "cut short"),
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3i", 12, 28, 28) + bytes(12 * 784))[:-20], "cannot read"),
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3i", 3, 28, 28) + bytes(3 * 784)), "as many labels"),
    ],
    ids=["no_gzip", "no_images", "short", "damaged", "other_number"],  # the bytes contain the time of compression
)
def test_damaged_idx_files(content, message, idx_dir, tmp_path):
    files = copied(idx_dir, tmp_path / "idx")
    (files / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        builders.prepare("mnist", str(tmp_path / "data"), idx_dir=str(files), progress=False)
    assert not list((tmp_path / "data").rglob("dataset_info.json"))


def test_missing_idx_files(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has no train-images-idx3-ubyte\.gz"):
        builders.prepare("mnist", str(tmp_path), idx_dir=str(tmp_path), progress=False)
    monkeypatch.setattr(builders, "_has_tensorflow", lambda: False)
    monkeypatch.setattr(builders, "FASHION_MNIST_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"apt install dataset-fashion-mnist.*--idx_dir"):
        builders.prepare("fashion_mnist", str(tmp_path), progress=False)
    with pytest.raises(UserError, match=r"no idx files for mnist: give --idx_dir"):
        builders.prepare("mnist", str(tmp_path), progress=False)


def test_without_a_network(tmp_path, monkeypatch):
    import requests

    def fail(*_, **__):
        raise requests.exceptions.ConnectionError("no route")

    monkeypatch.setattr(requests.Session, "get", fail)
    with pytest.raises(UserError, match=r"cannot download 'cifar10'.*network"):
        builders.prepare("cifar10", str(tmp_path), progress=False)


def test_files_that_must_be_brought_by_hand(tmp_path):
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar.*--manual_dir"):
        builders.prepare("imagenet2012", str(tmp_path), progress=False)


def test_a_builder_that_needs_tensorflow(tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import cifar

    def generate(self, *_, **__):
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    monkeypatch.setattr(cifar.Cifar10, "_split_generators", generate)
    with pytest.raises(UserError, match=r"needs TensorFlow to prepare it: `pip install \.\[tf\]`"):
        builders.prepare("cifar10", str(tmp_path), progress=False)
