"""Prepared latents are written in shards, resumed after a stop, read back as a data set, and checked for damage."""

import dataclasses
import json

import numpy as np
import pytest

from diffusion_jax.data import DatasetInfo, Pipeline, open_dataset
from diffusion_jax.data.latents import LatentWriter
from diffusion_jax.errors import UserError
from diffusion_jax.specs import DataSpec

COUNT, SHARD = 23, 10
EIGHTS = DataSpec(kind="pixels", shape=(8, 8, 1))
PICTURES = DatasetInfo(name="digits", split="train", num_examples=COUNT, spec=EIGHTS, num_classes=3)
LATENTS = np.random.default_rng(0).normal(size=(COUNT, 4, 4, 8)).astype(np.float32)
LABELS = np.arange(COUNT) % 3
TEXTS = [f"a scene with {i} \u00fcmlauts" for i in range(COUNT)]
OF = {"data": {"dataset": "digits"}, "first stage": "abc", "format": "float32"}


def writer(folder, of=OF, number_format="float32"):
    return LatentWriter(folder=folder, of=of, shard_size=SHARD, number_format=number_format)


def write(folder, stop_after=None, number_format="float32"):
    """Write all shards, or stop after some as if killed; returns the shards that were written."""
    made, written = writer(folder, number_format=number_format), []
    if not made.begin():
        return written
    for shard, rows in made.missing("train", COUNT):
        if len(written) == stop_after:
            return written
        part = slice(rows.start, rows.stop)
        made.write("train", shard, LATENTS[part], {"label": LABELS[part].tolist(), "text": TEXTS[part]})
        written.append(shard)
    made.finish(PICTURES, "abc", {"train": COUNT})
    return written


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def folder(tmp_path):
    assert write(tmp_path / "z") == [0, 1, 2]
    return tmp_path / "z"


def test_what_was_written_is_read(folder):
    opened = open_dataset(f"latents:{folder}")
    info = opened.info
    assert (info.num_examples, info.spec, info.num_classes) == (COUNT, DataSpec(kind="latents", shape=(4, 4, 8)), 3)
    assert (info.first_stage, info.spec.kind) == ("abc", "latents")
    for i in (0, 9, 10, 22):
        example = opened.source[i]
        np.testing.assert_array_equal(example["image"], LATENTS[i])
        assert (example["label"], example["text"]) == (LABELS[i], TEXTS[i])
    with pytest.raises(UserError, match=r"unknown split of .*'tran'; did you mean 'train'"):
        open_dataset(f"latents:{folder}", split="tran")


def test_the_pipeline_gives_batches_of_them(folder):
    pipeline = Pipeline(dataset=f"latents:{folder}", batch_size=COUNT, shuffle=False)
    batch = next(pipeline.batches())
    np.testing.assert_array_equal(batch["data"], LATENTS)
    np.testing.assert_array_equal(batch["label"], LABELS)
    with pytest.raises(UserError, match=r"data.image_size=8, but the latents of latents:.* are 4x4: set it to 4"):
        _ = Pipeline(dataset=f"latents:{folder}", batch_size=2, image_size=8).info


def test_stopped_and_begun_again_the_bytes_are_the_same(folder, tmp_path):
    other = tmp_path / "again"
    assert write(other, stop_after=2) == [0, 1]
    (other / "train" / "00002.label.npy").write_bytes(b"half of a shard that was being written")
    with pytest.raises(UserError, match=r"they are not finished: run experiments.prepare_latents again"):
        open_dataset(f"latents:{other}")
    assert write(other) == [2]
    assert content(other) == content(folder)
    assert write(other) == [], "finished: nothing is done"


def test_half_precision_is_read_as_floats(tmp_path):
    write(tmp_path / "half", number_format="float16")
    example = open_dataset(f"latents:{tmp_path / 'half'}").source[3]["image"]
    assert example.dtype == np.float32
    np.testing.assert_array_equal(example, LATENTS[3].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, 1e6])
def test_what_the_format_cannot_hold_is_refused(tmp_path, bad):
    made = writer(tmp_path / "z", number_format="float16")
    made.begin()
    with pytest.raises(UserError, match=r"shard 0 of train are not finite in float16.*--format=float32"):
        made.write("train", 0, np.full((2, 4, 4, 8), bad, np.float32), {})


def test_other_latents_in_the_same_folder_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="holds latents of another first stage: give another --out"):
        writer(folder, {**OF, "first stage": "def"}).begin()
    begun = tmp_path / "begun"
    write(begun, stop_after=1)
    with pytest.raises(UserError, match="holds latents of another data, first stage: give another"):
        writer(begun, {**OF, "first stage": "def", "data": {}}).begin()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else: give another --out"):
        writer(tmp_path / "mine").begin()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "train" / "00001.npy").write_bytes(b"no"), "00001.npy is damaged"),
        (lambda folder: (folder / "train" / "00001.label.npy").unlink(), "no file .*00001.label.npy"),
        (
            lambda folder: np.save(folder / "train" / "00001.npy", LATENTS[:3]),
            "image has 3 examples, not 10: remove that folder",
        ),
        (lambda folder: (folder / "train" / "00001.text.json").write_text("{}"), "should be a list"),
    ],
)
def test_a_damaged_shard_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        open_dataset(f"latents:{folder}").source[12]


@pytest.mark.parametrize(
    "change", [{"splits": []}, {"shard_size": "x"}, {"splits": {"train": {"counts": [10, 3, 10]}}}, {"pictures": {}}]
)
def test_a_damaged_description_is_named(folder, change):
    path = folder / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=r"info.json is damaged: .*prepare the latents again"):
        open_dataset(f"latents:{folder}")


def test_what_is_known_of_data_is_read_as_earlier_versions_wrote_it():
    now = dataclasses.asdict(PICTURES)
    assert DatasetInfo.from_json(json.loads(json.dumps(now))) == PICTURES
    before = {name: value for name, value in now.items() if name != "spec"}
    for spec, form in (
        (EIGHTS, {"image_shape": [8, 8, 1], "dtype": "uint8"}),
        (EIGHTS, {"image_shape": [8, 8, 1]}),
        (DataSpec(kind="latents", shape=(4, 4, 8)), {"image_shape": [4, 4, 8], "dtype": "float32", "vocabulary": 0}),
        (
            DataSpec(kind="tokens", shape=(9, 1, 1), num_values=7),
            {"image_shape": [9, 1, 1], "dtype": "int32", "vocabulary": 7},
        ),
    ):
        assert DatasetInfo.from_json({**before, **form}) == dataclasses.replace(PICTURES, spec=spec)
