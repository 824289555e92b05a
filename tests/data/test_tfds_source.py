"""Unknown, unprepared, damaged or misused TFDS data gives one line with the remedy."""

import json
import shutil
from pathlib import Path

import pytest

from diffusion_jax import data
from diffusion_jax.data.sources import describe_dataset
from diffusion_jax.errors import UserError
from tests.arrays import digits as digits_arrays


@pytest.fixture
def damaged(digits_dir, tmp_path):
    """A copy of the digits that a test may damage."""
    shutil.copytree(digits_dir, tmp_path / "data")
    return tmp_path / "data" / "digits" / "1.0.0"


def test_not_prepared(tmp_path):
    command = rf"python -m experiments\.prepare_data --dataset=cifar10 --data_dir={tmp_path}"
    with pytest.raises(UserError, match=command):
        data.open_dataset("cifar10", data_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "nearest"), [("cifra10", "cifar10"), ("digit", "digits"), ("fashion-mnist", "fashion_mnist")]
)
def test_unknown_name(name, nearest, tmp_path):
    with pytest.raises(UserError, match=f"unknown dataset '{name}'; the nearest are .*{nearest}"):
        data.open_dataset(name, data_dir=str(tmp_path))


def test_unknown_config(tmp_path):
    with pytest.raises(UserError, match=r"its configs are .*church_outdoor"):
        data.open_dataset("lsun/church", data_dir=str(tmp_path))


@pytest.mark.parametrize("split", ["validation", "train[:x%]", "train[:0%]"])
def test_wrong_split(split, digits_dir):
    with pytest.raises(UserError, match="dataset 'digits', split"):
        data.open_dataset("digits", split=split, data_dir=digits_dir)


def test_part_of_a_split(digits_dir):
    splits = ("train[:90%]", "train[90%:]", "train+test")
    sizes = [data.open_dataset("digits", split=split, data_dir=digits_dir).info.num_examples for split in splits]
    assert sizes == [1293, 144, 1797]


def test_data_prepared_as_tfrecord(damaged):
    path = damaged / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="as tfrecord, which has no random access"):
        data.open_dataset("digits", data_dir=str(damaged.parents[1]))


@pytest.mark.parametrize("damage", ["short", "zeros", "bits", "missing", "description"])
def test_damaged_files(damage, damaged):
    (path,) = damaged.glob("*train*")
    content = path.read_bytes()
    middle = len(content) // 3
    if damage == "short":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "zeros":
        path.write_bytes(bytes(len(content)))
    elif damage == "bits":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif damage == "missing":
        path.unlink()
    else:
        (damaged / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="prepare it again"):
        digits_arrays("train", damaged.parents[1])


def test_wrong_features(mock_tfds):
    with pytest.raises(UserError, match=r"no feature 'picture'; it has .*image"):
        data.open_dataset("cifar10", image_key="picture")
    for key in (None, ["image"], ""):
        with pytest.raises(UserError, match="no feature"):
            data.open_dataset("cifar10", image_key=key)
    with pytest.raises(UserError, match="no feature 'class'"):
        data.open_dataset("cifar10", label_key="class")
    with pytest.raises(UserError, match="is not a class label"):
        data.open_dataset("celeb_a", label_key="attributes")
    with pytest.raises(UserError, match=r"unknown option .*did you mean 'label_key'"):
        data.open_dataset("cifar10", label="x")


def test_another_label(mock_tfds):
    assert data.open_dataset("cifar100", label_key="coarse_label").info.num_classes == 20
    assert data.open_dataset("cifar100", label_key=None).info.num_classes == 0


def test_environment_names_the_directory(digits_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)
    assert data.default_data_dir() == digits_dir
    assert data.open_dataset("digits").info.num_examples == 1437
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert Path(data.default_data_dir()) == Path("data")


def test_described_without_being_prepared(tmp_path):
    """Shape and classes come from the code of the data set, and nothing is written."""
    info = describe_dataset("cifar10", data_dir=str(tmp_path))
    assert (info.spec.shape, info.num_classes) == ((32, 32, 3), 10)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="image_key"):
        describe_dataset("cifar10", data_dir=str(tmp_path), image_kee="image")


def test_the_fingerprint_is_of_the_data_and_not_of_the_place(digits_dir, damaged):
    info = data.open_dataset("digits", data_dir=digits_dir).info
    assert len(info.fingerprint) == 64
    assert info == data.open_dataset("digits", data_dir=str(damaged.parents[1])).info
    assert info.fingerprint == describe_dataset("digits", data_dir=digits_dir).fingerprint
    assert info.fingerprint != data.open_dataset("digits", split="test", data_dir=digits_dir).info.fingerprint


def test_the_fingerprint_of_a_data_set_that_tfds_does_not_know(damaged):
    """The fingerprint depends on the files of the data set."""
    root, found = damaged.parents[1], set()
    description = (damaged / "dataset_info.json").read_text().replace('"digits"', '"signs"')
    shutil.copytree(damaged, root / "signs" / "1.0.0")
    for path in (root / "signs" / "1.0.0").glob("digits-*"):
        path.rename(path.with_name(path.name.replace("digits", "signs")))
    (root / "signs" / "1.0.0" / "dataset_info.json").write_text(description)
    found.add(data.open_dataset("signs", data_dir=str(root)).info.fingerprint)
    path = next((root / "signs" / "1.0.0").glob("*train*"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found.add(data.open_dataset("signs", data_dir=str(root)).info.fingerprint)
    assert len(found) == 2


def test_what_is_no_image_of_eight_bits(mock_tfds):
    with pytest.raises(UserError, match="feature 'label' of dataset 'cifar10' is not an image with 8 bits"):
        data.open_dataset("cifar10", image_key="label")
