"""Files of a prepared text, checked against its info.json.

<data_dir>/text/<corpus>/train.bin, test.bin   the tokens, uint16 or uint32, little-endian
                         info.json             the number of tokens, the tokenizer, and hashes of the files
                         tokenizer.json        the tokenizer's file, where it has one
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.sources import Tokenizer
from diffusion_jax.data.tokenizing import BYTES, ByteTokenizer, FileTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, plain_name, read_bytes, read_json, regular_file

PYTHON_DOCS = "python_docs"
SPLITS = ("train", "test")
INFO, TOKENIZER = "info.json", "tokenizer.json"
DTYPES = ("<u2", "<u4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """A prepared text.

    Attributes:
      directory: its directory.
      tokens: the number of tokens of each split.
      dtype: type of the tokens in the files, "<u2" or "<u4".
      vocabulary: number of different tokens.
      begin, end: the tokens that frame an example, or None.
      tokenizer: "bytes", or the name of the tokenizer's file.
      sha256: hash of each split's file; empty in what earlier versions prepared.
    """

    directory: Path
    tokens: Mapping[str, int]
    dtype: str
    vocabulary: int
    begin: int | None
    end: int | None
    tokenizer: str
    sha256: Mapping[str, str]

    def file(self, split: str) -> Path:
        """The tokens of a split.

        Raises:
          UserError: there is no such file, or its length differs from info.json.
        """
        path = regular_file(self.directory / f"{split}.bin")
        size, expected = path.stat().st_size, self.tokens[split] * np.dtype(self.dtype).itemsize
        if size != expected:
            raise UserError(f"{path} has {size:,} bytes, not the {expected:,} of {INFO}: {_AGAIN}")
        return path

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer that made the text.

        Raises:
          UserError: its file cannot be read, or has another vocabulary.
        """
        if self.tokenizer == BYTES:
            return ByteTokenizer(begin=self.begin, end=self.end)
        made = FileTokenizer(str(self.directory / self.tokenizer), self.begin, self.end)
        if made.size != self.vocabulary:
            raise UserError(f"{made.path} has {made.size} tokens, not the {self.vocabulary} of {INFO}: {_AGAIN}")
        return made

    def fingerprint(self, split: str) -> str:
        """A hash of a split's tokens and their meaning."""
        file = self.file(split)
        content = self.sha256.get(split) or _sha256(file, file.stat().st_mtime_ns)
        words = b"" if self.tokenizer == BYTES else read_bytes(self.directory / self.tokenizer)
        found = [self.tokens[split], self.vocabulary, self.begin, self.end, content, hashlib.sha256(words).hexdigest()]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()


_AGAIN = "remove that directory and prepare the text again"


def store_directory(corpus: str, data_dir: str | os.PathLike) -> Path:
    """The directory of a text; the text that comes with Python has one for every version of Python.

    Raises:
      UserError: the name of the text is no plain name.
    """
    version = f"-{sys.version_info.major}.{sys.version_info.minor}" if corpus == PYTHON_DOCS else ""
    return expanded(data_dir) / "text" / f"{plain_name('the name of a text (corpus)', corpus)}{version}"


def is_there(directory: Path) -> bool:
    """Whether a text was prepared there, damaged or not."""
    return os.path.lexists(directory / INFO)


def read_store(directory: Path) -> Store:
    """Read info.json and check every value.

    Raises:
      UserError: it cannot be read, or has an invalid value.
    """
    path = directory / INFO
    found = read_json(path)
    wrong = _wrong(found)
    if wrong:
        raise UserError(f"{path} is damaged: {wrong}; {_AGAIN}")
    fields = ("tokens", "dtype", "vocabulary", "begin", "end", "tokenizer")
    return Store(directory=directory, sha256=found.get("sha256", {}), **{name: found[name] for name in fields})


def _wrong(found: Mapping[str, Any]) -> str:
    """The invalid value of an info.json, described; "" if all are valid."""
    tokens, dtype, vocabulary, name = (found.get(key) for key in ("tokens", "dtype", "vocabulary", "tokenizer"))
    if not isinstance(tokens, dict) or not all(_is_count(tokens.get(split)) for split in SPLITS):
        return f"tokens is {tokens!r}, not a number for each of {' and '.join(SPLITS)}"
    if dtype not in DTYPES:
        return f"dtype is {dtype!r}, not one of {', '.join(DTYPES)}"
    if not _is_count(vocabulary) or not 1 <= vocabulary <= 2 ** (16 if dtype == "<u2" else 32):
        return f"vocabulary is {vocabulary!r}, which does not fit dtype {dtype}"
    for key in ("begin", "end"):
        token = found.get(key, "missing")
        if token is not None and not (_is_count(token) and token < vocabulary):
            return f"{key} is {token!r}, no token of {vocabulary}"
    if found["begin"] is not None and found["end"] is None:
        return "there is a begin without an end"
    if not isinstance(name, str) or (name == BYTES and vocabulary != ByteTokenizer.size):
        return f"tokenizer is {name!r} with a vocabulary of {vocabulary}"
    if name not in (BYTES, TOKENIZER):
        return f"tokenizer is {name!r}, neither {BYTES} nor {TOKENIZER}"
    sums = found.get("sha256", {})
    if not isinstance(sums, dict) or any(not re.fullmatch("[0-9a-f]{64}", str(value)) for value in sums.values()):
        return "sha256 holds no hashes"
    return ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, changed: int) -> str:
    """The hash of a whole file; `changed`, its time of change, makes the cache read changed files again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
