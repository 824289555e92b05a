"""Text is prepared once and read in sequences without loss; errors are named."""

import gzip
import json
import pickle

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.text import ByteTokenizer, FileTokenizer, prepare_text
from diffusion_jax.errors import UserError
from diffusion_jax.specs import DataSpec

STORIES = ["The mask was lifted.\n", "Noise is a beginning, naïve as it looks.\n", "And the end."]
END = "<|endoftext|>"


@pytest.fixture
def files(tmp_path):
    """A plain text file, and a gzipped file with two records."""
    (tmp_path / "one.txt").write_text(STORIES[0])
    records = "".join(json.dumps({"text": story, "url": "x"}) + "\n" for story in STORIES[1:])
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    return [str(tmp_path / "one.txt"), str(tmp_path / "more.jsonl.gz")]


@pytest.fixture
def tokenizer_file(tmp_path):
    """A byte-pair tokenizer like GPT-2's with a small vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(STORIES, vocab_size=300, special_tokens=[END])
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def sequences(split, directory, **options):
    return data.open_dataset("text", split=split, data_dir=str(directory), corpus="stories", **options)


def test_bytes_come_back_in_their_order(files, tmp_path):
    prepared = prepare_text("stories", files, str(tmp_path), held_out=1, progress=False)
    assert not prepared.was_there
    opened = sequences("train", tmp_path, length=8)
    assert opened.info.spec == DataSpec(kind="tokens", shape=(8, 1, 1), num_values=256)
    read = np.concatenate([opened.source[i]["image"].ravel() for i in range(len(opened.source))])
    whole = "\0".join(STORIES[:2]).encode() + b"\0"
    assert opened.tokenizer.decode(read) == whole[: len(read)].decode(errors="replace")
    assert len(whole) - len(read) < 8
    held_out = sequences("test", tmp_path, length=1)
    text = held_out.tokenizer.decode(np.concatenate([x["image"].ravel() for x in held_out.source]))
    assert text == STORIES[2] + "\0"
    assert prepare_text("stories", ["no such file"], str(tmp_path), held_out=1, progress=False).was_there


def test_sequences_are_framed_and_documents_end(files, tokenizer_file, tmp_path):
    prepare_text(
        "stories", files, str(tmp_path), held_out=1, tokenizer=tokenizer_file, begin=END, end=END, progress=False
    )
    opened = sequences("train", tmp_path, length=10)
    end = opened.tokenizer.end
    assert 256 < opened.info.spec.num_values == opened.tokenizer.size <= 300
    bodies = []
    for example in opened.source:
        tokens = example["image"].ravel()
        assert tokens.shape == (10,)
        assert tokens.dtype == np.int32
        assert (tokens[0], tokens[-1]) == (end, end)
        bodies.append(tokens[1:-1])
    text = opened.tokenizer.decode(np.concatenate(bodies))
    assert text in "".join(story + END for story in STORIES[:2])
    assert END in text


def test_a_pipeline_reads_text_in_workers_and_in_order(files, tmp_path):
    prepare_text("stories", files, str(tmp_path), held_out=1, progress=False)
    fields = dict(dataset="text", data_dir=str(tmp_path), options={"corpus": "stories", "length": 4}, batch_size=6)
    expected = data.Pipeline.from_config({**fields, "memory_limit": 0})
    assert expected.info.spec.num_values == 256
    for other in (fields, {**fields, "num_workers": 2, "memory_limit": 0}):
        found = data.Pipeline.from_config(other).batches(start_step=3)
        for step in (3, 4, 5):
            batch = next(found)
            assert batch["data"].dtype == np.int32
            assert batch["data"].shape == (6, 4, 1, 1)
            np.testing.assert_array_equal(batch["data"], expected.reader()[step]["data"])
    assert len(pickle.dumps(expected.reader().source)) < 2000, "the file is not copied to worker processes"


def test_held_out_files(files, tmp_path):
    prepared = prepare_text("stories", files[:1], str(tmp_path), test_files=files[1:], progress=False)
    assert prepared.tokens == {
        "train": len(STORIES[0].encode()) + 1,
        "test": sum(len(s.encode()) + 1 for s in STORIES[1:]),
    }


def test_what_comes_with_python_needs_no_preparation(tmp_path):
    train, test = (data.open_dataset("text", split=split, data_dir=str(tmp_path)) for split in ("train", "test"))
    assert train.info.num_examples > 5 * test.info.num_examples > 0
    assert "Python" in train.tokenizer.decode(np.concatenate([x["image"].ravel() for x in train.source]))


def test_a_text_that_is_not_there_can_be_planned_for(tmp_path):
    pipeline = data.Pipeline.from_config(
        dict(dataset="text", data_dir=str(tmp_path), options={"corpus": "owt", "length": 32}, batch_size=1)
    )
    assert pipeline.described().spec.shape == (32, 1, 1)
    with pytest.raises(UserError, match="prepare_data --dataset=text --corpus=owt"):
        _ = pipeline.info


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0}, "say once what is held out"),
        ({"held_out": 3}, "nothing is left for train"),
        ({"files": []}, "--text names no files"),
        ({"files": ["missing.txt"]}, "there is no file missing.txt"),
        ({"tokenizer": "missing.json"}, "there is no file missing.json"),
    ],
)
def test_what_is_wrong_is_named_and_leaves_nothing(files, tmp_path, change, message):
    arguments = {"files": files, "held_out": 1, "progress": False} | change
    with pytest.raises(UserError, match=message):
        prepare_text("stories", data_dir=str(tmp_path / "data"), **arguments)
    assert not (tmp_path / "data" / "text" / "stories").exists()


def test_wrong_options(files, tokenizer_file, tmp_path):
    with pytest.raises(UserError, match="no token '<stop>'"):
        FileTokenizer.of(tokenizer_file, end="<stop>")
    with pytest.raises(UserError, match="give --end"):
        prepare_text("s", files, str(tmp_path), held_out=1, tokenizer=tokenizer_file, begin=END, progress=False)
    prepare_text("stories", files, str(tmp_path), held_out=1, progress=False)
    with pytest.raises(UserError, match="length of at least 1"):
        sequences("train", tmp_path, length=0)
    with pytest.raises(UserError, match="the splits train and test"):
        sequences("validation", tmp_path)


def test_broken_utf8_of_samples_can_be_read():
    assert ByteTokenizer().decode([104, 105, 195]) == "hi\ufffd"


def test_the_fingerprint_is_of_the_tokens_and_not_of_the_place(files, tmp_path):
    found = {}
    for name, held_out, order in [("a", 1, 1), ("b", 1, 1), ("c", 2, 1), ("d", 1, -1)]:
        prepare_text("stories", files[::order], str(tmp_path / name), held_out=held_out, progress=False)
        found[name] = sequences("train", tmp_path / name, length=4).info.fingerprint
    assert len(found["a"]) == 64
    assert found["a"] == found["b"]
    assert len(set(found.values())) == 3
    assert sequences("test", tmp_path / "a", length=4).info.fingerprint != found["a"]


def test_a_text_of_an_earlier_version(files, tmp_path):
    """A text without marker and hashes, as earlier versions wrote it, gives the same data and fingerprint."""
    prepare_text("stories", files, str(tmp_path), held_out=1, progress=False)
    before = sequences("train", tmp_path, length=4)
    directory = tmp_path / "text" / "stories"
    (directory / ".diffusion_jax").unlink()
    found = json.loads((directory / "info.json").read_text())
    assert len(found.pop("sha256")) == 2
    (directory / "info.json").write_text(json.dumps(found))
    after = sequences("train", tmp_path, length=4)
    assert after.info == before.info
    np.testing.assert_array_equal(after.source[1]["image"], before.source[1]["image"])
    assert prepare_text("stories", files, str(tmp_path), held_out=1, progress=False).was_there


def test_line_ends_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb\xe2\x80\xa8c"}\r\n')
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    prepare_text("stories", files, str(tmp_path), held_out=1, progress=False)
    texts = []
    for split in ("train", "test"):
        opened = sequences(split, tmp_path, length=1)
        texts.append(opened.tokenizer.decode(np.concatenate([x["image"].ravel() for x in opened.source])))
    assert texts == ["one\ntwo\nthree\n\0", "a\r\nb\u2028c\0"]


def test_bytes_are_not_framed_by_words(files, tmp_path):
    with pytest.raises(UserError, match="bytes have no token '<s>'"):
        prepare_text("stories", files, str(tmp_path), held_out=1, begin="<s>", end="<s>", progress=False)
