"""Tokenizers: text to numbers and back."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.files import parse_json, read_text

BYTES = "bytes"

_MOST_TOKENS = 2**24  # no tokenizer has as many; a model's table has a row for each number


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8, one token for each byte; documents end with a zero byte."""

    size: int = 256
    begin: int | None = None
    end: int | None = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.replace("\0", "").encode(), np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return np.asarray(tokens, np.uint8).tobytes().decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer of the `tokenizers` library, from its file tokenizer.json."""

    path: str
    begin: int | None = None
    end: int | None = None

    @classmethod
    def of(cls, path: str | Path, begin: str | None = None, end: str | None = None) -> "FileTokenizer":
        """Read the file; framing tokens are given as text, such as <|endoftext|>.

        Raises:
          UserError: the file cannot be read, or has no such token.
        """
        bare = cls(str(path))
        numbers = {word: bare.library.token_to_id(word) for word in (begin, end) if word}
        for word, number in numbers.items():
            if number is None:
                raise UserError(f"{path} has no token {word!r}")
        return cls(str(path), numbers.get(begin), numbers.get(end))

    @functools.cached_property
    def library(self) -> Any:
        """The library's own tokenizer, set neither to cut nor to pad."""
        return _read_library(self.path)

    @functools.cached_property
    def size(self) -> int:
        return vocabulary_size(self.library, self.path)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(one.ids, np.uint32) for one in encodings(self.library, texts, self.path)]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return self.library.decode([int(token) for token in tokens], skip_special_tokens=False)


def vocabulary_size(library: Any, place: object) -> int:
    """How many numbers the tokens of a tokenizer from `place` need: one more than the largest, if some are left out.

    Raises:
      UserError: it needs more numbers than any tokenizer has.
    """
    numbers = library.get_vocab(with_added_tokens=True).values()
    size = max(len(numbers), 1 + max(numbers, default=-1))
    if size > _MOST_TOKENS:
        raise UserError(
            f"{place}: a token has the number {size - 1}, and there are {len(numbers)}; the file is damaged"
        )
    return size


def encodings(library: Any, texts: Sequence[str], place: object) -> list[Any]:
    """The library's tokens of each text, without those that begin and end it.

    Raises:
      UserError: the tokenizer has no token for a part of a text.
    """
    try:
        return library.encode_batch(list(texts), add_special_tokens=False)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"the tokenizer {place} cannot read a text: {' '.join(str(error).split())}") from error


def _read_library(path: str) -> Any:
    import tokenizers

    content = read_text(path)
    parse_json(content, path)  # its errors are clearer than the library's
    try:
        found = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read the tokenizer {path}: {reason}") from error
    found.no_truncation()
    found.no_padding()
    return found
