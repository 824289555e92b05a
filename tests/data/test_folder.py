"""Folders of images: classes from directories or metadata, and everything that may be wrong with them."""

import json

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.errors import UserError


def save(path, value, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, value).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two cats and a dog."""
    save(tmp_path / "dog" / "a.png", (1, 2, 3))
    save(tmp_path / "cat" / "deep" / "b.PNG", (4, 5, 6))
    save(tmp_path / "cat" / "c.jpg", (7, 7, 7))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def opened(path, **options):
    return data.open_dataset(f"folder:{path}", **options)


def test_classes_are_the_directories(folder):
    dataset = opened(folder)
    assert dataset.info.class_names == ("cat", "dog")
    assert (dataset.info.num_examples, dataset.info.num_classes) == (3, 2)
    assert [example["label"] for example in dataset.source] == [0, 0, 1]
    assert dataset.source[1]["image"].shape == (4, 6, 3)
    assert dataset.source[2]["image"][0, 0].tolist() == [1, 2, 3]


def test_path_as_an_option(folder):
    pipeline = data.Pipeline(dataset="folder", options={"path": str(folder)}, batch_size=3, image_size=4, crop="edm")
    assert next(pipeline.batches())["data"].shape == (3, 4, 4, 3)


def test_a_flat_folder_has_no_classes(tmp_path):
    save(tmp_path / "a.png", (1, 1, 1))
    dataset = opened(tmp_path)
    assert dataset.info.num_classes == 0
    assert set(dataset.source[0]) == {"image"}


@pytest.mark.parametrize(("labels", "names"), [(["x", "b"], ("b", "x")), ([2, 0], ("0", "1", "2")), ([None] * 2, ())])
def test_metadata(labels, names, tmp_path):
    rows = []
    for label, file in zip(labels, ["a.png", "sub/b.png"], strict=True):
        save(tmp_path / file, (1, 1, 1))
        rows.append(json.dumps({"file_name": file} | ({} if label is None else {"label": label})))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    dataset = opened(tmp_path)
    assert dataset.info.class_names == names
    if names:
        assert [names[example["label"]] for example in dataset.source] == [str(label) for label in labels]


def test_splits_are_directories(tmp_path):
    save(tmp_path / "train" / "cat" / "a.png", (1, 1, 1))
    save(tmp_path / "test" / "cat" / "a.png", (2, 2, 2))
    assert opened(tmp_path, split="test").source[0]["image"][0, 0, 0] == 2
    with pytest.raises(UserError, match="has no split 'validation'"):
        opened(tmp_path, split="validation")


@pytest.mark.parametrize(("mode", "value"), [("L", 9), ("RGBA", (9, 9, 9, 255)), ("P", 0), ("CMYK", (0, 0, 0, 0))])
def test_every_mode_becomes_rgb_or_grey(mode, value, tmp_path):
    save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), value, mode=mode)
    assert opened(tmp_path).source[0]["image"].shape == (4, 6, 3)
    assert opened(tmp_path, channels=1).source[0]["image"].shape == (4, 6, 1)


def test_no_folder_or_nothing_in_it(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no image in folder"):
        opened(tmp_path)
    with pytest.raises(UserError, match="needs a path"):
        data.open_dataset("folder")


def test_empty_file_is_found_on_opening(folder):
    (folder / "dog" / "zero.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"zero\.png is empty"):
        opened(folder)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_image_is_named_when_decoded(damage, workers, folder):
    path = folder / "dog" / "bad.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"GIF? no, text")
    pipeline = data.Pipeline(
        dataset=f"folder:{folder}",
        batch_size=4,
        image_size=4,
        crop="adm",
        num_workers=workers,
        memory_limit=2**30 if workers == 0 else 0,
    )
    with pytest.raises(Exception, match=r"cannot decode the image .*bad\.png") as caught:
        next(pipeline.batches())
    assert isinstance(caught.value, UserError)


def test_deep_colour_is_refused(tmp_path):
    PIL.Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="8 bits"):
        _ = opened(tmp_path).source[0]


def test_images_beside_class_directories(folder):
    save(folder / "stray.png", (1, 1, 1))
    with pytest.raises(UserError, match=r"both in class directories and outside \(stray\.png\)"):
        opened(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"line 1 of .*metadata\.jsonl is damaged or no JSON"),
        ('{"label": 3}', "line 1 is not"),
        ("[]", r"line 1 of .*metadata\.jsonl holds a JSON list"),
        ('{"file_name": "gone.png"}', r"names gone\.png, which does not exist"),
        ('{"file_name": "dog/a.png", "label": 1}\n{"file_name": "cat/c.jpg"}', "all missing"),
        ('{"file_name": "dog/a.png", "label": 1.5}', "all strings"),
        ('{"file_name": "dog/a.png", "label": -1}', "negative"),
        ("", "no image"),
    ],
)
def test_wrong_metadata(text, message, folder):
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        opened(folder)
