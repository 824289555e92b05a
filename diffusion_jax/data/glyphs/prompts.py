"""Prompts for letters: with strings and fonts that the training never shows, and with those that it shows."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.data.glyphs import strings
from diffusion_jax.data.glyphs.source import GlyphOptions, Plan, plans
from diffusion_jax.data.scenes.draws import Draws

_STREAM = 1000  # random numbers that no split uses


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordPrompt:
    """One prompt.

    Attributes:
      text: the prompt.
      word: the string that must be readable.
      held_out: whether the training never shows this string and this font.
    """

    text: str
    word: str
    held_out: bool


@dataclasses.dataclass(frozen=True)
class WordSuite(Sequence[WordPrompt]):
    """Prompts for strings; every second one has a held-out string in a held-out font, if there are any.

    `only_held_out` drops the others. `pictures` are true renders of the prompts.
    """

    requires: ClassVar[str] = "word"

    options: GlyphOptions
    num_prompts: int = 600
    data_dir: str = "data"
    only_held_out: bool = False

    def __len__(self) -> int:
        return self.num_prompts

    def __getitem__(self, index):
        return _prompts(self)[index]

    def __iter__(self) -> Iterator[WordPrompt]:
        return iter(_prompts(self))

    @property
    def has_held_out(self) -> bool:
        """Whether strings are held out at all."""
        return self.options.held_out > 0 and self.options.most_length >= strings.LEAST_HELD_OUT

    def by_text(self) -> dict[str, WordPrompt]:
        """The prompts by their texts."""
        return {prompt.text: prompt for prompt in self}

    def pictures(self, indices: Iterable[int]) -> UInt8[np.ndarray, "n size size 3"]:
        """A true picture for each of these prompts."""
        made = _plans(self)
        return np.stack([made[i].picture(self.options.size, self.data_dir) for i in np.fromiter(indices, np.int64)])


def _is_new(suite: WordSuite, index: int) -> bool:
    return suite.has_held_out and (suite.only_held_out or index % 2 == 0)


@functools.lru_cache(maxsize=8)
def _plans(suite: WordSuite) -> dict[int, Plan]:
    found = {}
    for new in (False, True):
        rows = np.array([i for i in range(suite.num_prompts) if _is_new(suite, i) == new], np.int64)
        made = plans(suite.options, Draws.of(suite.options.seed, _STREAM, rows), held_out=new)
        found |= zip(rows.tolist(), made, strict=True)
    return found


@functools.lru_cache(maxsize=8)
def _prompts(suite: WordSuite) -> tuple[WordPrompt, ...]:
    made = (_plans(suite)[index] for index in range(suite.num_prompts))
    return tuple(
        WordPrompt(text=strings.full_caption(**plan.facts), word=plan.text, held_out=_is_new(suite, index))
        for index, plan in enumerate(made)
    )
