"""The data set "glyphs": words and lines in many fonts, each drawn on access from (options, split, index)."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int, UInt8

from diffusion_jax.data.glyphs import fonts, rendering, strings
from diffusion_jax.data.glyphs.fonts import FontSet
from diffusion_jax.data.glyphs.rendering import Lettering
from diffusion_jax.data.scenes.draws import Draws
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets, default_data_dir, describers
from diffusion_jax.domains import Bounds, check_arguments
from diffusion_jax.errors import UserError
from diffusion_jax.specs import DataSpec

VERSION = 1
"""The generator's version, which changes with its bytes; part of the fingerprint."""
SPLITS = ("train", "validation", "test", "held_out")
MOST_WORDS = 3  # words of a line
_ATTEMPTS = 1000  # attempts to draw a string that belongs to a split

PlaceOfLetters = Literal["anywhere", "middle"]
PictureSize = Annotated[int, Bounds(low=16, high=512)]
Length = Annotated[int, Bounds(low=1, high=32)]
HeldOutShare = Annotated[float, Bounds(low=0, high=0.5)]
Count = Annotated[int, Bounds(low=1, high=2**31)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlyphOptions:
    """Options of pictures of letters.

    Attributes:
      size: side of the square pictures in pixels.
      kind: "word", or "line", two or three words on one line.
      least_length, most_length: characters of a word.
      alphabet: characters that words are made of.
      fonts: "fetched", by experiments.prepare_data, or "bundled", those of matplotlib.
      place: "anywhere", at 85 to 100% of the largest size that fits; or in the "middle" at that size, where a glyph
        canvas draws them.
      held_out: the share of strings of three characters or more that only the split "held_out" shows.
      num_examples: examples in the split "train".
      num_test: examples in every other split.
      seed: seed of the pictures; the held-out strings do not depend on it.

    Raises:
      UserError: a value has a wrong type or is out of bounds, the lengths are in the wrong order, a character is a
        blank, a quotation mark or repeated, or words would be too long to read at this size.
    """

    size: PictureSize = 64
    kind: strings.Kind = "word"
    least_length: Length = 3
    most_length: Length = 8
    alphabet: str = strings.CLEAR
    fonts: FontSet = "fetched"
    place: PlaceOfLetters = "anywhere"
    held_out: HeldOutShare = 0.1
    num_examples: Count = 50_000
    num_test: Count = 2_000
    seed: int = 0

    def __post_init__(self):
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check_arguments("dataset 'glyphs'", type(self), values)
        if self.least_length > self.most_length:
            raise UserError(
                f"dataset 'glyphs': least_length={self.least_length} is more than most_length={self.most_length}"
            )
        wrong = [c for c in self.alphabet if c.isspace() or not c.isprintable() or c in '"\u201c\u201d{}']
        if wrong or len(set(self.alphabet)) < max(2, len(self.alphabet)):
            raise UserError(
                "dataset 'glyphs': alphabet must be two characters or more, each once, without blanks, braces and "
                f"quotation marks; it is {self.alphabet!r}"
            )
        longest = self.most_length if self.kind == "word" else MOST_WORDS * (self.most_length + 1) - 1
        if rendering.room(self.size) < 0.62 * rendering.LEAST_HEIGHT * longest:
            least = int(np.ceil(0.62 * rendering.LEAST_HEIGHT * longest / (1 - 2 * rendering.MARGIN)))
            raise UserError(
                f"dataset 'glyphs': a {self.kind} of {longest} characters cannot be read in {self.size} pixels: set "
                f"size={least} or more, or a shorter most_length"
            )

    def length(self, split: str) -> int:
        """The number of examples of a split."""
        return self.num_examples if split == "train" else self.num_test


def check_split(options: GlyphOptions, split: str) -> None:
    """Raise UserError unless there is such a split."""
    if split not in SPLITS:
        raise UserError(f"dataset 'glyphs' has the splits {', '.join(SPLITS)}, not {split!r}")
    if split == "held_out" and (not options.held_out or options.most_length < strings.LEAST_HELD_OUT):
        raise UserError(
            "dataset 'glyphs': the split 'held_out' is empty: it needs held_out above 0 and words of "
            f"{strings.LEAST_HELD_OUT} characters or more (most_length)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The text of a picture and how it is to be drawn.

    Attributes:
      text: one line.
      kind: "word" or "line".
      family: the font.
      colour, ground: names in `strings.COLOURS` and `strings.GROUNDS`.
      share: size relative to the largest that fits, 0.85 to 1.
      place: position between the edges, across and down, each 0 to 1.
    """

    text: str
    kind: strings.Kind
    family: fonts.Family
    colour: str
    ground: str
    share: float
    place: tuple[float, float]

    @property
    def facts(self) -> dict[str, str]:
        """The facts that captions may mention."""
        return {
            "text": self.text,
            "kind": self.kind,
            "colour": self.colour,
            "ground": self.ground,
            "family": self.family.name,
        }

    def draw(self, size: int, data_dir: str) -> tuple[Lettering, UInt8[np.ndarray, "size size"]]:
        """The lettering of a picture with this side, with its boxes, and the coverage of the pixels."""
        path = fonts.path_of(self.family, data_dir)
        em = self.share * min(rendering.largest_em(self.text, path, size), rendering.LARGEST * size)
        covered = rendering.coverage(self.text, path, size, em, self.place)
        box, words = rendering.boxes(covered, self.text, path, em)
        return Lettering(**self.facts, em=em, box=box, words=words), covered

    def picture(self, size: int, data_dir: str) -> UInt8[np.ndarray, "size size 3"]:
        """The pixels."""
        return rendering.paint(self.draw(size, data_dir)[1], self.colour, self.ground)


def plans(options: GlyphOptions, draws: Draws, *, held_out: bool) -> list[Plan]:
    """A plan for each stream of random numbers; nothing is drawn and no font is needed."""
    choices = fonts.families(options.fonts, held_out=held_out)
    texts = _texts(options, draws, held_out=held_out)
    family, pair = draws.below(len(choices)), draws.below(len(strings.PAIRS))
    share, place = 0.85 + 0.15 * draws.uniform(), draws.uniform(2)
    if options.place == "middle":
        share, place = np.ones_like(share), np.full_like(place, 0.5)
    return [
        Plan(
            text=text,
            kind=options.kind,
            family=choices[family[row]],
            colour=strings.PAIRS[pair[row]][0],
            ground=strings.PAIRS[pair[row]][1],
            share=float(share[row]),
            place=tuple(place[row].tolist()),
        )
        for row, text in enumerate(texts)
    ]


def _texts(options: GlyphOptions, draws: Draws, *, held_out: bool) -> list[str]:
    """Strings that belong to a split: for each the first suitable candidate."""
    slots = 1 if options.kind == "word" else MOST_WORDS
    count = np.ones(len(draws.keys), np.int64) if slots == 1 else 2 + draws.below(MOST_WORDS - 1)
    least = max(options.least_length, strings.LEAST_HELD_OUT) if held_out else options.least_length
    return [
        " ".join(_word(options, draws.only(np.array([row])), slot, least, held_out) for slot in range(count[row]))
        for row in range(len(draws.keys))
    ]


def _word(options: GlyphOptions, draws: Draws, slot: int, least: int, held_out: bool) -> str:
    """One word, from random numbers far away from those for the rest of the picture."""
    draws.position = 2**20 * (slot + 1)
    length = least + int(draws.below(options.most_length - least + 1)[0])
    text = ""
    for _ in range(_ATTEMPTS):
        text = "".join(options.alphabet[i] for i in draws.below(len(options.alphabet), length)[0])
        if strings.is_held_out(text, options.held_out) == held_out:
            break
    else:
        raise UserError(
            f"dataset 'glyphs': no string of {length} characters of this alphabet is "
            f"{'held out' if held_out else 'for training'}: take a longer alphabet, or another held_out"
        )
    return text


@dataclasses.dataclass(frozen=True)
class GlyphSource:
    """Pictures of letters with captions: {"image": uint8 [size, size, 3], "text": str}."""

    options: GlyphOptions
    split: str
    data_dir: str

    def __len__(self) -> int:
        return self.options.length(self.split)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[Example]:
        """Draw many at once.

        Raises:
          IndexError: an index is not in 0..len - 1.
          UserError: a font is missing.
        """
        return [
            {"image": plan.picture(self.options.size, self.data_dir), "text": text}
            for plan, text in self._made(indices)
        ]

    def texts(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[str]:
        """The captions; nothing is drawn."""
        return [text for _, text in self._made(indices)]

    def described(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[tuple[Lettering, str]]:
        """The lettering of each picture with its boxes, and the captions."""
        return [(plan.draw(self.options.size, self.data_dir)[0], text) for plan, text in self._made(indices)]

    def _made(self, indices) -> list[tuple[Plan, str]]:
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"glyphs, split {self.split!r}, has {len(self)} examples")
        draws = Draws.of(self.options.seed, SPLITS.index(self.split), indices)
        made = plans(self.options, draws, held_out=self.split == "held_out")
        wording = draws.below(len(strings.TEMPLATES))
        return [
            (plan, strings.caption(strings.TEMPLATES[which], **plan.facts))
            for plan, which in zip(made, wording, strict=True)
        ]


def describe_glyphs(*, split: str = "train", data_dir: str | None = None, **options) -> DatasetInfo:
    """The description of a split without its fonts; arguments and errors are those of `open_glyphs`, except missing
    fonts."""
    chosen = GlyphOptions(**options)
    check_split(chosen, split)
    said = f"{VERSION} {chosen!r} {split} {fonts.digest(chosen.fonts, data_dir or default_data_dir())}"
    return DatasetInfo(
        name="glyphs",
        split=split,
        num_examples=chosen.length(split),
        spec=DataSpec(kind="pixels", shape=(chosen.size, chosen.size, 3)),
        fingerprint=hashlib.sha256(said.encode()).hexdigest(),
        fields=("text",),
    )


describers["glyphs"] = describe_glyphs


@datasets.register("glyphs", example={"num_examples": 8, "num_test": 4, "size": 48, "fonts": "bundled"})
def open_glyphs(
    *,
    split: str = "train",
    data_dir: str | None = None,
    size: PictureSize = 64,
    kind: strings.Kind = "word",
    least_length: Length = 3,
    most_length: Length = 8,
    alphabet: str = strings.CLEAR,
    fonts: FontSet = "fetched",
    place: PlaceOfLetters = "anywhere",
    held_out: HeldOutShare = 0.1,
    num_examples: Count = 50_000,
    num_test: Count = 2_000,
    seed: int = 0,
) -> Dataset:
    """Words and lines of letters and digits with captions; the arguments are those of `GlyphOptions`.

    Splits: "train"; "validation" and "test", with the same fonts and strings that are not held out; "held_out", with
      fonts
    and strings that the others never show.

    Args:
      data_dir: directory with the fetched fonts.
      size: side of the square pictures in pixels.
      kind: "word", or "line", two or three words.
      least_length, most_length: characters of a word.
      alphabet: characters that words are made of.
      fonts: "fetched", or "bundled".
      place: "anywhere", or in the "middle" and as large as fits.
      held_out: share of strings that only the split "held_out" shows.
      num_examples: examples of the split "train".
      num_test: examples of every other split.

    Raises:
      UserError: see `GlyphOptions`; or the split is unknown, or a font is missing or lacks a character.
    """
    options = GlyphOptions(
        size=size,
        kind=kind,
        least_length=least_length,
        most_length=most_length,
        alphabet=alphabet,
        fonts=fonts,
        place=place,
        held_out=held_out,
        num_examples=num_examples,
        num_test=num_test,
        seed=seed,
    )
    return _opened(options, split, data_dir or default_data_dir())


def _opened(options: GlyphOptions, split: str, data_dir: str) -> Dataset:
    from diffusion_jax.data.glyphs.prompts import WordSuite  # which imports this module

    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    info = describe_glyphs(split=split, data_dir=data_dir, **values)
    fonts.require(options.fonts, data_dir)
    fonts.check_characters(options.alphabet, fonts.SETS[options.fonts], data_dir)
    source = GlyphSource(options, split, data_dir)
    return Dataset(info=info, source=source, prompts=WordSuite(options, data_dir=data_dir))
