"""Pictures of a subject and of its class alternate in a batch; captions may share a trigger word."""

import json

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.errors import UserError


class Spoken:
    """A preparation that shows captions in batches as their lengths."""

    reads = ("text",)

    def __call__(self, raw):
        return {"length": np.array([len(text) for text in raw["text"]])}


def painted(folder, count, value):
    """Write pictures of one colour, each slightly brighter than the previous one."""
    folder.mkdir(parents=True)
    for i in range(count):
        PIL.Image.new("RGB", (4, 4), (value + i,) * 3).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    return painted(tmp_path / "dog", 3, 0), painted(tmp_path / "dogs", 6, 100)


def subject(folders, batch_size=8, count=5, **fields):
    instance, pictures = map(str, folders)
    options = {
        "instance": instance,
        "instance_prompt": "a sks dog",
        "class_pictures": pictures if count else "",
        "class_prompt": "a dog" if count else "",
        "num_class_images": count,
    }
    fields = {"image_size": 4, "crop": "adm", "prepare": Spoken(), **fields}
    return data.Pipeline(dataset="subject", options=options, batch_size=batch_size, **fields)


def shown(batch):
    """The grey value of each picture in a batch."""
    return np.round((batch["data"][:, 0, 0, 0] + 1) * 127.5).astype(int)


def test_they_take_turns_each_in_its_own_order_and_with_its_own_caption(folders):
    reader = subject(folders).reader()
    batches = [reader[step] for step in range(15)]  # 60 of each: 20 epochs of the subject, 12 of the class
    of_class = np.concatenate([batch["prior"] for batch in batches])
    np.testing.assert_array_equal(of_class, np.tile([0.0, 1.0], 60))
    values = np.concatenate([shown(batch) for batch in batches])
    lengths = np.concatenate([batch["length"] for batch in batches])
    np.testing.assert_array_equal(lengths, np.where(of_class == 1, len("a dog"), len("a sks dog")))
    assert [list(np.unique(values[of_class == side], return_counts=True)[1]) for side in (0, 1)] == [[20] * 3, [12] * 5]
    assert values[of_class == 0].max() < 3
    assert set(values[of_class == 1]) == {100, 101, 102, 103, 104}  # the first five of six
    assert len({tuple(values[i : i + 6 : 2]) for i in range(0, 120, 6)}) > 1  # epochs differ in their order


def test_hosts_and_resumed_runs_read_the_same(folders):
    pipeline = subject(folders)
    whole = [pipeline.reader()[step] for step in range(4)]
    for step in (0, 3):
        parts = [pipeline.reader(host, 2)[step] for host in range(2)]
        for name, rows in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)
    np.testing.assert_array_equal(next(pipeline.batches(start_step=3))["data"], whole[3]["data"])


def test_without_a_class_there_is_no_prior(folders):
    pipeline = subject(folders, count=0, batch_size=3)
    batch = pipeline.reader()[0]
    assert "prior" not in batch
    assert sorted(shown(batch)) == [0, 1, 2]
    assert (pipeline.info.num_prior, pipeline.info.num_examples) == (0, 3)


def test_what_is_said_and_what_the_fingerprint_covers(folders):
    first = subject(folders)
    assert first.remarks[:2] == ("3 pictures of the subject: 'a sks dog'", "5 pictures of its class: 'a dog'")
    assert first.remarks[2].endswith("has 6, of which data.num_class_images are used")
    PIL.Image.new("RGB", (4, 4), (9, 9, 9)).save(folders[1] / "0.png")
    assert subject(folders).info.fingerprint != first.info.fingerprint
    (folders[0] / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "an old dog"}\n')
    alone = subject(folders, count=0)
    assert alone.remarks[0].startswith("1 picture of the subject")
    assert "one picture teaches little beyond itself" in alone.remarks[1]
    assert "the captions in" in alone.remarks[2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"instance": "/nowhere"}, "data.instance: image folder /nowhere does not exist"),
        ({"instance": ""}, "data.instance is empty: name a folder of pictures"),
        ({"instance_prompt": " "}, "data.instance_prompt is empty"),
        ({"class_prompt": ""}, "data.class_prompt is empty"),
        ({"class_pictures": ""}, "data.num_class_images=5, but there are no pictures of the class: add"),
        (
            {"class_pictures": "/nowhere"},
            "data.class_pictures: image folder /nowhere does not exist; add pictures",
        ),
        ({"num_class_images": 7}, "has 6 pictures, but data.num_class_images is 7: add pictures, set"),
        ({"number": 7}, "unknown argument of dataset 'open_subject'"),
    ],
)
def test_what_is_missing_is_one_line(folders, changed, message):
    options = {**dict(subject(folders).options), **changed}
    with pytest.raises(UserError) as error:
        _ = data.open_dataset("subject", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_several_subjects_or_a_held_out_split_are_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"holds 2 folders \(dog, dogs \.\.\.\): name the folder of the subject"):
        data.open_dataset("subject", instance=str(tmp_path), instance_prompt="a sks dog")
    with pytest.raises(UserError, match="has only the split 'train', not 'test'"):
        data.open_dataset("subject", split="test", instance=str(folders[0]), instance_prompt="a sks dog")


@pytest.mark.parametrize("captions", [None, ["a fox in XYZ style", "a cat", "a xyz"]])
def test_every_caption_has_the_trigger(tmp_path, captions):
    folder = painted(tmp_path / "style", 3, 10)
    if captions:
        rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(captions)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {"dataset": f"folder:{folder}", "batch_size": 3, "image_size": 4, "crop": "adm", "shuffle": False}
    pipeline = data.Pipeline(**plain, trigger="xyz style", prepare=Spoken())
    wanted = ["a fox in XYZ style", "xyz style, a cat", "xyz style, a xyz"] if captions else ["xyz style"] * 3
    assert pipeline.texts() == wanted
    assert list(pipeline.reader()[0]["length"]) == list(map(len, wanted))
    assert pipeline.info.fields == ("text",)
    assert pipeline.info.fingerprint != data.Pipeline(**plain).info.fingerprint
    assert "xyz style" in pipeline.remarks[-1]


def test_a_trigger_is_not_for_a_subject_with_its_class(folders):
    with pytest.raises(UserError, match=r"'sks' would be put before captions of the class too: write it into"):
        _ = subject(folders, trigger="sks").info
    with pytest.raises(UserError, match=r"data\.trigger is blank"):
        _ = subject(folders, count=0, trigger=" ").info
