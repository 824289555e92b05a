"""A word that stands for what is learned: it is in every caption, and is the caption of a picture without one."""

import dataclasses
import hashlib
from collections.abc import Sequence

from diffusion_jax.data.sources import Dataset, Example, Source
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Triggered:
    """A source whose captions all contain a word.

    Attributes:
      source: source of the examples.
      word: the word, or several words.
      captioned: whether the source has captions.
    """

    source: Source
    word: str
    captioned: bool

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Many at once."""
        read_many = getattr(self.source, "__getitems__", None)
        examples = read_many(indices) if read_many else [self.source[int(i)] for i in indices]
        return [{**example, "text": self._said(example.get("text", ""))} for example in examples]

    def texts(self, indices: Sequence[int]) -> list[str]:
        """The captions."""
        if not self.captioned:
            return [self.word] * len(indices)
        alone = getattr(self.source, "texts", None)
        captions = alone(indices) if alone else [self.source[int(i)]["text"] for i in indices]
        return [self._said(caption) for caption in captions]

    def _said(self, caption: str) -> str:
        if self.word.casefold() in caption.casefold():
            return caption
        return f"{self.word}, {caption}" if caption else self.word


def with_trigger(opened: Dataset, word: str) -> Dataset:
    """The data set with the word in every caption, which may have had it before; its fingerprint changes.

    Raises:
      UserError: the word is empty, or the data has a subject and its class, which must not have the word.
    """
    info, captioned = opened.info, "text" in opened.info.fields
    if not word.strip():
        raise UserError("data.trigger is blank: give a word, or leave it out")
    if info.num_prior:
        raise UserError(
            f"data.trigger={word!r} would be put before captions of the class too: write it into data.instance_prompt"
        )
    of = f"{info.fingerprint} with {word} in every caption"
    info = dataclasses.replace(
        info,
        fingerprint=hashlib.sha256(of.encode()).hexdigest(),
        fields=info.fields if captioned else (*info.fields, "text"),
    )
    said = f"data.trigger {word!r} is put before captions that lack it" if captioned else f"every caption is {word!r}"
    source = Triggered(opened.source, word, captioned)
    return dataclasses.replace(opened, info=info, source=source, remarks=(*opened.remarks, said))
