"""Prompts for samples by category, as in GenEval (Ghosh et al. 2023, arXiv:2310.11513).

    single_object   "a star"                                    one, and nothing else
    two_objects     "a star and a ring"
    counting        "three red circles"
    colours         "a red star"
    position        "a red star to the left of a blue ring"
    colour_binding  "a red star, a blue ring and a pink heart"  each colour on its own shape

A prompt carries its requirement, so nobody parses its words. The first two categories name no colour. In the others
every second prompt has a pair of shape and colour that the training never shows.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.data.scenes.captions import OPENINGS, listed, named, relation_words, wanted_of
from diffusion_jax.data.scenes.composing import Arrangement, SceneOptions, arrange, held_out_pairs, training_pairs
from diffusion_jax.data.scenes.draws import Draws
from diffusion_jax.data.scenes.graph import Requirement, Scene
from diffusion_jax.data.scenes.painting import paint

CATEGORIES = ("single_object", "two_objects", "counting", "colours", "position", "colour_binding")
UNCOLOURED = CATEGORIES[:2]
_OF_ONE = ("single_object", "colours")  # the others have at least two objects
_STREAM = 1000  # random numbers that no split uses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
      text: the prompt; two prompts with the same text are equal.
      category: one of `CATEGORIES`.
      requirement: what a picture must show.
      held_out: whether it has a pair of shape and colour that the training never shows; None if it names no colour.
    """

    text: str
    category: str
    requirement: Requirement
    held_out: bool | None


@dataclasses.dataclass(frozen=True)
class PromptSuite(Sequence[Prompt]):
    """Prompts for scenes with given options; the categories take turns and are equally frequent."""

    requires: ClassVar[str] = "scene"

    options: SceneOptions
    num_prompts: int = 600

    def __len__(self) -> int:
        return self.num_prompts

    def __getitem__(self, index):
        return _prompts(self)[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(_prompts(self))

    @property
    def categories(self) -> tuple[str, ...]:
        """The possible categories: with only one object, one shape or one colour, only those with one object."""
        options = self.options
        several = min(options.max_objects, len(options.shapes), len(options.colours)) > 1
        return CATEGORIES if several else _OF_ONE

    def by_text(self) -> dict[str, Prompt]:
        """The prompts by their texts."""
        return {prompt.text: prompt for prompt in self}

    def pictures(self, indices: Iterable[int]) -> UInt8[np.ndarray, "n size size 3"]:
        """A true scene for each of these prompts."""
        scenes, chosen = _scenes(self), np.fromiter(indices, np.int64)
        rows = {f.name: getattr(scenes, f.name) for f in dataclasses.fields(Arrangement) if f.name != "options"}
        return paint(Arrangement(options=self.options, **{name: value[chosen] for name, value in rows.items()}))


@functools.lru_cache(maxsize=8)
def _scenes(suite: PromptSuite) -> Arrangement:
    """A scene for each prompt; the wording is made from these."""
    options, count = suite.options, suite.num_prompts
    draws = _draws(suite)
    numbers = draws.uniform(8).tolist()
    objects = [_objects(suite, index, numbers[index]) for index in range(count)]
    pairs = np.zeros((count, options.max_objects, 2), np.int64)
    for row, chosen in zip(pairs, objects, strict=True):
        row[: len(chosen)] = chosen
    return arrange(options, draws, np.array([len(chosen) for chosen in objects]), pairs)


def _draws(suite: PromptSuite) -> Draws:
    return Draws.of(suite.options.seed, _STREAM, np.arange(suite.num_prompts))


def _category(suite: PromptSuite, index: int) -> tuple[str, bool]:
    """The category of a prompt, and whether it has a held-out pair."""
    turn, place = divmod(index, len(suite.categories))
    category = suite.categories[place]
    return category, category not in UNCOLOURED and turn % 2 == 1 and len(held_out_pairs(suite.options)) > 0


def _objects(suite: PromptSuite, index: int, numbers: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs (shape, colour) for a prompt."""
    category, new = _category(suite, index)
    options, numbers = suite.options, iter(numbers)

    def one_of(choices: Sequence) -> tuple[int, int]:
        return choices[int(next(numbers) * len(choices))]

    known = list(map(tuple, training_pairs(options).tolist()))
    chosen = [one_of(list(map(tuple, held_out_pairs(options).tolist())) if new else known)]
    if category in _OF_ONE:
        return chosen
    if category == "counting":
        return chosen * one_of(range(2, options.max_objects + 1))
    most = min(3, options.max_objects, len(options.shapes), len(options.colours))
    for _ in range((one_of(range(2, most + 1)) if category == "colour_binding" else 2) - 1):
        shapes, colours = zip(*chosen, strict=True)
        others = [pair for pair in known if pair[0] not in shapes]
        unlike = [pair for pair in others if pair[1] not in colours]
        if others:
            chosen.append(one_of(unlike or others))
    first = int(next(numbers) * len(chosen))  # so that the held-out pair is not always named first
    return chosen[first:] + chosen[:first]


@functools.lru_cache(maxsize=8)
def _prompts(suite: PromptSuite) -> tuple[Prompt, ...]:
    scenes, draws = _scenes(suite), _draws(suite)
    draws.position = 2**20  # beyond the numbers that scenes use
    numbers = draws.uniform(3).tolist()
    return tuple(_prompt(suite, index, scenes.scene(index), numbers[index]) for index in range(suite.num_prompts))


def _prompt(suite: PromptSuite, index: int, scene: Scene, numbers: Sequence[float]) -> Prompt:
    category, new = _category(suite, index)
    coloured = category not in UNCOLOURED
    wanted = [wanted_of(one, colours=coloured) for one in scene.objects]
    relations: tuple[tuple[int, str, int], ...] = ()
    if category == "counting":
        words = named(wanted[0], len(wanted))
    elif category == "position":
        clear = scene.clearly(*scene.objects)  # never empty: boxes lie apart, and are larger than the margin
        relation = clear[int(numbers[1] * len(clear))]
        relations = ((0, relation, 1),)
        words = f"{named(wanted[0])} {relation_words(relation, numbers[2])} {named(wanted[1])}"
    else:
        words = listed([named(one) for one in wanted])
    return Prompt(
        text=OPENINGS[int(numbers[0] * len(OPENINGS))] + words,
        category=category,
        requirement=Requirement(objects=tuple(wanted), relations=relations),
        held_out=new if coloured else None,
    )
