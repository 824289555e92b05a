"""Pictures in Parquet, Arrow and tar files: the same data set in each form, and errors for everything that may be
wrong."""

import io
import json
import pickle
import sys
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_jax import data
from diffusion_jax.data import arrow
from diffusion_jax.errors import UserError
from experiments.ground.readers import data_set_at

NAMES = ("cat", "dog", "owl")
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(NAMES)}}


def encoded(value, ending="PNG"):
    file = io.BytesIO()
    PIL.Image.new("RGB", (6, 4), (value, 2 * value, 3)).save(file, ending)
    return file.getvalue()


def columns(values):
    return {
        "image": [{"bytes": encoded(value), "path": f"{value}.png"} for value in values],
        "label": [value % 2 for value in values],
        "text": [f"picture {value}" for value in values],
    }


def parquet(path, values, *, named=True, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({**columns(values), **changes})
    said = {"huggingface": json.dumps({"info": {"features": FEATURES}})} if named else None
    pq.write_table(table.replace_schema_metadata(said), path, row_group_size=3)


def saved(folder, values):
    """Write two files in the format of `save_to_disk` of the datasets package."""
    folder.mkdir(parents=True)
    table, files = pa.table(columns(values)), []
    for number, part in enumerate((table.slice(0, 2), table.slice(2))):
        files.append({"filename": f"data-{number:05d}-of-00002.arrow"})
        with pa.OSFile(str(folder / files[-1]["filename"]), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as out:
            out.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def shard(values):
    files = {}
    for value in values:
        files[f"a/{value:03d}.png"] = encoded(value)
        files[f"a/{value:03d}.cls"] = f"{value % 2}\n"
        files[f"a/{value:03d}.txt"] = f"picture {value}"
    return files


def write(kind, root):
    """Write ten training pictures in two files and three test pictures; returns the name of the data set."""
    if kind == "parquet":
        parquet(root / "data" / "train-00000-of-00002.parquet", range(6))
        parquet(root / "data" / "train-00001-of-00002.parquet", range(6, 10))
        parquet(root / "data" / "test-00000-of-00001.parquet", range(10, 13))
    elif kind == "arrow":
        saved(root / "train", range(10))
        saved(root / "test", range(10, 13))
        (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    else:
        tar(root / "train" / "000.tar", shard(range(6)))
        tar(root / "train" / "001.tar", shard(range(6, 10)))
        tar(root / "test-000.tar", shard(range(10, 13)))
    return f"{kind}:{root}"


@pytest.mark.parametrize("kind", ["parquet", "arrow", "webdataset"])
def test_the_same_examples_in_every_form(kind, tmp_path):
    name = write(kind, tmp_path)
    assert data_set_at(str(tmp_path)) == name
    opened = {split: data.open_dataset(name, split=split, data_dir=tmp_path) for split in ("train", "test", "all")}
    assert {split: len(one.source) for split, one in opened.items()} == {"train": 10, "test": 3, "all": 13}
    info = opened["train"].info
    assert info.class_names == (("0", "1") if kind == "webdataset" else NAMES)
    assert info.fields == ("text",)
    for value in (0, 5, 6, 9):
        example = opened["train"].source[value]
        assert example["image"].shape == (4, 6, 3)
        assert example["image"][0, 0].tolist() == [value, 2 * value, 3]
        assert (example["label"], example["text"]) == (value % 2, f"picture {value}")
    assert opened["test"].source.texts([2, 0]) == ["picture 12", "picture 10"]
    assert opened["test"].info.fingerprint != info.fingerprint
    with pytest.raises(UserError, match=r"has no split 'dev'; its splits are test, train"):
        data.open_dataset(name, split="dev")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "webdataset"])
def test_a_share_is_held_out_of_every_class(kind, tmp_path):
    name = write(kind, tmp_path)
    kept, away = (data.open_dataset(name, split=split, held_out=0.4) for split in ("train", "held_out"))
    found = [{tuple(one["image"][0, 0]): one["label"] for one in part.source} for part in (kept, away)]
    assert not set(found[0]) & set(found[1])
    assert len({**found[0], **found[1]}) == 10
    assert sorted(found[1].values()) == [0, 0, 1, 1]
    assert kept.info.num_classes == away.info.num_classes
    with pytest.raises(UserError, match="too few pictures"):
        data.open_dataset(name, split="held_out", held_out=0.4, channels=1, **one_picture(kind, tmp_path))


def one_picture(kind, tmp_path):
    """Write a data set of one picture; returns the options that open it."""
    root = tmp_path / "one"
    if kind == "parquet":
        parquet(root / "a.parquet", [1])
    elif kind == "arrow":
        root.mkdir()
        table = pa.table(columns([1]))
        with pa.OSFile(str(root / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
        (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
        (root / "dataset_info.json").write_text("{}")
    else:
        tar(root / "a.tar", shard([1]))
    return {"path": str(root)}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "webdataset"])
def test_a_pipeline_gives_the_same_batches_from_worker_processes(kind, tmp_path):
    name = write(kind, tmp_path)
    fields = dict(dataset=name, batch_size=4, image_size=4, crop="edm", memory_limit=0, data_dir=str(tmp_path))
    pipeline = data.Pipeline(**fields)
    here = next(pipeline.batches())
    assert here["data"].shape == (4, 4, 4, 3)
    reader = pickle.loads(pickle.dumps(pipeline.reader()))
    np.testing.assert_array_equal(reader[0]["data"], here["data"])
    assert len(pickle.dumps(pipeline._opened.source.rows)) < 1000, "without what it has read"


def test_what_moves_keeps_its_fingerprint(tmp_path):
    write("parquet", tmp_path / "a")
    before = data.open_dataset(f"parquet:{tmp_path / 'a'}").info
    (tmp_path / "a").rename(tmp_path / "b")
    assert data.open_dataset(f"parquet:{tmp_path / 'b'}").info == before
    parquet(tmp_path / "b" / "data" / "train-00001-of-00002.parquet", range(7, 11))
    assert data.open_dataset(f"parquet:{tmp_path / 'b'}").info.fingerprint != before.fingerprint


def test_large_parquet_is_unpacked_once(tmp_path, monkeypatch):
    name = write("parquet", tmp_path / "set")
    small = data.open_dataset(name, data_dir=str(tmp_path / "prepared"))
    assert not (tmp_path / "prepared").exists()
    monkeypatch.setattr(arrow, "_HELD", 0)
    large = data.open_dataset(name, data_dir=str(tmp_path / "prepared"))
    (unpacked,) = (tmp_path / "prepared" / "unpacked").glob("*/rows.arrow")
    written = unpacked.stat().st_mtime_ns
    for mine, theirs in zip(small.source, large.source, strict=True):
        np.testing.assert_array_equal(mine["image"], theirs["image"])
        assert (mine["label"], mine["text"]) == (theirs["label"], theirs["text"])
    assert large.info == small.info
    data.open_dataset(name, data_dir=str(tmp_path / "prepared"))
    assert unpacked.stat().st_mtime_ns == written


def test_columns_of_other_names_and_classes_by_name(tmp_path):
    table = {
        "shot": [encoded(value, "JPEG") for value in range(4)],
        "kind": ["owl", "cat", "owl", "cat"],
        "text": ["a", "b", "c", "d"],
        "note": [1.5] * 4,
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column of pictures among shot, kind, text, note: name it"):
        data.open_dataset(f"parquet:{tmp_path}")
    options = {"image_column": "shot", "label_column": "kind", "caption_column": "none"}
    opened = data.open_dataset(f"parquet:{tmp_path / 'a.parquet'}", **options)
    assert opened.info.class_names == ("cat", "owl")
    assert opened.info.fields == ()
    assert [one["label"] for one in opened.source] == [1, 0, 1, 0]
    for option, words in (
        ({"label_column": "knd"}, "has the columns shot, kind"),
        ({"image_column": "note"}, "double"),
    ):
        with pytest.raises(UserError, match=words):
            data.open_dataset(f"parquet:{tmp_path}", **{**options, **option})


def test_a_split_has_the_classes_of_training(tmp_path):
    parquet(tmp_path / "train.parquet", range(4), named=False, label=["cat", "dog", "cat", "dog"])
    parquet(tmp_path / "test.parquet", range(4, 6), named=False, label=["dog", "dog"])
    assert [one["label"] for one in data.open_dataset(f"parquet:{tmp_path}", split="test").source] == [1, 1]
    parquet(tmp_path / "test.parquet", range(4, 6), named=False, label=["dog", "owl"])
    with pytest.raises(UserError, match="has the class 'owl', which its split 'train' lacks"):
        data.open_dataset(f"parquet:{tmp_path}", split="test")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": [0, 1, None, 1]}, "1 rows have no label: give all rows one, or set data.options.label_column=none"),
        ({"label": [0, -1, 0, 1]}, "a.parquet, row 1 has the label -1"),
        ({"label": [0, 1, 2, 3]}, "a label is 3, but there are 3 classes"),
        ({"text": ["a", None, "b", "c"]}, "a.parquet, row 1: its text is None"),
        ({"image": [{"bytes": None, "path": "x.png"}] * 4}, "row 0 names x.png and does not hold the picture"),
        ({"image": [{"bytes": b"none", "path": "x.png"}] * 4}, "cannot decode the image a.parquet, row 0"),
    ],
)
def test_rows_that_are_wrong(changes, words, tmp_path):
    parquet(tmp_path / "a.parquet", range(4), **changes)
    with pytest.raises(UserError, match=words):
        list(data.open_dataset(f"parquet:{tmp_path}").source)


def test_files_that_are_wrong(tmp_path, monkeypatch):
    for kind, ending in (("parquet", "parquet"), ("webdataset", "tar")):
        with pytest.raises(UserError, match=f"{kind}: folder .* does not exist"):
            data.open_dataset(f"{kind}:{tmp_path / 'none'}")
        with pytest.raises(UserError, match=rf"no file \*.{ending} in folder"):
            data.open_dataset(f"{kind}:{tmp_path}")
        with pytest.raises(UserError, match="needs a path"):
            data.open_dataset(kind)
    with pytest.raises(UserError, match=r"has no state\.json: give a folder that save_to_disk"):
        data.open_dataset(f"arrow:{tmp_path}")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "a.tar").write_bytes(b"no tar file" * 100)
    for kind in ("parquet", "webdataset"):
        with pytest.raises(UserError, match=r"a\.(parquet|tar)"):
            data.open_dataset(f"{kind}:{tmp_path}")
    write("parquet", tmp_path / "mixed")
    (tmp_path / "mixed" / "more.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"more\.parquet has no split in its name, but others have test, train"):
        data.open_dataset(f"parquet:{tmp_path / 'mixed'}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow, which is not installed: `pip install '\.\[arrow\]'`"):
        data.open_dataset(f"parquet:{tmp_path}")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": "a cat"}, "example a has no picture"),
        ({"a.png": encoded(1), "a.jpg": encoded(1)}, "example a has the pictures a.png and a.jpg"),
        ({"a.png": encoded(1), "a.PNG": encoded(1)}, "has a.PNG twice"),
        ({"a.png": encoded(1), "a.cls": "1", "b.png": encoded(2)}, "a.tar, b.png has no class, but others have one"),
        ({"a.png": encoded(1), "a.txt": " "}, "the caption of a is ' '"),
        ({"a.png": encoded(1), "a.json": "[1"}, "a.json is damaged or not JSON"),
        ({"a.png": encoded(1), "a.json": '{"label": 1.5}'}, "the class of a is 1.5: it must be a number or a name"),
        ({"a.png": encoded(1), "a.txt": b"\xff"}, "a.txt is not UTF-8 text"),
        ({"a.png": b"none"}, "cannot decode the image a.tar, a.png"),
        ({"a.png": encoded(1), "a.cls": "cat", "b.png": encoded(2), "b.cls": "3"}, "are numbers in some examples"),
    ],
)
def test_tar_files_that_are_wrong(files, words, tmp_path):
    tar(tmp_path / "a.tar", files)
    with pytest.raises(UserError, match=words):
        list(data.open_dataset(f"webdataset:{tmp_path}").source)


def test_tar_files_that_are_cut_off_or_compressed(tmp_path):
    tar(tmp_path / "a.tar", {"a.png": encoded(1), "b.png": encoded(2)})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:560])
    with pytest.raises(UserError, match=r"a\.tar ends within a\.png: it is cut off"):
        data.open_dataset(f"webdataset:{tmp_path}")
    with tarfile.open(tmp_path / "a.tar", "w:gz") as out:
        out.add(__file__)
    with pytest.raises(UserError, match="unpack compressed files first"):
        data.open_dataset(f"webdataset:{tmp_path}")


def test_json_beside_pictures_and_dots_in_names(tmp_path):
    about = json.dumps({"label": "owl", "caption": "an owl", "width": 6})
    tar(tmp_path / "a.tar", {"v1.0/x.png": encoded(1), "v1.0/x.json": about, "v1.0/x.seg.npy": b"passed over"})
    opened = data.open_dataset(f"webdataset:{tmp_path}")
    (example,) = opened.source
    assert (opened.info.class_names, example["text"]) == (("owl",), "an owl")


def test_the_kind_is_seen_by_what_lies_there(tmp_path):
    assert data_set_at(str(tmp_path)) == f"folder:{tmp_path}"
    assert data_set_at("x/a.tar") == "webdataset:x/a.tar"
    (tmp_path / "a.tar").touch()
    assert data_set_at(str(tmp_path)) == f"webdataset:{tmp_path}"
    (tmp_path / "b.parquet").touch()
    assert data_set_at(str(tmp_path)) == f"folder:{tmp_path}", "which of the two, the user says"
