"""Text as tokens: prepared once as one long row of numbers, read in pieces of equal length.

    <data_dir>/text/<corpus>/train.bin, test.bin   the tokens, uint16 or uint32, little-endian
                             info.json             how many there are, and of which tokenizer
                             tokenizer.json        the tokenizer's file, where it has one

Every document is followed by the end token, and the row is cut into examples without regard to documents (sentence
packing). With a begin token an example is `begin`, length - 2 tokens, `end`, as SEDD and MDLM do with GPT-2's
<|endoftext|> for both (Sahoo et al. 2024, arXiv:2406.07524); without one it is `length` tokens.
"""

import collections
import contextlib
import dataclasses
import functools
import gzip
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, Tokenizer, datasets, default_data_dir
from diffusion_jax.errors import UserError

BYTES = "bytes"
PYTHON_DOCS = "python_docs"
_SPLITS = ("train", "test")
_INFO, _TOKENIZER = "info.json", "tokenizer.json"
_AT_ONCE = 256  # documents that are encoded together


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8, a token for each byte; documents end with a zero byte."""

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
        """With framing tokens given as words, such as <|endoftext|>.

        Raises:
          UserError: the file can not be read, or has no such token.
        """
        bare = cls(str(path))
        numbers = {word: bare._tokenizer.token_to_id(word) for word in (begin, end) if word}
        for word, number in numbers.items():
            if number is None:
                raise UserError(f"{path} has no token {word!r}")
        return cls(str(path), numbers.get(begin), numbers.get(end))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError:
            raise UserError("this needs the tokenizers library: pip install 'diffusion_jax[text]'") from None
        try:
            return tokenizers.Tokenizer.from_file(self.path)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"cannot read the tokenizer {self.path}: {error}") from error

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.asarray(one.ids, np.uint32) for one in found]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Pieces of a row of tokens, read from the file when asked for."""

    path: str
    dtype: str
    num_tokens: int
    length: int
    begin: int | None
    end: int | None

    @property
    def body(self) -> int:
        """Tokens of an example that come from the file."""
        return self.length if self.begin is None else self.length - 2

    def __len__(self) -> int:
        return self.num_tokens // self.body

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} sequences, not one of number {index}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        row = np.memmap(self.path, self.dtype, mode="r", shape=(self.num_tokens,))
        return [{"image": self._framed(row[i * self.body : (i + 1) * self.body])} for i in map(int, indices)]

    def _framed(self, piece: np.ndarray) -> np.ndarray:
        parts = [piece] if self.begin is None else [[self.begin], piece, [self.end]]
        return np.concatenate(parts).astype(np.int32).reshape(-1, 1, 1)


@datasets.register("text", example={"corpus": PYTHON_DOCS, "length": 16})
def open_text(
    *, split: str = "train", data_dir: str | None = None, corpus: str = PYTHON_DOCS, length: int = 1024
) -> Dataset:
    """A prepared text in examples [length, 1, 1] of tokens.

    Args:
      split: train or test.
      data_dir: where it was prepared.
      corpus: the name under which it was prepared; "python_docs", the reference topics that CPython carries, is
      prepared on the spot.
      length: tokens of an example.

    Raises:
      UserError: it is not prepared, or `length` or `split` make no sense.
    """
    if split not in _SPLITS:
        raise UserError(f"text has the splits {' and '.join(_SPLITS)}, not {split!r}")
    data_dir = data_dir or default_data_dir()
    directory = _directory(corpus, data_dir)
    if corpus == PYTHON_DOCS and not (directory / _INFO).is_file():
        _prepare_python_docs(data_dir)
    if not (directory / _INFO).is_file():
        raise UserError(
            f"there is no text {corpus!r} in {directory.parent}; prepare it: python -m experiments.prepare_data "
            f"--dataset=text --corpus={corpus} --text=FILE,... [--tokenizer=tokenizer.json]"
        )
    found = json.loads((directory / _INFO).read_text())
    tokenizer = _tokenizer(directory, found)
    least = 1 if tokenizer.begin is None else 3
    if length < least:
        raise UserError(f"text needs data.options.length of at least {least}, not {length}")
    source = TextSource(
        path=str(directory / f"{split}.bin"),
        dtype=found["dtype"],
        num_tokens=found["tokens"][split],
        length=length,
        begin=tokenizer.begin,
        end=tokenizer.end,
    )
    info = DatasetInfo(
        name=f"text/{corpus}",
        split=split,
        num_examples=len(source),
        image_shape=(length, 1, 1),
        dtype="int32",
        vocabulary=found["vocabulary"],
    )
    return Dataset(info=info, source=source, tokenizer=tokenizer)


def describe_text(*, split: str, data_dir: str | None, corpus: str = PYTHON_DOCS, length: int = 1024) -> DatasetInfo:
    """As `open_text`; of a text that is not prepared only the shape is known."""
    if (_directory(corpus, data_dir or default_data_dir()) / _INFO).is_file():
        return open_text(split=split, data_dir=data_dir, corpus=corpus, length=length).info
    return DatasetInfo(name=f"text/{corpus}", split=split, num_examples=0, image_shape=(length, 1, 1), dtype="int32")


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """What a preparation left behind: the directory, the tokens of each split, whether it was there before."""

    directory: str
    tokens: dict[str, int]
    was_there: bool


def prepare_text(
    corpus: str,
    files: Sequence[str],
    data_dir: str,
    *,
    test_files: Sequence[str] = (),
    held_out: int = 0,
    tokenizer: str = BYTES,
    begin: str | None = None,
    end: str | None = None,
    progress: bool = True,
) -> PreparedText:
    """Turn files of text into tokens; nothing is done if the text is there.

    Args:
      corpus: the name of the text.
      files: each one document, or with the ending .jsonl one of each line's "text"; either may be gzipped (.gz).
      data_dir: where to.
      test_files: those held out.
      held_out: without `test_files`, how many documents at the end are held out.
      tokenizer: "bytes", or a file tokenizer.json of the `tokenizers` library.
      begin, end: the tokenizer's words that frame an example; `end` also ends a document.
      progress: show a bar.

    Raises:
      UserError: a file can not be read, or nothing is held out or left for training.
    """
    directory = _directory(corpus, data_dir)
    if (directory / _INFO).is_file():
        found = json.loads((directory / _INFO).read_text())
        return PreparedText(str(directory), found["tokens"], was_there=True)
    if not files:
        raise UserError(f"--text names no files to make the text {corpus!r} of")
    if bool(test_files) == bool(held_out):
        raise UserError("say what is held out, and once: --test_text=FILE,... or --held_out=NUMBER of documents")
    made = ByteTokenizer() if tokenizer == BYTES else FileTokenizer.of(tokenizer, begin, end)
    if begin and not end:
        raise UserError(f"an example that begins with {begin!r} also ends with a token: give --end")
    train = _documents(files, progress)
    test = _documents(test_files, progress) if test_files else None
    return _write(directory, train, test, held_out, made, None if tokenizer == BYTES else tokenizer)


def _write(
    directory: Path,
    train: Iterable[str],
    test: Iterable[str] | None,
    held_out: int,
    tokenizer: Tokenizer,
    file: str | None,
) -> PreparedText:
    """The files of a text, whole or not at all."""
    partial = directory.with_name(f"{directory.name}.incomplete")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dtype = "<u2" if tokenizer.size <= 2**16 else "<u4"
    counts = {}
    with contextlib.ExitStack() as stack:
        out = {split: stack.enter_context((partial / f"{split}.bin").open("wb")) for split in _SPLITS}
        last: collections.deque[np.ndarray] = collections.deque()
        counts["train"] = 0
        for tokens in _encoded(train, tokenizer):
            last.append(tokens)
            if len(last) > held_out:
                counts["train"] += _append(out["train"], last.popleft(), dtype)
        rest = last if test is None else _encoded(test, tokenizer)
        counts["test"] = sum(_append(out["test"], tokens, dtype) for tokens in rest)
    for split, count in counts.items():
        if not count:
            raise UserError(f"nothing is left for {split}: hold out fewer documents, or give more text")
    found = {"tokens": counts, "dtype": dtype, "vocabulary": tokenizer.size}
    found |= {"begin": tokenizer.begin, "end": tokenizer.end, "tokenizer": _TOKENIZER if file else BYTES}
    if file:
        shutil.copyfile(file, partial / _TOKENIZER)
    (partial / _INFO).write_text(json.dumps(found, indent=2) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    return PreparedText(str(directory), counts, was_there=False)


def _append(file: BinaryIO, tokens: np.ndarray, dtype: str) -> int:
    file.write(tokens.astype(dtype).tobytes())
    return len(tokens)


def _encoded(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of each document, with the end token."""
    ending = [] if tokenizer.end is None else [tokenizer.end]
    batch: list[str] = []

    def flush() -> Iterator[np.ndarray]:
        for tokens in tokenizer.encode(batch):
            yield np.concatenate([tokens, np.asarray(ending, np.uint32)])
        batch.clear()

    for document in documents:
        batch.append(document)
        if len(batch) == _AT_ONCE:
            yield from flush()
    yield from flush()


def _documents(files: Sequence[str], progress: bool) -> Iterator[str]:
    """The documents of files, in their order."""
    for number, name in enumerate(files, 1):
        path = Path(name).expanduser()
        if progress:
            print(f"[{number}/{len(files)}] {path}", file=sys.stderr, flush=True)
        unzipped = path.with_suffix("") if path.suffix == ".gz" else path
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file
            ):
                if unzipped.suffix == ".jsonl":
                    yield from (json.loads(line)["text"] for line in file if line.strip())
                else:
                    yield file.read()
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read text from {path}: {type(error).__name__}: {error}") from error


def _prepare_python_docs(data_dir: str) -> None:
    """79 or so documents, half a million characters; every tenth is held out."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    train = [topics[name] for i, name in enumerate(names) if i % 10]
    test = [topics[name] for name in names[::10]]
    _write(_directory(PYTHON_DOCS, data_dir), train, test, 0, ByteTokenizer(), None)


def _tokenizer(directory: Path, found: dict[str, Any]) -> Tokenizer:
    if found["tokenizer"] == BYTES:
        return ByteTokenizer()
    return FileTokenizer(str(directory / found["tokenizer"]), found["begin"], found["end"])


def _directory(corpus: str, data_dir: str) -> Path:
    """Of one text; the one that comes with Python is another in every version."""
    version = f"-{sys.version_info.major}.{sys.version_info.minor}" if corpus == PYTHON_DOCS else ""
    return Path(data_dir).expanduser() / "text" / f"{corpus}{version}"
