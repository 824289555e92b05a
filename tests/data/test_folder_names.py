"""Folders of images: names of classes that can not be shown, and files that would be passed over in silence."""

import json
import os

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.errors import UserError


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, format="PNG")


def line_of(folder):
    with pytest.raises(UserError) as error:
        data.open_dataset(f"folder:{folder}", split="train")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("name", ["two\nlines", "tab\t", "\udcff", "bell\a"])
def test_a_class_whose_name_can_not_be_shown(name, tmp_path):
    picture(tmp_path / "cat" / "a.png")
    os.mkdir(os.fsencode(tmp_path) + b"/" + os.fsencode(name))
    picture(tmp_path / name / "a.png")
    assert f"class {name!r} has characters that cannot be shown" in line_of(tmp_path)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ('" "', "name the class"),
        ('""', "name the class"),
        ('"a\\nb"', "cannot be shown"),
        ('"\\ud800"', "cannot be shown"),
        ('"x", "label": "y"', "the field 'label' twice"),
    ],
)
def test_a_label_that_can_not_be(label, message, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "label": {label}}}')
    assert message in line_of(tmp_path)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet", "Metadata.jsonl", "metadata.json"])
def test_metadata_of_another_kind_is_not_passed_over(name, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text("file_name,label\na.png,x\n")
    assert f"{name} is not read, metadata.jsonl is" in line_of(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "x"}')
    assert data.open_dataset(f"folder:{tmp_path}", split="train").info.class_names == ("x",)


@pytest.mark.parametrize("ending", ["heic", "HEIF", "avif", "jxl", "jp2", "tga", "psd"])
def test_pictures_of_formats_that_are_not_read_are_not_passed_over(ending, tmp_path):
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "cat" / f"b.{ending}")
    line = line_of(tmp_path)
    assert f"b.{ending}" in line
    assert "convert it" in line


@pytest.mark.parametrize("ending", ["jfif", "jpe"])
def test_other_endings_of_jpeg(ending, tmp_path):
    (tmp_path / "cat").mkdir()
    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "cat" / f"a.{ending}", format="JPEG")
    assert data.open_dataset(f"folder:{tmp_path}", split="train").info.num_examples == 1


def test_what_metadata_leaves_out_is_said(tmp_path):
    """Also a caption under another field name, which would silently train without words."""
    for name in ("cat/b.PNG", "cat/c.jpg", "dog/a.png", ".hidden.png"):
        picture(tmp_path / name)
    rows = [{"file_name": "dog/a.png", "caption": "a dog"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields, pictures = data.open_dataset(f"folder:{tmp_path}").remarks
    assert "its 'caption' is not read; file_name, label, text" in fields
    assert pictures.endswith("does not list 2 pictures of its folder, left out: 'cat/b.PNG', 'cat/c.jpg'")
    rows = [{"file_name": name, "control": "dog/a.png"} for name in ("cat/c.jpg", "cat/b.PNG")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert not data.open_dataset(f"folder:{tmp_path}").remarks, "a control picture is read"
