"""The tokenizer of a published folder, with which its model was trained.

    tokenizer.json             the tokenizer itself, for the `tokenizers` library
    vocab.json, merges.txt     instead of it, CLIP's: lower case, words, letters and their pairs, which end in </w>
    tokenizer_config.json,     which tokens begin, end and pad a text, how many tokens a text may have, and tokens that
    special_tokens_map.json,   were added later; if two files differ, the map of special tokens is right
    added_tokens.json

The padding token is also found in texts: with "!" for padding, as in Stable Diffusion 2, the mark at the end of "a
fox!" becomes that token, and not the token for a mark at the end of a word.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from diffusion_jax.data.prompts import PromptTokenizer, checked
from diffusion_jax.data.tokenizing import FileTokenizer, encodings, vocabulary_size
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json, read_text

# CLIP's words: contractions of English words, letters, one digit, other marks.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NO_LIMIT = 10**9  # configs say 10^30 if there is no limit
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderTokenizer(PromptTokenizer):
    """A tokenizer from a folder's files.

    Attributes:
      folder: the folder.
      words: added words, each with its number of tokens; in a text a word stands for all of them.
    """

    folder: str
    words: tuple[tuple[str, int], ...] = ()

    def with_word(self, word: str, count: int) -> "FolderTokenizer":
        """The tokenizer with one more word of `count` tokens, whose numbers follow those of all others.

        Raises:
          UserError: one of the tokens exists already, or numbers are left out, which the library would give to them.
        """
        if self.library.get_vocab_size(with_added_tokens=True) != self.size:
            raise UserError(f"the vocabulary in {self.folder} leaves numbers out, so no word can be added to it")
        for token in _tokens_of(word, count):
            if self.library.token_to_id(token) is not None:
                raise UserError(f"the tokenizer in {self.folder} has a token {token!r} already: give another word")
        return dataclasses.replace(self, words=(*self.words, (word, count)))

    @property
    def library(self) -> Any:
        """The tokenizer of the `tokenizers` library, set neither to cut nor to pad."""
        return self._read["library"]

    @property
    def size(self) -> int:
        return self._read["size"]

    @property
    def pad(self) -> int:
        return self._read["pad"]

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._read["frame"]

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text with its start and end tokens; None if the folder does not say."""
        return self._read["max_length"]

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " tokens"]]:
        spelled = [self._spelled(checked(text)) for text in texts]
        return [np.asarray(one.ids, np.int32) for one in encodings(self.library, spelled, f"in {self.folder}")]

    def cut(self, texts: Sequence[str], length: int) -> list[str]:
        """The part of each text that `rows` of this length cuts off, as written; "" if nothing."""
        room, left = self.longest(length), []
        for text in map(self._spelled, texts):
            found = self.library.encode(checked(text), add_special_tokens=False)
            left.append(text[found.offsets[room][0] :].strip() if len(found.ids) > room else "")
        return left

    @functools.cached_property
    def _read(self) -> dict[str, Any]:
        found = _read_folder(expanded(self.folder))
        for word, count in self.words:
            found["library"].add_tokens(_tokens_of(word, count))
        return {**found, "size": vocabulary_size(found["library"], self.folder)}

    def _spelled(self, text: str) -> str:
        """A text in which added words are replaced by all of their tokens."""
        for word, count in self.words:
            text = re.sub(rf"{re.escape(word)}(?!_\d)", " ".join(_tokens_of(word, count)), text) if count > 1 else text
        return text


def _tokens_of(word: str, count: int) -> list[str]:
    return [word, *(f"{word}_{number}" for number in range(1, count))]


def read_tokenizer(folder: Path | str) -> FolderTokenizer:
    """The tokenizer of a folder; its files are read at once.

    Raises:
      UserError: a file is missing or damaged.
    """
    found = FolderTokenizer(folder=str(folder))
    _ = found.library
    return found


def _read_folder(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"there is no tokenizer in {folder}: no such folder")
    config = _optional(folder / "tokenizer_config.json")
    special = {**config, **_optional(folder / "special_tokens_map.json")}
    named = {name: _word(special.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    file = folder / "tokenizer.json"
    if os.path.lexists(file):
        library = FileTokenizer(str(file)).library
    elif os.path.lexists(folder / "vocab.json") and os.path.lexists(folder / "merges.txt"):
        library = _of_merges(folder, named)
    else:
        raise UserError(
            f"there is no tokenizer in {folder}: it needs tokenizer.json, or vocab.json and merges.txt, and a "
            "spiece.model alone is not read: let transformers write tokenizer.json beside it"
        )
    _add(library, folder, config, [special.get(f"{name}_token") for name in named])
    pad = library.token_to_id(named["pad"]) if named["pad"] else None
    if named["pad"] and pad is None:
        raise UserError(f"{folder}: the token of padding, {named['pad']!r}, is not in the vocabulary")
    limit = config.get("model_max_length")
    limited = isinstance(limit, int | float) and 0 < limit < _NO_LIMIT
    return {
        "library": library,
        "pad": 0 if pad is None else pad,
        "frame": _frame(library),
        "max_length": int(limit) if limited else None,
    }


def _optional(file: Path) -> dict[str, Any]:
    if not os.path.lexists(file):
        return {}
    found = read_json(file)
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged: it must be an object")
    return found


def _word(token: Any) -> str | None:
    """A token as a text, given as a text or as a description."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _of_merges(folder: Path, named: Mapping[str, str | None]) -> Any:
    """CLIP's tokenizer from its vocabulary and its merges."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    vocabulary = read_json(folder / "vocab.json")
    begin, end = named["bos"] or _BEGIN, named["eos"] or _END
    lines = read_text(folder / "merges.txt").split("\n")
    pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    numbers = isinstance(vocabulary, dict) and all(isinstance(number, int) for number in vocabulary.values())
    if not numbers or any(len(pair) != 2 for pair in pairs):
        raise UserError(f"vocab.json or merges.txt in {folder} is damaged")
    for token in (begin, end):
        if token not in vocabulary:
            raise UserError(f"{folder / 'vocab.json'} has no token {token!r}, which begins or ends a text")
    try:
        model = models.BPE(
            vocabulary, pairs, unk_token=named["unk"] or end, continuing_subword_prefix="", end_of_word_suffix="</w>"
        )
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"vocab.json and merges.txt in {folder} do not fit: {' '.join(str(error).split())}") from error
    library = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    library.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (begin, vocabulary[begin]), trim_offsets=False, add_prefix_space=False
    )
    return library


def _add(library: Any, folder: Path, config: Mapping[str, Any], special: Sequence[Any]) -> None:
    """Add tokens that are found in a text before it is split into words: special ones, and those added later.

    Raises:
      UserError: one of them has another number than in the folder.
    """
    from tokenizers import AddedToken

    numbered = dict(_optional(folder / "added_tokens.json"))
    if not all(type(number) is int for number in numbered.values()):
        raise UserError(f"{folder / 'added_tokens.json'} is damaged: it must give a number to each token")
    described = config.get("added_tokens_decoder") or {}
    flags: dict[str, dict[str, bool]] = {}
    for number, token in described.items() if isinstance(described, Mapping) else ():
        content = _word(token)
        if content is None or not str(number).isdigit():
            raise UserError(f"{folder / 'tokenizer_config.json'} is damaged: added_tokens_decoder")
        numbered[content] = int(number)
        flags[content] = _flags(token)
    named = {_word(token): _flags(token) for token in special if _word(token)}  # of two descriptions the last
    flags |= {word: given for word, given in named.items() if word not in numbered}
    ordered = sorted(numbered, key=lambda content: numbered[content])
    for content in (*ordered, *named):
        token = AddedToken(content, special=content in named, **flags.get(content, _flags(content)))
        (library.add_special_tokens if content in named else library.add_tokens)([token])
        if content in numbered and library.token_to_id(content) != numbered[content]:
            raise UserError(
                f"{folder}: the added token {content!r} is number {library.token_to_id(content)}, but the folder says "
                f"{numbered[content]}"
            )


def _flags(token: Any) -> dict[str, bool]:
    """How a token is found in a text; a token given only as a text is found as it is written."""
    names = ("single_word", "lstrip", "rstrip", "normalized")
    described = token if isinstance(token, Mapping) else {}
    return {"normalized": False, **{name: bool(described[name]) for name in names if name in described}}


def _frame(library: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens before and after every text."""
    framed = library.encode("a", add_special_tokens=True)
    inner = len(library.encode("a", add_special_tokens=False).ids)
    added = [i for i, special in enumerate(framed.special_tokens_mask) if special]
    before = next((i for i in range(len(framed.ids)) if i not in added), len(framed.ids))
    return tuple(framed.ids[:before]), tuple(framed.ids[before + inner :])
