"""Tokenizers turn captions and prompts into rows of tokens."""

import json
import pickle

import numpy as np
import pytest

from diffusion_jax.data.prompts import TOKENIZERS, Bytes, Words, split_words
from diffusion_jax.errors import UserError

TEXTS = ["a red star", "", "Two RED circles, and a blue star!", "naïve ☃"]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A small tokenizer in BERT's format: words framed by [CLS] and [SEP], with truncation and padding enabled."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "star", "two", "circles", "and", "blue"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=9)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request, tokenizer_file):
    fields = {"path": str(tokenizer_file)} if request.param == "file" else {}
    return TOKENIZERS.build({"name": request.param, **fields}).learned(TEXTS)


def test_rows(tokenizer):
    """Rows are framed, padded, within the vocabulary, and independent of other texts and of the row's length."""
    tokens, mask = tokenizer.rows(TEXTS, 40)
    assert tokens.shape == mask.shape == (4, 40)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    assert tokens.min() >= 0
    assert tokens.max() < tokenizer.size
    assert np.all(tokens[~mask] == tokenizer.pad)
    assert np.all(mask.sum(axis=1) >= 1), "an empty text is a text"
    assert np.all(np.diff(mask.astype(int), axis=1) <= 0), "padding comes last"
    before, after = tokenizer.frame
    for text, row, counts in zip(TEXTS, tokens, mask, strict=True):
        (alone,), _ = tokenizer.rows([text], 40)
        np.testing.assert_array_equal(alone, row)
        assert row[counts].tolist() == [*before, *tokenizer.encode([text])[0].tolist(), *after]
        short, _ = tokenizer.rows([text], 50)
        np.testing.assert_array_equal(short[0, :40], row)


def test_what_is_too_long_is_cut_inside_its_frame(tokenizer):
    length = sum(map(len, tokenizer.frame)) + 3
    assert tokenizer.longest(length) == 3
    tokens, mask = tokenizer.rows([TEXTS[2]], length)
    before, after = tokenizer.frame
    assert mask.all()
    assert tokens[0].tolist() == [*before, *tokenizer.encode([TEXTS[2]])[0][:3].tolist(), *after]
    with pytest.raises(UserError, match=r"no room for its \d begin and end tokens"):
        tokenizer.rows([""], sum(map(len, tokenizer.frame)) - 1)


def test_hashable_and_picklable(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    assert hash(again) == hash(tokenizer)
    np.testing.assert_array_equal(again.rows(TEXTS, 9)[0], tokenizer.rows(TEXTS, 9)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "must be a text, got int '3'"),
        (None, "must be a text, got NoneType"),
        ("a \ud800 b", "an incomplete character at 2"),
        ("a" * 70_000, "at most 65,536 characters"),
    ],
)
def test_what_is_no_text_is_named(tokenizer, text, message):
    with pytest.raises(UserError, match=message):
        tokenizer.rows([text], 9)


def test_words_are_the_most_frequent_first_and_equal_ones_in_order():
    assert split_words("A Red,red  STAR!") == ["a", "red", ",", "red", "star", "!"]
    found = Words(most=3).learned(["b a", "c b", "d"])
    assert found.words == ("b", "a", "c")
    assert Words(most=3).learned(iter(["d", "c b", "b a"])) == found, "their order does not matter"
    assert found.size == Words(most=3).size == 6, "parameters do not depend on the captions"
    tokens, _ = found.rows(["A, b d"], 6)
    assert tokens.tolist() == [[1, 4, 2, 3, 2, 0]]
    assert found.unknown("A, b d") == [",", "d"]
    with pytest.raises(UserError, match="hold no word"):
        Words().learned(["", " "])
    with pytest.raises(UserError, match="not been made yet"):
        Words().rows(["a"], 4)
    assert Words().rows([""], 4)[0].tolist() == [[1, 0, 0, 0]]
    with pytest.raises(UserError, match="5 words, more than most=4"):
        Words(most=4, words=tuple("abcde"))


def test_bytes_are_utf8():
    tokens, mask = Bytes().rows(["aé"], 6)
    assert tokens.tolist() == [[256, 97, 0xC3, 0xA9, 257, 257]]
    assert mask.sum() == 4
    assert Bytes().unknown("☃") == []


def test_a_file_frames_as_its_model_wants(tokenizer_file):
    file = TOKENIZERS.build({"name": "file", "path": str(tokenizer_file)})
    assert (file.size, file.pad, file.frame) == (11, 0, ((2,), (3,)))
    tokens, mask = file.rows(["a Red dog", ""], 8)
    assert tokens.tolist() == [[2, 4, 5, 1, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]]
    assert mask.sum(axis=1).tolist() == [5, 2]
    assert file.unknown("a Red dog") == ["dog"]


def test_a_file_without_a_frame_gets_a_beginning(tokenizer_file, tmp_path):
    content = json.loads(tokenizer_file.read_text())
    content["post_processor"] = None
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(content))
    file = TOKENIZERS.build({"name": "file", "path": str(path)})
    assert (file.size, file.pad, file.frame) == (12, 0, ((11,), ()))
    assert file.rows([""], 3)[0].tolist() == [[11, 0, 0]]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        TOKENIZERS.build({"name": "file", "path": str(path)}).rows(["a"], 4)
