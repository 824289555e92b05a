"""Folders of images: classes from directories or metadata, and errors for everything that may be wrong."""

import dataclasses
import json
import os
import shutil

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
    """A folder with two cats and a dog."""
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
        ("{", r"line 1 of .*metadata\.jsonl is damaged or not JSON"),
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


def test_one_number_for_a_class_in_all_splits(tmp_path):
    for split, names in {"train": "abc", "validation": "c", "test": "ac"}.items():
        for name in names:
            save(tmp_path / split / name / "0.png", (ord(name), 0, 0))
    for split in ("train", "validation", "test"):
        dataset = opened(tmp_path, split=split)
        assert dataset.info.class_names == ("a", "b", "c")
        for example in dataset.source:
            assert "abc"[example["label"]] == chr(example["image"][0, 0, 0])


def test_a_class_that_was_never_trained_on_is_refused(tmp_path):
    for split, name in [("train", "cat"), ("train", "dog"), ("test", "dog"), ("test", "fox")]:
        save(tmp_path / split / name / "0.png", (1, 1, 1))
    assert opened(tmp_path).info.class_names == ("cat", "dog")
    with pytest.raises(UserError, match=r"test has the class 'fox', which .*train lacks"):
        opened(tmp_path, split="test")


def test_splits_of_other_names_share_their_numbers(tmp_path):
    for split, names in {"fold1": ("a", "b"), "fold2": ("b", "c")}.items():
        for name in names:
            save(tmp_path / split / name / "0.png", (1, 1, 1))
    assert opened(tmp_path, split="fold1").info.class_names == ("a", "b", "c")
    assert [example["label"] for example in opened(tmp_path, split="fold2").source] == [1, 2]


@pytest.mark.parametrize(
    ("of_train", "of_test", "outcome"),
    [(["x", "y"], ["y"], [1]), ([0, 4], [3], [3]), ([0, 4], [5], "the class 5"), (["x"], [0], "are names in some")],
)
def test_metadata_of_several_splits(of_train, of_test, outcome, tmp_path):
    for split, labels in [("train", of_train), ("test", of_test)]:
        rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate(labels)]
        for row in rows:
            save(tmp_path / split / row["file_name"], (1, 1, 1))
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if isinstance(outcome, str):
        with pytest.raises(UserError, match=outcome):
            opened(tmp_path, split="test")
    else:
        assert [example["label"] for example in opened(tmp_path, split="test").source] == outcome


def test_what_may_be_split_or_class_is_refused(tmp_path):
    for name in ("car", "train", "zebra"):
        save(tmp_path / name / "0.png", (1, 1, 1))
    with pytest.raises(UserError, match=r"'train' may be a split, or a class like 'car'.*split 'all'"):
        opened(tmp_path)
    assert opened(tmp_path, split="all").info.class_names == ("car", "train", "zebra")
    assert opened(tmp_path / "train").info.num_classes == 0


def test_splits_are_no_classes(tmp_path):
    for name in ("train", "test"):
        save(tmp_path / name / "cat" / "0.png", (1, 1, 1))
    with pytest.raises(UserError, match=r"no split 'all'; its splits are test, train"):
        opened(tmp_path, split="all")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/cat/0.png"}')
    with pytest.raises(UserError, match=r"has metadata\.jsonl and a sub-directory 'train'"):
        opened(tmp_path)
    assert opened(tmp_path, split="all").info.num_examples == 1


@pytest.mark.parametrize("split", ["..", ".", "", "/tmp", "a/b", "train[:9]", ".hidden"])
def test_a_split_is_a_plain_name(split, folder):
    with pytest.raises(UserError, match="is not a plain name"):
        opened(folder, split=split)


@pytest.mark.parametrize(
    "hidden",
    [".git", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"],
)
def test_what_is_hidden_or_of_systems_is_no_class(hidden, folder):
    save(folder / hidden / "a.png", (1, 1, 1))
    save(folder / "cat" / hidden / "a.png", (1, 1, 1))
    (folder / "cat" / "._a.png").write_bytes(b"of a Macintosh")
    assert opened(folder).info.class_names == ("cat", "dog")
    assert opened(folder).info.num_examples == 3


@pytest.mark.parametrize("kind", ["file", "hard", "folder", "circle", "pointing nowhere", "pipe"])
def test_every_picture_once(kind, folder):
    """A file that is found twice, or an image name that is not a file, is an error that names it."""
    place = folder / "dog" / "twin.png"
    if kind == "file":
        place.symlink_to(folder / "dog" / "a.png")
    elif kind == "hard":
        os.link(folder / "dog" / "a.png", place)
    elif kind == "folder":
        (folder / "twin").symlink_to(folder / "dog")
    elif kind == "circle":
        (folder / "dog" / "twin").symlink_to(folder)
    elif kind == "pointing nowhere":
        place.symlink_to(folder / "gone.png")
    else:
        os.mkfifo(place)
    with pytest.raises(UserError, match="twin") as error:
        opened(folder)
    assert len(str(error.value).splitlines()) == 1


def test_links_to_what_is_elsewhere_are_followed(folder, tmp_path_factory):
    save(tmp_path_factory.mktemp("elsewhere") / "fox" / "a.png", (1, 1, 1))
    (folder / "fox").symlink_to(tmp_path_factory.getbasetemp() / "elsewhere0" / "fox")
    assert opened(folder).info.class_names == ("cat", "dog", "fox")


def test_names_that_differ_in_case_only(folder):
    save(folder / "dog" / "A.PNG", (1, 1, 1))
    with pytest.raises(UserError, match=r"A\.PNG and .*a\.png are one name if case is ignored"):
        opened(folder)
    (folder / "dog" / "A.PNG").unlink()
    save(folder / "Cat" / "other.png", (1, 1, 1))
    with pytest.raises(UserError, match="'Cat' and 'cat' differ in case only"):
        opened(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_name": "/etc/passwd"}, "only name files inside its folder"),
        ({"file_name": "../a.png"}, "only name files inside its folder"),
        ({"file_name": "cat/../dog/a.png"}, "only name files inside its folder"),
        ({"file_name": ""}, "only name files inside its folder"),
        ({"file_name": "."}, "only name files inside its folder"),
        ({"file_name": "out.png"}, "a link to a file outside"),
        ({"file_name": "nul\0.png"}, "does not exist"),
        ({"file_name": "\ud800.png"}, "does not exist"),
        ({"file_name": "cat"}, "not a regular file"),
        ({"file_name": 3}, "is not"),
        ({"file_name": ["dog/a.png"]}, "is not"),
        ({"file_name": "dog/a.png", "label": 10**9}, "below 65,536"),
        ({"file_name": "dog/a.png", "label": 10**30}, "below 65,536"),
        ({"file_name": "dog/a.png", "label": True}, "all strings"),
        ({"file_name": "dog/a.png", "label": 1.0}, "all strings"),
        ({"file_name": "dog/a.png", "label": ["x"]}, "all strings"),
        ({"file_name": "dog/a.png", "label": {}}, "all strings"),
    ],
)
def test_a_row_of_metadata_that_cannot_be(row, message, folder, tmp_path_factory):
    save(tmp_path_factory.mktemp("other") / "x.png", (1, 1, 1))
    (folder / "out.png").symlink_to(tmp_path_factory.getbasetemp() / "other0" / "x.png")
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=message) as error:
        opened(folder)
    assert "metadata.jsonl" in str(error.value) or str(folder) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("second", ["dog/a.png", "./dog/a.png", "dog//a.png"])
def test_a_picture_listed_twice(second, folder):
    rows = [{"file_name": "dog/a.png"}, {"file_name": second}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"lists dog/a\.png twice"):
        opened(folder)


def test_rows_end_at_a_newline_and_a_byte_order_mark_is_nothing(folder):
    row = json.dumps({"file_name": "dog/a.png", "label": "one\u2028two\x85three"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\n".encode())
    assert opened(folder).info.class_names == ("one\u2028two\x85three",)


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(folder, tmp_path_factory):
    first = opened(folder).info
    assert len(first.fingerprint) == 64
    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    shutil.copytree(folder, copy)
    assert opened(copy).info == first
    seen = {first.fingerprint}
    content = (copy / "dog" / "a.png").read_bytes()
    (copy / "dog" / "a.png").write_bytes(content[:-1] + b"x")  # the same number of bytes
    seen.add(opened(copy).info.fingerprint)
    (copy / "dog" / "a.png").write_bytes(content)
    (copy / "dog" / "a.png").rename(copy / "dog" / "b.png")
    seen.add(opened(copy).info.fingerprint)
    (copy / "dog" / "b.png").rename(copy / "cat" / "a.png")
    seen.add(opened(copy).info.fingerprint)
    assert len(seen) == 4


def test_large_folders_are_hashed_in_part(folder, monkeypatch):
    from diffusion_jax.data import listing

    monkeypatch.setattr(listing, "_ALL_BYTES", 10)
    monkeypatch.setattr(listing, "_START", 10)
    before, path = opened(folder).info.fingerprint, folder / "dog" / "a.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert opened(folder).info.fingerprint == before
    path.write_bytes(content + b"x")
    assert opened(folder).info.fingerprint != before


def test_the_home_directory(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert opened(f"~/{folder.name}").info == opened(folder).info
    with pytest.raises(UserError, match="does not exist"):
        opened("~nobody-of-this-name/images")


def write_rows(folder, rows):
    for row in rows:
        save(folder / row["file_name"], (1, 1, 1))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_captions(tmp_path):
    """Captions are read with the images, and appear in batches only if a preparation asks for them."""
    write_rows(
        tmp_path,
        [{"file_name": f"{name}.png", "text": text} for name, text in zip("ba", ["two", "one ☃"], strict=True)],
    )
    dataset = opened(tmp_path)
    assert dataset.info.fields == ("text",)
    assert [example["text"] for example in dataset.source] == ["two", "one ☃"]
    pipeline = data.Pipeline(dataset=f"folder:{tmp_path}", batch_size=2, image_size=4, crop="edm", shuffle=False)
    assert set(next(pipeline.batches())) == {"data"}
    assert pipeline.texts() == ["two", "one ☃"]
    for memory_limit in (0, 2**30):
        counted = data.Pipeline(
            dataset=f"folder:{tmp_path}", batch_size=2, image_size=4, crop="edm", shuffle=False,
            memory_limit=memory_limit, prepare=Lengths(),
        )  # fmt: skip
        assert next(counted.batches())["length"].tolist() == [3, 5]
        assert counted.arrays()[0].shape == (2, 4, 4, 3)
    before = dataset.info.fingerprint
    write_rows(
        tmp_path, [{"file_name": f"{name}.png", "text": text} for name, text in zip("ba", ["two", "one"], strict=True)]
    )
    assert opened(tmp_path).info.fingerprint != before, "captions are part of the data"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """A preparation that replaces each caption by its number of characters."""

    reads: tuple[str, ...] = ("text",)

    def __call__(self, raw):
        return {"length": np.array([len(text) for text in raw["text"]])}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({}, "line 2: b.png has no text, but the rows before it have one: give all rows one"),
        ({"text": None}, "line 2: the text of b.png is None: write a caption, or drop the row"),
        ({"text": "  "}, "line 2: the text of b.png is '  '"),
        ({"text": 3}, "line 2: the text of b.png is 3"),
    ],
)
def test_captions_with_holes(tmp_path, second, message):
    write_rows(tmp_path, [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", **second}])
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_captions_that_begin_late(tmp_path):
    write_rows(tmp_path, [{"file_name": "a.png"}, {"file_name": "b.png", "text": "two"}])
    with pytest.raises(UserError, match=r"line 2: b\.png has text, but the rows before it have none"):
        opened(tmp_path)


def test_a_data_set_without_captions_says_so(tmp_path):
    save(tmp_path / "a.png", (1, 1, 1))
    with pytest.raises(UserError, match="has no captions"):
        data.Pipeline(dataset=f"folder:{tmp_path}", batch_size=1, image_size=4, crop="edm").texts()


def names(split, path, share=0.25):
    return set(opened(path, split=split, held_out=share).source.files)


def test_a_share_of_every_class_is_held_out(tmp_path):
    """The split depends on file names: a new picture moves at most one of its class; no picture is in both splits."""
    for i in range(12):
        save(tmp_path / "cat" / f"{i}.png", (i, 0, 0))
    for i in range(4):
        save(tmp_path / "dog" / f"{i}.png", (0, i, 0))
    save(tmp_path / "owl" / "alone.png", (0, 0, 1))
    train, held_out = names("train", tmp_path), names("held_out", tmp_path)
    assert not train & held_out
    assert train | held_out == set(opened(tmp_path).source.files)
    assert sorted(name[:3] for name in held_out) == ["cat"] * 3 + ["dog"]
    labels = {opened(tmp_path, split=split, held_out=0.25).info.class_names for split in ("train", "held_out")}
    assert labels == {("cat", "dog", "owl")}
    save(tmp_path / "cat" / "new.png", (99, 0, 0))
    assert len(names("held_out", tmp_path) ^ held_out) <= 2


def test_too_few_pictures_to_hold_one_out(tmp_path):
    save(tmp_path / "a.png", (1, 2, 3))
    for split in ("train", "held_out"):
        with pytest.raises(UserError, match=r"too few pictures, 1, .*set data\.options\.held_out=0"):
            opened(tmp_path, split=split, held_out=0.1)
    with pytest.raises(UserError, match="no split 'held_out'"):
        opened(tmp_path, split="held_out")
