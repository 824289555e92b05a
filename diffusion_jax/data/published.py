"""Tokenizers of published text encoders, from the files of their folder through the `tokenizers` library.

    tokenizer.json                        as it is
    vocab.json, merges.txt                CLIP's byte-pair encoding, in lower case, framed by its first and last token
    tokenizer_config.json                 the padding token, and how many tokens a text may have
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from diffusion_jax.data.tokenizing import FileTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json, read_text

_CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_MOST = 100_000  # a model_max_length beyond it says that there is none


@dataclasses.dataclass(frozen=True)
class PublishedTokenizer:
    """A folder's tokenizer.

    Attributes:
      folder: with its files.
      pad: the token of padding.
      most: tokens of a text; 0: as many as a caller says.
    """

    folder: str
    pad: int
    most: int

    @functools.cached_property
    def library(self) -> Any:
        """The library's own tokenizer."""
        return _library(Path(self.folder))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without a frame."""
        return self.library.encode(text, add_special_tokens=False).ids

    def rows(self, texts: Sequence[str], length: int | None = None) -> tuple[Int[np.ndarray, "texts length"], list[str]]:
        """Tokens in their frame, cut and padded, int32; and of each text what was cut off, "" where nothing was.

        Args:
          texts: as people write them.
          length: tokens of a row; by default the most that there may be.
        """
        length = length or self.most
        if not length:
            raise UserError(f"{self.folder} says of no greatest number of tokens: give one")
        found, cut = np.full((len(texts), length), self.pad, np.int32), []
        for row, text in zip(found, texts, strict=True):
            encoding = self.library.encode(text)
            ids, special = encoding.ids, encoding.special_tokens_mask
            rest = ""
            if len(ids) > length:
                tail = next((i for i, flag in enumerate(reversed(special)) if not flag), 0)
                kept = length - tail
                rest = text[encoding.offsets[kept][0] :]
                ids = ids[:kept] + ids[len(ids) - tail :]
            row[: len(ids)] = ids
            cut.append(rest)
        return found, cut


def read_tokenizer(folder: Path | str) -> PublishedTokenizer:
    """The tokenizer of a folder.

    Raises:
      UserError: files that are missing or damaged, or a padding token that is not in the vocabulary.
    """
    folder = expanded(folder)
    config = _optional(folder / "tokenizer_config.json")
    special = _optional(folder / "special_tokens_map.json")
    word = _content(config.get("pad_token") or special.get("pad_token") or config.get("eos_token"))
    most = config.get("model_max_length")
    most = int(most) if isinstance(most, int | float) and most < _MOST else 0
    number = _library(folder).token_to_id(word) if word else None
    if number is None:
        raise UserError(f"{folder}: the padding token {word!r} is not in its vocabulary")
    return PublishedTokenizer(str(folder), number, most)


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


def _optional(file: Path) -> Mapping[str, Any]:
    return read_json(file) if file.is_file() else {}


@functools.lru_cache(maxsize=8)
def _library(folder: Path) -> Any:
    if (folder / "tokenizer.json").is_file():
        return FileTokenizer(str(folder / "tokenizer.json")).library
    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        raise UserError(f"{folder} has no tokenizer: looked for tokenizer.json, and for vocab.json with merges.txt")
    return _clip(folder)


def _clip(folder: Path) -> Any:
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    except ImportError:
        raise UserError("this needs the tokenizers library: pip install 'diffusion_jax[text]'") from None
    vocabulary = read_json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    special = {**_optional(folder / "tokenizer_config.json"), **_optional(folder / "special_tokens_map.json")}
    begin, end, unknown = (_content(special.get(name)) for name in ("bos_token", "eos_token", "unk_token"))
    for word in (begin, end):
        if word not in vocabulary:
            raise UserError(f"{folder}: the token {word!r} of the frame is not in its vocabulary")
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token=unknown, end_of_word_suffix="</w>", continuing_subword_prefix=""
    )
    found = Tokenizer(model)
    found.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    found.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    found.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(word, vocabulary[word]) for word in (begin, end)]
    )
    frame = dict.fromkeys(word for word in (begin, end, unknown) if word)
    found.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in frame])
    return found
