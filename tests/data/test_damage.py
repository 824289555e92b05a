"""Every data file, damaged in every way, gives one error line that names the file."""

import gzip
import json
import os
import struct

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data import builders
from diffusion_jax.data.text import prepare_text
from tests.arrays import digits as digits_arrays
from tests.data.damage import CONTENTS, NO_FILES, copied, one_line, one_line_or_fine, other_values, spoil, with_field

EVERY = (*NO_FILES, *CONTENTS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared text with its own tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    root = tmp_path_factory.mktemp("text")
    (root / "a.txt").write_text("some words, and some words again. " * 40)
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(["some words again"], vocab_size=270, special_tokens=["<s>"])
    made.save(str(root / "words.json"))
    arguments = dict(tokenizer=str(root / "words.json"), begin="<s>", end="<s>", progress=False)
    prepare_text("c", [str(root / "a.txt")], str(root), test_files=[str(root / "a.txt")], **arguments)
    return root / "text" / "c"


@pytest.fixture
def store(prepared, tmp_path):
    return copied(prepared, tmp_path / "text" / "c")


def read_text(store):
    fields = dict(dataset="text", batch_size=2, data_dir=str(store.parents[1]), options={"corpus": "c", "length": 16})
    pipeline = data.Pipeline.from_config(fields)
    pipeline.arrays()
    pipeline.tokenizer.decode([1, 2])
    return pipeline


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("name", ["info.json", "train.bin", "tokenizer.json"])
def test_a_prepared_text(name, how, store):
    assert read_text(store).info.spec.num_values <= 270
    spoil(store / name, how)
    if (name, how) == ("info.json", "cut_end"):
        read_text(store)  # only the newline at the end is missing
    elif (name, how) == ("info.json", "missing"):
        assert "prepare it" in one_line(lambda: read_text(store), store.parent)
    elif (name, how) == ("train.bin", "zeros"):
        read_text(store)  # a valid text of zeros
    else:
        one_line(lambda: read_text(store), store / name)


FIELDS = [(name,) for name in ("tokens", "dtype", "vocabulary", "begin", "end", "tokenizer", "sha256")]


@pytest.mark.parametrize("field", [*FIELDS, ("tokens", "train"), ("sha256", "train")], ids="-".join)
def test_every_field_of_a_prepared_text(field, prepared, store):
    good = (store / "info.json").read_bytes()
    value = json.loads(good)[field[0]]
    for other in [
        *([] if field[0] == "sha256" else [...]),
        *other_values(value if len(field) == 1 else value[field[1]]),
    ]:
        if (field, other) in ((("begin",), None), (("sha256",), {})):
            continue  # valid values: a text without begin and end tokens, and the format of earlier versions
        (store / "info.json").write_bytes(good)
        with_field(store / "info.json", field, other)
        one_line(lambda: read_text(store), store)


@pytest.mark.parametrize("kind", [list, str, int, type(None)])
def test_a_description_of_another_type(kind, store):
    (store / "info.json").write_text(json.dumps({list: [], str: "x", int: 3, type(None): None}[kind]))
    one_line(lambda: read_text(store), store / "info.json")


def test_a_text_that_is_cut_or_changed_while_it_is_read(store):
    opened = data.open_dataset("text", data_dir=str(store.parents[1]), corpus="c", length=16)
    row = np.fromfile(store / "train.bin", "<u2")
    row[-1] = row[5] = 60_000
    (store / "train.bin").write_bytes(row.tobytes())
    one_line(lambda: opened.source[0], store / "train.bin")
    (store / "train.bin").write_bytes(row[:20].tobytes())
    one_line(lambda: opened.source[len(opened.source) - 1], store / "train.bin")
    (store / "train.bin").unlink()
    one_line(lambda: opened.source[0], store / "train.bin")


@pytest.mark.parametrize("how", [how for how in EVERY if how != "empty"])
@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.txt"])
def test_files_of_text(name, how, tmp_path):
    random = np.random.default_rng(0)
    content = "".join(json.dumps({"text": random.bytes(200).hex()}) + "\n" for _ in range(9)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "good.txt").write_text("good")
    spoil(tmp_path / name, how)

    def prepare():
        prepare_text(
            "c", [str(tmp_path / name)], str(tmp_path), test_files=[str(tmp_path / "good.txt")], progress=False
        )

    a_text = ("cut_start", "cut_middle", "cut_end", "zeros")  # still valid UTF-8, as every document is
    if (name, how) == ("a.jsonl", "cut_end") or (name == "a.txt" and how in a_text):
        return prepare()
    one_line(prepare, tmp_path / name)
    assert not (tmp_path / "text" / "c").exists()
    assert not list((tmp_path / "text").glob(".c.*.incomplete")), "half a text is left"


@pytest.mark.parametrize(
    "row", ['{"text": 3}', '{"text": null}', "{}", "[]", '"x"', '{"text": "\\ud800"}', '{"text": ["a"]}', "{", "NaN"]
)
def test_rows_of_text(row, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{row}\n')
    line = one_line(
        lambda: prepare_text("c", [str(tmp_path / "a.jsonl")], str(tmp_path), held_out=1, progress=False),
        tmp_path / "a.jsonl",
    )
    assert "line 2 of" in line


def test_a_document_that_is_too_long(tmp_path, monkeypatch):
    """A document above the length limit is refused, as a decompression bomb would be."""
    from diffusion_jax.data import text_preparation

    monkeypatch.setattr(text_preparation, "DOCUMENT_LIMIT", 1000)
    for name, content in [("a.txt", "x" * 1001), ("a.jsonl", json.dumps({"text": "x" * 1001}))]:
        (tmp_path / name).write_text(content)
        line = one_line(
            lambda name=name: prepare_text("c", [str(tmp_path / name)], str(tmp_path), held_out=1, progress=False),
            tmp_path / name,
        )
        assert "more than 1,000 characters" in line


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_idx_files(name, how, idx_dir, tmp_path):
    files = copied(idx_dir, tmp_path / "idx")
    spoil(files / name, how)
    one_line(lambda: builders.prepare("mnist", str(tmp_path / "data"), idx_dir=str(files), progress=False), name)
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_an_idx_file_that_promises_more_than_can_be(tmp_path):
    """A header with impossible sizes is refused."""
    path = tmp_path / "a.gz"
    for shape in [(2**31 - 1, 28, 28), (2**31 - 1,) * 3, (-1, 28, 28)]:
        path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3i", *shape) + bytes(2**20)))
        one_line(lambda: builders.read_idx(path, 3), path)


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "train"])
def test_tfds_data(name, how, digits_dir, tmp_path):
    directory = copied(digits_dir, tmp_path / "data") / "digits" / "1.0.0"
    path = next(directory.glob("*train*")) if name == "train" else directory / name
    spoil(path, how)
    harmless = name != "train" and how in ("missing", "cut_end", "circle")  # their content is in the code
    if not harmless:
        one_line(lambda: digits_arrays("train", str(tmp_path / "data")), directory)
    with one_line_or_fine(tmp_path):
        digits_arrays("train", str(tmp_path / "data"))


INFO_FIELDS = [
    ("name",),
    ("version",),
    ("splits",),
    ("fileFormat",),
    ("splits", 0, "shardLengths"),
    ("splits", 0, "name"),
]


@pytest.mark.parametrize("field", INFO_FIELDS, ids=str)
def test_every_field_of_tfds_data(field, digits_dir, tmp_path):
    """Every changed field of the description gives either the examples or one error line."""
    directory = copied(digits_dir, tmp_path / "data") / "digits" / "1.0.0"
    good = (directory / "dataset_info.json").read_bytes()
    value = json.loads(good)
    for key in field:
        value = value[key]
    for other in (..., *other_values(value), ["1"], ["1000000000"], ["-5"], "tfrecord"):
        (directory / "dataset_info.json").write_bytes(good)
        with_field(directory / "dataset_info.json", field, other)
        with one_line_or_fine("digits"):
            images, _ = digits_arrays("train", str(tmp_path / "data"))
            assert len(images) in (1, 1437)


@pytest.mark.parametrize(
    "how", [*(how for how in EVERY if how != "flipped"), "objects", "integers", "flat", "promising"]
)
def test_features(how, digits_dir, tmp_path):
    path = tmp_path / "features.npy"
    features = np.zeros((1437, 2, 3), np.float16)
    np.save(path, features)
    if how == "objects":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif how == "integers":
        np.save(path, features.astype(int))
    elif how == "flat":
        np.save(path, features[0])
    elif how == "promising":
        path.write_bytes(path.read_bytes().replace(b"1437", b"9999"))
    else:
        spoil(path, how)
    fields = dict(dataset="digits", data_dir=digits_dir, batch_size=2, features=str(path))
    one_line(lambda: next(data.Pipeline.from_config(fields).batches()), path)
    one_line(lambda: data.Pipeline.from_config(fields).info, path)


@pytest.mark.parametrize("how", [*NO_FILES, *CONTENTS])
def test_metadata_of_a_folder(how, tmp_path, random_images):
    for i in range(9):
        PIL.Image.fromarray(random_images(4, 4, 3)).save(tmp_path / f"{i}.png")
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps({"file_name": f"{i}.png", "label": "xyz" * (i + 1)}) + "\n" for i in range(9)))
    spoil(path, how)
    if how == "missing":
        assert data.open_dataset(f"folder:{tmp_path}").info.num_classes == 0
    elif how == "cut_end":
        assert data.open_dataset(f"folder:{tmp_path}").info.num_classes == 9
    else:
        one_line(lambda: data.open_dataset(f"folder:{tmp_path}"), tmp_path)


@pytest.mark.parametrize("kind", ["file", "pipe", "circle", "nul", "long"])
def test_a_data_directory_that_is_none(kind, tmp_path):
    place = tmp_path / "data"
    if kind == "file":
        place.write_text("")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "circle":
        place.symlink_to(place)
    elif kind == "long":
        place = tmp_path / ("x" * 300)
    else:
        place = f"{tmp_path}/nul\0"
    for call in (
        lambda: data.open_dataset("text", data_dir=str(place)),
        lambda: data.open_dataset("digits", data_dir=str(place)),
        lambda: prepare_text("c", [__file__], str(place), held_out=1, progress=False),
        lambda: data.open_dataset(f"folder:{place}"),
    ):
        one_line(call, tmp_path, "dataset 'folder': path")
