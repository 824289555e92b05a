"""Text as tokens: prepared once as one long row of numbers, and read in pieces of equal length.

Every document is followed by the end token, and the row is cut into examples without regard to documents (sentence
packing). With a start token an example is `begin`, length - 2 tokens, `end`, as in SEDD and MDLM, which use GPT-2's
<|endoftext|> for both (Sahoo et al. 2024, arXiv:2406.07524); without one it is `length` tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffusion_jax.data.sources import (
    Dataset,
    DatasetInfo,
    Example,
    datasets,
    default_data_dir,
    describers,
    storage_failed,
)
from diffusion_jax.data.text_preparation import PreparedText, prepare_python_docs, prepare_text
from diffusion_jax.data.text_store import PYTHON_DOCS, SPLITS, is_there, read_store, store_directory
from diffusion_jax.data.tokenizing import ByteTokenizer, FileTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.specs import DataSpec

__all__ = ["ByteTokenizer", "FileTokenizer", "PreparedText", "TextSource", "describe_text", "open_text", "prepare_text"]


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Pieces of a row of tokens, read from the file on access."""

    path: str
    dtype: str
    num_tokens: int
    vocabulary: int
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
            raise IndexError(f"there are {len(self)} sequences, and none has number {index}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        """Raises UserError if the file has changed since it was opened, or holds invalid tokens."""
        item = np.dtype(self.dtype).itemsize
        try:
            with open(self.path, "rb", buffering=0) as file:
                pieces = []
                for index in map(int, indices):
                    file.seek(index * self.body * item)
                    pieces.append(np.frombuffer(file.read(self.body * item), np.uint8))
        except OSError as error:
            if storage_failed(error):
                raise
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        return [{"image": self._framed(piece)} for piece in pieces]

    def _framed(self, piece: np.ndarray) -> np.ndarray:
        if piece.nbytes != self.body * np.dtype(self.dtype).itemsize:
            raise UserError(f"{self.path} ends before its {self.num_tokens:,} tokens: prepare the text again")
        tokens = piece.view(self.dtype)
        if tokens.max() >= self.vocabulary:
            raise UserError(f"{self.path} is damaged: token {tokens.max()} of {self.vocabulary}; prepare it again")
        parts = [tokens] if self.begin is None else [[self.begin], tokens, [self.end]]
        return np.concatenate(parts).astype(np.int32).reshape(-1, 1, 1)


@datasets.register("text", example={"corpus": PYTHON_DOCS, "length": 16})
def open_text(
    *, split: str = "train", data_dir: str | None = None, corpus: str = PYTHON_DOCS, length: int = 1024
) -> Dataset:
    """Open a prepared text as examples [length, 1, 1] of tokens.

    Args:
      split: train or test.
      data_dir: directory in which it was prepared.
      corpus: name of the prepared text; "python_docs", the reference topics that come with CPython, is prepared on the
        spot.
      length: tokens of an example.

    Raises:
      UserError: it is not prepared or is damaged, or `corpus`, `length` or `split` is invalid.
    """
    if split not in SPLITS:
        raise UserError(f"text has the splits {' and '.join(SPLITS)}, not {split!r}")
    data_dir = data_dir or default_data_dir()
    directory = store_directory(corpus, data_dir)
    if corpus == PYTHON_DOCS and not is_there(directory):
        prepare_python_docs(data_dir)
    if not is_there(directory):
        raise UserError(
            f"there is no text {corpus!r} in {directory.parent}; prepare it: python -m experiments.prepare_data "
            f"--dataset=text --corpus={corpus} --text=FILE,... [--tokenizer=tokenizer.json]"
        )
    store = read_store(directory)
    tokenizer = store.open_tokenizer()
    least = 1 if tokenizer.begin is None else 3
    if not isinstance(length, int) or isinstance(length, bool) or length < least:
        raise UserError(f"text needs data.options.length of at least {least}, an integer, not {length!r}")
    source = TextSource(
        path=str(store.file(split)),
        dtype=store.dtype,
        num_tokens=store.tokens[split],
        vocabulary=store.vocabulary,
        length=length,
        begin=tokenizer.begin,
        end=tokenizer.end,
    )
    info = DatasetInfo(
        name=f"text/{corpus}",
        split=split,
        num_examples=len(source),
        spec=DataSpec(kind="tokens", shape=(length, 1, 1), num_values=store.vocabulary),
        fingerprint=store.fingerprint(split),
    )
    return Dataset(info=info, source=source, tokenizer=tokenizer)


def describe_text(*, split: str, data_dir: str | None, corpus: str = PYTHON_DOCS, length: int = 1024) -> DatasetInfo:
    """The description of a text, like `open_text`; if the text is not prepared, only the shape is known."""
    if is_there(store_directory(corpus, data_dir or default_data_dir())):
        return open_text(split=split, data_dir=data_dir, corpus=corpus, length=length).info
    spec = DataSpec(kind="tokens", shape=(length, 1, 1))
    return DatasetInfo(name=f"text/{corpus}", split=split, num_examples=0, spec=spec)


describers["text"] = describe_text
