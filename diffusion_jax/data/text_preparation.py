"""Files of text turned into tokens, once: complete or not at all, by one process at a time."""

import collections
import dataclasses
import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diffusion_jax.data.sources import Tokenizer
from diffusion_jax.data.text_store import (
    INFO,
    PYTHON_DOCS,
    SPLITS,
    TOKENIZER,
    Store,
    is_there,
    read_store,
    store_directory,
)
from diffusion_jax.data.tokenizing import BYTES, ByteTokenizer, FileTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, locked, open_text, read_json_rows, remove_ours, whole_directory

_AT_ONCE = 256  # documents that are encoded in one call
DOCUMENT_LIMIT = 2**31  # characters of one document, which is kept in memory


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """The result of a preparation: the directory, the tokens of each split, whether it existed before."""

    directory: str
    tokens: Mapping[str, int]
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
    """Turn files of text into tokens, unless the text is there already.

    Any number of processes may call this at once: one prepares the text, the others wait.

    Args:
      corpus: the name of the text.
      files: each is one document, or with the ending .jsonl has one document in each line's "text"; either may be
        gzipped (.gz). Line ends of a document become newlines.
      data_dir: directory to write to.
      test_files: held-out files.
      held_out: without `test_files`, the number of documents at the end that are held out.
      tokenizer: "bytes", or a file tokenizer.json of the `tokenizers` library.
      begin, end: the tokenizer's tokens that frame an example; `end` also ends a document.
      progress: show a bar.

    Raises:
      UserError: a file cannot be read, nothing is held out or left for training, or the name of the text is no plain
        name or is in use.
    """
    directory = store_directory(corpus, data_dir)
    if is_there(directory):
        return PreparedText(str(directory), read_store(directory).tokens, was_there=True)
    if directory == store_directory(PYTHON_DOCS, data_dir):
        raise UserError(f"the name {corpus} is taken by the text that comes with Python: give --corpus another name")
    if not files:
        raise UserError(f"--text names no files for the text {corpus!r}")
    if bool(test_files) == bool(held_out):
        raise UserError("say once what is held out: --test_text=FILE,... or --held_out=NUMBER of documents")
    if tokenizer == BYTES and (begin or end):
        raise UserError(f"bytes have no token {begin or end!r}: --begin and --end need a --tokenizer with these tokens")
    file = None if tokenizer == BYTES else expanded(tokenizer)
    made = FileTokenizer.of(file, begin, end) if file else ByteTokenizer()
    if begin and not end:
        raise UserError(f"an example that begins with {begin!r} also ends with a token: give --end")
    train = _documents(files, progress)
    test = _documents(test_files, progress) if test_files else None
    store, was_there = _once(directory, lambda partial: _write(partial, train, test, held_out, made, file))
    return PreparedText(str(directory), store.tokens, was_there)


def prepare_python_docs(data_dir: str) -> None:
    """Prepare about 79 documents, half a million characters; every tenth is held out."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    train = [topics[name] for i, name in enumerate(names) if i % 10]
    test = [topics[name] for name in names[::10]]
    _once(
        store_directory(PYTHON_DOCS, data_dir), lambda partial: _write(partial, train, test, 0, ByteTokenizer(), None)
    )


def _once(directory: Path, write: Callable[[Path], None]) -> tuple[Store, bool]:
    """A text, written unless this or another process has done so before; and whether it existed."""
    try:
        with locked(directory.parent / f".{directory.name}.lock", "process {holder} prepares it", wait=True):
            if is_there(directory):
                return read_store(directory), True
            remove_ours(directory)  # without an info.json it is useless
            with whole_directory(directory) as partial:
                write(partial)
            return read_store(directory), False
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot write the text to {directory}: {error.strerror or error}") from error


def _write(
    directory: Path,
    train: Iterable[str],
    test: Iterable[str] | None,
    held_out: int,
    tokenizer: Tokenizer,
    file: Path | None,
) -> None:
    """Write the files of a text."""
    dtype = "<u2" if tokenizer.size <= 2**16 else "<u4"
    with (directory / "train.bin").open("wb") as train_file, (directory / "test.bin").open("wb") as test_file:
        out = {"train": _Row(train_file, dtype, tokenizer.size), "test": _Row(test_file, dtype, tokenizer.size)}
        last: collections.deque[np.ndarray] = collections.deque()
        for tokens in _encoded(train, tokenizer):
            last.append(tokens)
            if len(last) > held_out:
                out["train"].append(last.popleft())
        for tokens in last if test is None else _encoded(test, tokenizer):
            out["test"].append(tokens)
    for split in SPLITS:
        if not out[split].count:
            raise UserError(f"nothing is left for {split}: hold out fewer documents, or give more text")
    found: dict[str, Any] = {"tokens": {split: out[split].count for split in SPLITS}}
    found |= {"dtype": dtype, "vocabulary": tokenizer.size, "begin": tokenizer.begin, "end": tokenizer.end}
    found |= {"tokenizer": TOKENIZER if file else BYTES}
    found |= {"sha256": {split: out[split].digest.hexdigest() for split in SPLITS}}
    if file:
        shutil.copyfile(file, directory / TOKENIZER)
    (directory / INFO).write_text(json.dumps(found, indent=2) + "\n")


class _Row:
    """A file of tokens being written, their number and their hash."""

    def __init__(self, file: BinaryIO, dtype: str, vocabulary: int):
        self.file, self.dtype, self.vocabulary = file, dtype, vocabulary
        self.count, self.digest = 0, hashlib.sha256()

    def append(self, tokens: np.ndarray) -> None:
        if tokens.max(initial=0) >= self.vocabulary:
            raise UserError(f"the tokenizer has {self.vocabulary} tokens, but it returned the number {tokens.max()}")
        content = tokens.astype(self.dtype).tobytes()
        self.file.write(content)
        self.digest.update(content)
        self.count += len(tokens)


def _encoded(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of each document, including the end token."""
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
    """The documents of files, in order."""
    for number, name in enumerate(files, 1):
        path = expanded(name)
        if progress:
            print(f"[{number}/{len(files)}] {path}", file=sys.stderr, flush=True)
        unzipped = path.with_suffix("") if path.suffix == ".gz" else path
        yield from _rows(path) if unzipped.suffix == ".jsonl" else [_whole(path)]


def _rows(path: Path) -> Iterator[str]:
    """The "text" of each line."""
    for number, row in read_json_rows(path, limit=DOCUMENT_LIMIT):
        text = row.get("text")
        if not isinstance(text, str):
            raise UserError(f'line {number} of {path} has no "text" that is a string')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"line {number} of {path}: its text has an incomplete character at {error.start}"
            ) from error
        yield text


def _whole(path: Path) -> str:
    with open_text(path) as file:
        text = file.read(DOCUMENT_LIMIT + 1)
    if len(text) > DOCUMENT_LIMIT:
        raise UserError(f"{path} has more than {DOCUMENT_LIMIT:,} characters, too many for one document: cut it")
    return text.replace("\r\n", "\n").replace("\r", "\n")
