"""Can the requested words be read in samples, by engines independent of our models?"""

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import scipy.stats
from jaxtyping import Float, UInt8

from diffusion_jax.data.glyphs import GlyphOptions, WordPrompt, WordSuite
from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import METRICS, ImageSet, Number, check_same_shape, proportion
from diffusion_jax.metrics.ocr import RAPID_OCR, ByHeart, RapidOcr, Tesseract, TextReader

RAPID, TESSERACT = RapidOcr(), Tesseract()
_MOST_COMPARED = 50  # other words that each reading is compared with, to estimate chance
_MOST_TRUE = 200  # true pictures that are read for the ceiling
_MOST_SECOND = 100  # samples, and true pictures, that a second engine reads
Pictures = UInt8[np.ndarray, "n size size 3"]


def compared(text: str, alphabet: str) -> str:
    """A text prepared for comparison: normalised Unicode, single blanks, and lower case if the alphabet has only that.

    With an alphabet of lower-case letters, an engine could tell c from C only by its size.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    return plain if any(c.isupper() for c in alphabet) else plain.lower()


def edit_distance(a: str, b: str) -> float:
    """Levenshtein's distance divided by the length of the longer text: 0 for equal texts, 1 if all letters differ."""
    if not a and not b:
        return 0.0
    row = list(range(len(b) + 1))
    for i, of_a in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, of_b in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (of_a != of_b))
    return row[-1] / max(len(a), len(b))


def mean_with_interval(name: str, values: Float[np.ndarray, " n"]) -> dict[str, float]:
    """`name`, with the 95% interval of the mean by Student's t, within [0, 1], as `name_low` and `name_high`."""
    mean = float(values.mean())
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    half = float(scipy.stats.t.ppf(0.975, max(1, len(values) - 1))) * error
    return {name: mean, f"{name}_low": max(0.0, mean - half), f"{name}_high": min(1.0, mean + half)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordReading:
    """Base of both metrics of reading.

    Attributes:
      prompts: prompts with the word that each asks for, from data.dataset=glyphs.
      reader: the engine that decides.
      second: a second engine; None takes tesseract if it is installed.
      round_trip: sends pictures through the first stage, if there is one.

    Raises:
      UserError: there are no prompts.
    """

    prompts: WordSuite | None = None
    reader: TextReader = RAPID
    second: TextReader | None = None
    round_trip: Callable[[Pictures], Pictures] | None = None
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"samples", "prompts"})
    requires: ClassVar[str] = "word"
    modules: ClassVar[tuple[str, ...]] = RAPID_OCR
    extra: ClassVar[str] = "judges"

    def __post_init__(self):
        if not self.prompts:
            raise UserError(
                f"{self.headline} needs prompts with the words that they ask for: data.dataset=glyphs has them; leave "
                "this metric out for other data"
            )

    @property
    def judges(self) -> tuple[str, ...]:
        """The engines, for the record."""
        return tuple(reader.described for reader in (self.reader, self._second) if reader is not None)

    @property
    def _second(self) -> TextReader | None:
        """The second engine, if there is one."""
        return self.second or (TESSERACT if self.reader == RAPID and Tesseract.is_there() else None)

    def _score(self, read: str, wanted: str) -> float:
        """The score of one reading."""
        raise NotImplementedError

    def _summary(self, name: str, scores: Float[np.ndarray, " n"]) -> dict[str, float]:
        """The mean with its interval."""
        raise NotImplementedError

    def scores(self, images: Pictures, words: Sequence[str], reader: TextReader | None = None) -> np.ndarray:
        """How well an engine reads the word in each picture.

        Raises:
          UserError: the numbers of words and pictures differ.
        """
        if len(images) != len(words):
            raise UserError(f"{len(images)} pictures for {len(words)} words: give one for each")
        return self._scores((reader or self.reader).read(images), words)

    def _scores(self, seen: Sequence[str], words: Sequence[str]) -> np.ndarray:
        alphabet = self.prompts.options.alphabet
        pairs = zip(seen, words, strict=True)
        return np.array([self._score(compared(a, alphabet), compared(b, alphabet)) for a, b in pairs], np.float64)

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the headline with its 95% interval, the same for seen and for held-out words and fonts, `ceiling`,
        `round_trip` for latents, `shuffled`, the second engine's scores, and the number of samples."""
        check_same_shape(samples, train, test)
        asked = self._asked(samples)
        words, name = [prompt.word for prompt in asked], self.headline
        new = np.array([prompt.held_out for prompt in asked], bool)
        seen = self.reader.read(samples.images)
        scores = self._scores(seen, words)
        found = self._summary(name, scores)
        for group, chosen in {"seen": ~new, "held_out": new}.items():
            found |= self._summary(f"{name}_{group}", scores[chosen]) if chosen.any() else {}
        found |= {**self._bounds(asked, self.reader, _MOST_TRUE), "shuffled": self._by_chance(seen, words)}
        if self._second is not None:
            order = sorted(range(len(asked)), key=lambda i: (asked[i].text, samples.images[i].tobytes()))
            some = order[:: -(-len(order) // _MOST_SECOND)]
            told = self.scores(samples.images[some], [words[i] for i in some], self._second)
            found |= self._summary(f"second_{name}", told)
            bounds = self._bounds([asked[i] for i in some], self._second, _MOST_SECOND)
            found |= {f"second_{key}": value for key, value in bounds.items()}
            found["second_num_samples"] = len(some)
        return {**found, "num_samples": len(samples)}

    def _asked(self, samples: ImageSet) -> list[WordPrompt]:
        """The prompts of the samples.

        Raises:
          UserError: the samples have no texts, or others.
        """
        if samples.texts is None:
            raise UserError(f"{self.headline} needs the prompts of the samples, but they have none")
        known = self.prompts.by_text()
        other = next((text for text in samples.texts if text not in known), None)
        if other is not None:
            raise UserError(
                f"the word of {other!r} is unknown: {self.headline} judges only samples for the prompts of its data set"
            )
        return [known[text] for text in samples.texts]

    def _bounds(self, asked: Sequence[WordPrompt], reader: TextReader, most: int) -> dict[str, float]:
        """The score of true pictures for these prompts, as they are and after the first stage."""
        texts = {prompt.text for prompt in asked}
        rows = [i for i, prompt in enumerate(self.prompts) if prompt.text in texts][:most]
        pictures, words = self.prompts.pictures(rows), [self.prompts[i].word for i in rows]
        found = {"ceiling": float(self.scores(pictures, words, reader).mean())}
        if self.round_trip is not None:
            found["round_trip"] = float(self.scores(self.round_trip(pictures), words, reader).mean())
        return found

    def _by_chance(self, seen: Sequence[str], words: Sequence[str]) -> float:
        """The score against the words of other samples, as if samples ignored their prompts."""
        others = sorted(set(words))
        step = max(1, len(others) // _MOST_COMPARED)
        pairs = [(read, o) for read, word in zip(seen, words, strict=True) for o in others[::step] if o != word]
        return float(self._scores(*zip(*pairs, strict=True)).mean()) if pairs else self._worst

    @property
    def _worst(self) -> float:
        return 1.0 if self.lower_is_better else 0.0


def _numbers(name: str, label: str, lower: bool, kind: str) -> dict[str, Number]:
    """Labels and formats of the keys that every result has."""
    return {
        name: Number(label=label, kind=kind),
        f"{name}_seen": Number(label="Of fonts and strings like those of training", kind=kind, lower_is_better=lower),
        f"{name}_held_out": Number(label="Of fonts and strings never shown", kind=kind, lower_is_better=lower),
        "ceiling": Number(label="True renders of the same prompts", kind=kind),
        "round_trip": Number(label="The same through the first stage", kind=kind),
        "shuffled": Number(label="Against the words of other samples", kind=kind),
    }


_SUITE = WordSuite(GlyphOptions(size=32, most_length=5, fonts="bundled"), 60)
_EXAMPLE = {"prompts": _SUITE, "reader": ByHeart(prompts=_SUITE), "round_trip": np.asarray}


@METRICS.register("word_accuracy", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class WordAccuracy(WordReading):
    """Share of samples in which RapidOCR reads exactly the requested word, letter by letter.

    The judge sees only the picture, cropped to its foreground (`metrics.ocr`): a stray mark makes it wrong.

    How to read it: the score is also given separately for fonts and strings like those in training, and for held-out
      ones.
    `ceiling` is the score of true renders of at most 200 of the same prompts. `shuffled` is the score of the samples
    against the words of other samples, which is chance. `second_...` are tesseract's scores of at most 100 of the
    samples and of their true renders, if it is installed. For a model of latents, `round_trip` is the score of the true
    renders after its first stage has encoded and decoded them. The metric ignores colours, places and fonts.
    docs/letters.md says how the judge was tested.
    """

    title: ClassVar[str] = "Word accuracy"
    about: ClassVar[str] = (
        "An OCR engine that has seen no model of ours reads each sample: is it exactly the word that was asked for? "
        "The ceiling is what true renders score, chance is what the samples score against the words of others."
    )
    headline: ClassVar[str] = "word_accuracy"
    also: ClassVar[tuple[str, ...]] = ("word_accuracy_seen", "word_accuracy_held_out")
    numbers: ClassVar[Mapping[str, Number]] = _numbers(
        "word_accuracy", "Samples that read exactly as asked", False, "percent"
    )
    note: ClassVar[str] = "{ceiling} for true renders, {shuffled} by chance"

    def _score(self, read: str, wanted: str) -> float:
        return float(read == wanted)

    def _summary(self, name: str, scores: Float[np.ndarray, " n"]) -> dict[str, float]:
        return proportion(name, scores.astype(bool))


@METRICS.register("edit_distance", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class EditDistance(WordReading):
    """Mean normalised edit distance between what RapidOCR reads in a sample and the requested word.

    Levenshtein's distance divided by the length of the longer text, from 0 (exact) to 1 (nothing in common). It
    measures progress while a model writes no word exactly. Some papers call 1 minus this the normalised edit distance.
    The other keys are those of `WordAccuracy`.
    """

    title: ClassVar[str] = "Edit distance"
    about: ClassVar[str] = (
        "How far what an OCR engine reads in a sample is from the word that was asked for: edits over the length of "
        "the longer text, 0 where it is exact. The ceiling is what true renders score, chance is against other words."
    )
    headline: ClassVar[str] = "edit_distance"
    lower_is_better: ClassVar[bool] = True
    also: ClassVar[tuple[str, ...]] = ("edit_distance_seen", "edit_distance_held_out")
    numbers: ClassVar[Mapping[str, Number]] = _numbers("edit_distance", "Edits of the word as asked", True, "number")
    note: ClassVar[str] = "{ceiling} for true renders, {shuffled} by chance"

    def _score(self, read: str, wanted: str) -> float:
        return edit_distance(read, wanted)

    def _summary(self, name: str, scores: Float[np.ndarray, " n"]) -> dict[str, float]:
        return mean_with_interval(name, scores)
