"""Captions and prompts as rows of tokens with one length, the input of a text encoder.

    "a red star"   ->   begin a red star pad pad pad       and a mask of what is not padding

Every text has at least its start token, so that an empty one is a text too. There are three tokenizers:

    bytes    UTF-8, a token for each byte
    words    a list of words made from the captions of the training data, the most frequent first
    file     tokenizer.json of the `tokenizers` library, framed as its model requires ([CLS] ... [SEP] of BERT)
"""

import collections
import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from diffusion_jax.data.tokenizing import FileTokenizer
from diffusion_jax.domains import Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry

_WORD = re.compile(r"\w+|[^\w\s]")
_PAD = re.compile(r"\[PAD\]|<\|?pad\|?>", re.IGNORECASE)
MOST_CHARACTERS = 2**16  # of one text


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTokenizer:
    """Turns texts into tokens, with start and end tokens and padding; `words` is a list made from captions."""

    words: ClassVar[tuple[str, ...]] = ()

    @property
    def size(self) -> int:
        """Number of tokens, including the frame's (start and end) and padding."""
        raise NotImplementedError

    @property
    def pad(self) -> int:
        """The padding token."""
        raise NotImplementedError

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before and after every text."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        """Whether it has to be made from captions first."""
        return False

    def learned(self, texts: Iterable[str]) -> "PromptTokenizer":
        """The tokenizer made from these captions; itself, if it does not learn."""
        return self

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " tokens"]]:
        """The tokens of each text, without frame and padding."""
        raise NotImplementedError

    def unknown(self, text: str) -> list[str]:
        """The words of a text that have no token of their own, in order."""
        return []

    def rows(
        self, texts: Sequence[str], length: int
    ) -> tuple[Int[np.ndarray, "texts length"], Bool[np.ndarray, "texts length"]]:
        """Framed tokens and the mask of everything but padding; texts that are too long are cut before the frame's end.

        Raises:
          UserError: a value is no text, or the length leaves no room for the frame.
        """
        before, after = self.frame
        room = length - len(before) - len(after)
        if room < 0:
            raise UserError(
                f"a text of {length} tokens has no room for its {len(before) + len(after)} begin and end tokens"
            )
        tokens, mask = np.full((len(texts), length), self.pad, np.int32), np.zeros((len(texts), length), bool)
        for row, found in enumerate(self.encode([checked(text) for text in texts])):
            framed = [*before, *found[:room].tolist(), *after]
            tokens[row, : len(framed)], mask[row, : len(framed)] = framed, True
        return tokens, mask

    def longest(self, length: int) -> int:
        """The number of a text's tokens that fit into rows of this length."""
        return length - sum(map(len, self.frame))


def checked(text: Any) -> str:
    """A text, after a check.

    Raises:
      UserError: it is no string, has half a character in it, or is much too long.
    """
    if not isinstance(text, str):
        raise UserError(f"a caption or prompt must be a text, got {type(text).__name__} {str(text)[:40]!r}")
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"a caption or prompt has at most {MOST_CHARACTERS:,} characters, got {len(text):,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"a caption or prompt has an incomplete character at {error.start}: {text[:40]!r}") from error
    return text


TOKENIZERS: Registry[PromptTokenizer] = Registry("tokenizer")


@TOKENIZERS.register("bytes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes(PromptTokenizer):
    """UTF-8 bytes; 256 begins a text, 257 is padding."""

    @property
    def size(self) -> int:
        return 258

    @property
    def pad(self) -> int:
        return 257

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (256,), ()

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " tokens"]]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]


@TOKENIZERS.register("words", example={"most": 5, "words": ("a", "red", "star")})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(PromptTokenizer):
    """Words and punctuation marks in lower case; 0 is padding, 1 begins a text, 2 is any word that is not in the list.

    Attributes:
      most: largest number of words; the size does not depend on how many are found, so that a network's parameters
        follow from its config alone.
      words: the list; () if it has not been made yet.
    """

    most: Annotated[int, Bounds(low=1, high=2**20)] = 1000
    words: tuple[str, ...] = ()

    def __post_init__(self):
        if len(self.words) > self.most:
            raise UserError(f"the word list has {len(self.words):,} words, more than most={self.most:,}")

    @property
    def size(self) -> int:
        return 3 + self.most

    @property
    def pad(self) -> int:
        return 0

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (1,), ()

    @property
    def learns(self) -> bool:
        return not self.words

    def learned(self, texts: Iterable[str]) -> "Words":
        """The tokenizer with the words of these texts, the most frequent first, equally frequent ones in alphabetical
        order.

        Raises:
          UserError: the texts contain no word.
        """
        counts = collections.Counter(word for text in texts for word in split_words(text))
        if not counts:
            raise UserError("the captions hold no word to make a word list from: use the tokenizer bytes")
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: self.most]
        return dataclasses.replace(self, words=tuple(frequent))

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " tokens"]]:
        numbers = self._numbers
        if not numbers and any(map(split_words, texts)):
            raise UserError("the word list of the tokenizer words has not been made yet")
        return [np.array([numbers.get(word, 2) for word in split_words(text)], np.int32) for text in texts]

    def unknown(self, text: str) -> list[str]:
        return [word for word in split_words(text) if word not in self._numbers]

    @functools.cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {word: 3 + i for i, word in enumerate(self.words)}


def split_words(text: str) -> list[str]:
    """Words and punctuation marks in lower case, in normalised Unicode."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@TOKENIZERS.register("file", example={"path": "tokenizer.json"})
@dataclasses.dataclass(frozen=True, kw_only=True)
class File(PromptTokenizer):
    """tokenizer.json; if the file adds no start token, one is added after its own tokens.

    Attributes:
      path: the file.
    """

    path: str

    @property
    def size(self) -> int:
        return self._read["size"]

    @property
    def pad(self) -> int:
        return self._read["pad"]

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._read["frame"]

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " tokens"]]:
        return self._file.encode(texts)

    def unknown(self, text: str) -> list[str]:
        token = self._read["unknown"]
        found = self._file.library.encode(text, add_special_tokens=False)
        pairs = zip(found.ids, found.offsets, strict=True)
        return [text[start:stop] for number, (start, stop) in pairs if number == token]

    @functools.cached_property
    def _file(self) -> FileTokenizer:
        return FileTokenizer(self.path)

    @functools.cached_property
    def _read(self) -> dict[str, Any]:
        """The file's settings besides how a text is split."""
        library = self._file.library
        framed = library.encode("a", add_special_tokens=True)
        special = np.flatnonzero(np.asarray(framed.special_tokens_mask) == 0)
        first, last = (special[0], special[-1]) if len(special) else (len(framed.ids), len(framed.ids) - 1)
        frame = (tuple(framed.ids[:first]), tuple(framed.ids[last + 1 :]))
        size, vocabulary = library.get_vocab_size(), library.get_vocab(with_added_tokens=True)
        pads = sorted(number for token, number in vocabulary.items() if _PAD.fullmatch(token))
        pad = pads[0] if pads else size
        size = max(size, pad + 1)
        if frame == ((), ()):
            frame, size = ((size,), ()), size + 1
        unknown = getattr(library.model, "unk_token", None)
        return {"size": size, "pad": pad, "frame": frame, "unknown": library.token_to_id(unknown) if unknown else None}
