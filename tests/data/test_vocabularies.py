"""Vocabularies whose numbers have holes, are too large, or do not cover a text."""

import json
import shutil
from pathlib import Path

import pytest

from diffusion_jax.data.folder_tokenizers import read_tokenizer
from diffusion_jax.data.tokenizing import FileTokenizer
from diffusion_jax.errors import UserError

FOLDER = Path(__file__).parent.parent / "golden" / "pipelines" / "sd15" / "tokenizer"


def renumbered(tmp_path, change):
    folder = tmp_path / "tokenizer"
    shutil.copytree(FOLDER, folder)
    file = folder / "vocab.json"
    file.write_text(json.dumps({token: change(number) for token, number in json.loads(file.read_text()).items()}))
    return folder


def word_level(tmp_path, vocabulary):
    file = tmp_path / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    file.write_text(json.dumps({"version": "1.0", "model": model}))
    return FileTokenizer(str(file))


def test_every_number_of_a_vocabulary_with_holes_is_below_its_size(tmp_path):
    """The size gives a table of embeddings its rows; a number beyond it would read another row without a word."""
    found = read_tokenizer(renumbered(tmp_path, lambda number: 7 * number))
    assert found.size == 1 + 7 * 973
    assert max(found.encode(["a cat 7"])[0]) < found.size
    with pytest.raises(UserError, match="leaves numbers out, so no word can be added"):
        found.with_word("<new>", 2)
    assert read_tokenizer(FOLDER).with_word("<new>", 2).size == 976
    assert word_level(tmp_path, {"[UNK]": 0, "a": 50}).size == 51


@pytest.mark.parametrize("more", [10**9, 2**31])
def test_numbers_that_no_tokenizer_has(tmp_path, more):
    with pytest.raises(UserError, match=r"a token has the number \d+, and there are 974; the file is damaged"):
        read_tokenizer(renumbered(tmp_path, lambda number: number + more))
    with pytest.raises(UserError, match="the file is damaged"):
        _ = word_level(tmp_path, {"[UNK]": 0, "a": more}).size


def test_a_text_for_which_there_is_no_token(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json cannot read a text: WordLevel error"):
        word_level(tmp_path, {"a": 0}).encode(["a cat"])
