"""Tokenizers from published folders: reference token ids, truncation, added tokens, and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.data.folder_tokenizers import read_tokenizer
from diffusion_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
PIPELINES = GOLDEN / "pipelines"


def texts_of(arrays, name="texts"):
    return [str(text) for text in arrays[name]]


def test_clip_from_its_vocabulary_and_merges():
    arrays = np.load(GOLDEN / "text" / "clip_tokenizer_sd15.npz")
    tokenizer = read_tokenizer(PIPELINES / "sd15" / "tokenizer")
    texts = texts_of(arrays)
    ids, mask = tokenizer.rows(texts, tokenizer.max_length)
    assert ids.dtype == np.int32
    for index in range(len(texts)):
        np.testing.assert_array_equal(ids[index : index + 1], arrays[f"ids{index}"])
    assert (tokenizer.frame, tokenizer.pad, tokenizer.size) == (((972,), (973,)), 973, 974)
    assert mask[3].sum() == 2, "an empty text is its frame"


@pytest.mark.parametrize(("name", "folder"), [("sd3", "sd3/tokenizer_3"), ("flux", "flux/tokenizer_2")])
def test_t5_from_its_file(name, folder):
    arrays = np.load(GOLDEN / "text" / f"t5_tokenizer_{name}.npz")
    tokenizer = read_tokenizer(PIPELINES / folder)
    ids, mask = tokenizer.rows(texts_of(arrays), 24)
    np.testing.assert_array_equal(ids, arrays["input_ids"])
    np.testing.assert_array_equal(mask, arrays["attention_mask"])
    assert (tokenizer.frame, tokenizer.max_length) == (((), (1,)), 512)


def test_what_is_cut_is_told_as_it_was_written():
    texts = texts_of(np.load(GOLDEN / "text" / "clip_tokenizer_sd15.npz"))
    tokenizer = read_tokenizer(PIPELINES / "sd15" / "tokenizer")
    cut = tokenizer.cut(texts, 77)
    assert [bool(text) for text in cut] == [False, False, False, False, True, False]
    assert texts[4].endswith(cut[4])
    kept = texts[4].removesuffix(cut[4])
    whole, part = (tokenizer.encode([text])[0] for text in (texts[4], kept))
    np.testing.assert_array_equal(whole[: len(part)], part)
    assert len(part) == tokenizer.longest(77) == 75


def test_the_token_of_padding_is_found_in_texts():
    """Token ids equal the reference for SD2's tokenizer, which pads with "!", and for SD1's, which does not."""
    two, one = (read_tokenizer(PIPELINES / name / "tokenizer") for name in ("sd2", "sd15"))
    assert (two.pad, one.pad) == (0, 973)
    assert two.rows(["!"], 4)[0].tolist() == [[972, 0, 973, 0]]
    assert one.rows(["!"], 4)[0].tolist() == [[972, one.library.token_to_id("!</w>"), 973, 973]]


def test_special_tokens_are_found_as_the_folder_describes_them():
    """A special token described as "normalized" is found in any case; one given as a plain string only as written."""
    two, one = (read_tokenizer(PIPELINES / name / "tokenizer") for name in ("sd2", "sd15"))
    assert two.encode(["<|ENDOFTEXT|>"])[0].tolist() == [973]
    assert len(one.encode(["<|ENDOFTEXT|>"])[0]) > 1
    assert one.encode(["<|endoftext|>"])[0].tolist() == [973]


@pytest.fixture
def copied(tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(PIPELINES / "sd15" / "tokenizer", folder)
    return folder


def test_tokens_that_were_added_later(copied):
    (copied / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 974, "<dog-toy>": 975}))
    tokenizer = read_tokenizer(copied)
    assert tokenizer.encode(["a<dog-toy> <cat-toy>"])[0].tolist()[1:] == [975, 974]
    assert tokenizer.size == 976
    (copied / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 980}))
    with pytest.raises(UserError, match="'<cat-toy>' is number 974, but the folder says 980"):
        read_tokenizer(copied)


def test_a_folder_that_is_none_is_one_line(copied):
    with pytest.raises(UserError, match="no such folder"):
        read_tokenizer(copied / "none")
    (copied / "merges.txt").write_text("#version: 0.2\nq zz\n")
    with pytest.raises(UserError, match="do not fit"):
        read_tokenizer(copied)
    (copied / "merges.txt").write_text("one two three\n")
    with pytest.raises(UserError, match=r"vocab.json or merges.txt in .* is damaged"):
        read_tokenizer(copied)
    (copied / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"it needs tokenizer\.json, or vocab.json and merges.txt"):
        read_tokenizer(copied)
    shutil.copy(PIPELINES / "sd15" / "tokenizer" / "merges.txt", copied)
    special = {"bos_token": "<|startoftext|>", "eos_token": "<end>", "pad_token": "<|endoftext|>"}
    (copied / "special_tokens_map.json").write_text(json.dumps(special))
    with pytest.raises(UserError, match="has no token '<end>', which begins or ends a text"):
        read_tokenizer(copied)
