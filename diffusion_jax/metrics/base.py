"""What a metric is: its inputs, its result, its facts, and the registry.

A metric is a frozen dataclass, called with three sets of images: the `samples` of the model, the `train` images the
model has seen, the `test` images it has not. It returns a flat dict of finite numbers. Two naming rules let a report
show any of them: `<name>_low` and `<name>_high` are the 95% interval of `<name>`; `class_<k>` belongs to class k.

Metrics of the model itself, which use held-out data and no samples, are in the same table
(`diffusion_jax.likelihood`). Every metric states its facts (`Facts`) as class attributes, and code that ranks, shows or
chooses metrics reads those.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int, UInt8

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images with, where the data has classes, their labels.

    Attributes:
      images: uint8 [n, height, width, channels], n >= 1.
      labels: integers [n], or None. For samples: the requested class.
      texts: n texts, or None. For samples: the prompts.

    Raises:
      UserError: another dtype or rank, no image at all, or a number of labels or texts that differs from the number of
        images.
    """

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"] | None = None
    texts: tuple[str, ...] | None = None

    def __post_init__(self):
        images = np.asarray(self.images)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(
                f"a metric takes uint8 images [n, height, width, channels], not {images.dtype} {list(images.shape)}; "
                "scale images in [-1, 1] by (x + 1) * 127.5, round and cast"
            )
        if not len(images):
            raise UserError("a metric needs at least one image in each set; one set is empty")
        object.__setattr__(self, "images", images)
        if self.texts is not None:
            object.__setattr__(self, "texts", tuple(self.texts))
            if len(self.texts) != len(images):
                raise UserError(f"{len(self.texts)} texts for {len(images)} images: give one for each")
        if self.labels is None:
            return
        labels = np.asarray(self.labels)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"labels must be {len(images)} integers, not {labels.dtype} {list(labels.shape)}")
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.images)

    def flat(self) -> Float[np.ndarray, "n pixels"]:
        """The images as rows of float32 in [-1, 1]."""
        return self.images.reshape(len(self.images), -1).astype(np.float32) / 127.5 - 1.0

    def subset(self, limit: int | None, *, seed: int = 0) -> "ImageSet":
        """At most `limit` images, drawn without replacement; the same ones every time, in their original order."""
        if limit is None or len(self) <= limit:
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:limit]))

    def take(self, chosen: Int[np.ndarray, " m"]) -> "ImageSet":
        """The images at these positions, with their labels and texts."""
        return ImageSet(
            images=self.images[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            texts=None if self.texts is None else tuple(self.texts[i] for i in chosen),
        )


READS = ("samples", "train", "held_out", "classes", "texts", "prompts", "model", "reconstructions")
"""What a metric may read: samples; training data; held-out data; the classes of all these; the texts that samples were
drawn for; prompts together with what the data knows about them; the model's own likelihood; reconstructions, where
sample i belongs to held-out example i."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """What a report needs to know about one number of a metric.

    Attributes:
      label: its name.
      kind: how it is formatted.
      lower_is_better: whether a lower value is better, or a higher one; None: neither.
      target: if `lower_is_better` is None, the best value; if this is None too, the number does not rank.
    """

    label: str
    kind: Literal["number", "percent", "count", "ratio"] = "number"
    lower_is_better: bool | None = None
    target: float | None = None

    @property
    def ranks(self) -> bool:
        """Whether one value can be better than another."""
        return self.lower_is_better is not None or self.target is not None

    def badness(self, value: float) -> float:
        """A value that grows as the number gets worse; infinite if it is missing or not finite.

        Raises:
          UserError: the number does not rank.
        """
        if not self.ranks:
            raise UserError(f"{self.label}: neither larger nor smaller values are better")
        if not math.isfinite(value):
            return math.inf
        if self.lower_is_better is None:
            return abs(value - self.target)
        return value if self.lower_is_better else -value

    @property
    def arrow(self) -> str:
        """The arrow that shows the direction, placed after a name."""
        if self.lower_is_better is None:
            return "" if self.target is None else f"→ {self.target:g}"
        return "↓" if self.lower_is_better else "↑"


COUNTS: Mapping[str, Number] = {
    "num_samples": Number(label="samples", kind="count"),
    "num_train": Number(label="training images", kind="count"),
    "num_real": Number(label="real images", kind="count"),
    "num_held_out": Number(label="held-out images", kind="count"),
    "num_images": Number(label="held-out images", kind="count"),
    "num_sequences": Number(label="held-out sequences", kind="count"),
    "network_evaluations": Number(label="Network evaluations per example", kind="count"),
}
"""Numbers that say how much data the others are based on; they are known for every metric."""


class Metric(Protocol):
    """Numbers that describe a set of samples; see the module docstring for their names, and `Facts` for the rest."""

    title: ClassVar[str]
    about: ClassVar[str]
    headline: ClassVar[str]
    lower_is_better: ClassVar[bool | None]
    reads: ClassVar[frozenset[str]]

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Compute the metric.

        Raises:
          UserError: the image sizes differ, or labels are missing that the metric needs.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """The class attributes of a metric, of which the first five are required.

    Attributes:
      title: its name for people.
      about: one or two sentences on what it measures and how to read it.
      headline: the key of its result that decides; every result has it, unless `headline_may_lack`.
      lower_is_better: whether less of the headline is better; None: it is best near `target`.
      reads: what it reads, some of `READS`.
      target: if `lower_is_better` is None, the best value.
      of: the kind of data that it judges.
      also: further keys of its result that rank and stand beside the headline in tables.
      numbers: labels and formats of its numbers, together with those in `COUNTS`; other keys are shown as they are.
      note: the line below the headline on a card, with keys of the result in braces; omitted if one is missing.
      headline_may_lack: whether the headline is undefined for some data, and then missing.
      needs: the kind of feature space that its field `space` takes, or None.
      least_side: the least height and width of pictures that it accepts.
      reference_field: the field of config.evaluation that names a published file of statistics for its field
        `reference`, or "".
      requires: for a metric that reads prompts, whether these require a "scene" or a "word".
      modules: Python modules of the engines that it uses, beyond those of every installation; such a metric names the
        engines and their versions in `judges`, a tuple of texts.
      extra: the extra of this package that installs them.
    """

    title: str
    about: str
    headline: str
    lower_is_better: bool | None
    reads: frozenset[str]
    target: float | None = None
    of: Literal["images", "text"] = "images"
    also: tuple[str, ...] = ()
    numbers: Mapping[str, Number] = dataclasses.field(default_factory=dict)
    note: str = ""
    headline_may_lack: bool = False
    needs: str | None = None
    least_side: int = 1
    reference_field: str = ""
    requires: Literal["scene", "word"] = "scene"
    modules: tuple[str, ...] = ()
    extra: str = ""

    def number(self, key: str) -> Number:
        """The facts about a key of the result; the headline has the direction of the metric."""
        plain = Number(label=key.removeprefix("num_").replace("_", " "))
        found = self.numbers.get(key) or COUNTS.get(key, plain)
        if key == self.headline:
            return dataclasses.replace(found, lower_is_better=self.lower_is_better, target=self.target)
        return found

    @property
    def shown(self) -> tuple[str, ...]:
        """The keys that tables show, the headline first."""
        return (self.headline, *self.also)


_STATED = ("title", "about", "headline", "lower_is_better", "reads")


def facts_of(metric: Any, name: str) -> Facts:
    """The facts of a metric or its class; an error calls it `name`.

    Raises:
      UserError: a fact is missing, or has a wrong type.
    """
    missing = [fact for fact in _STATED if not hasattr(metric, fact)]
    if missing:
        raise UserError(f"metric {name!r} does not state {', '.join(missing)}: give it these as class attributes")
    facts = Facts(**{f.name: getattr(metric, f.name) for f in dataclasses.fields(Facts) if hasattr(metric, f.name)})
    empty = [fact for fact in ("title", "about", "headline") if not _is_text(getattr(facts, fact))]
    if empty:
        raise UserError(f"metric {name!r}: {', '.join(empty)} must be text that is not empty")
    if not isinstance(facts.reads, frozenset) or not facts.reads or not facts.reads <= set(READS):
        raise UserError(f"metric {name!r}: reads must be a frozenset of some of {', '.join(READS)}")
    target_is_number = isinstance(facts.target, int | float) and math.isfinite(facts.target)
    directed = isinstance(facts.lower_is_better, bool) and facts.target is None
    if not directed and not (facts.lower_is_better is None and target_is_number):
        raise UserError(
            f"metric {name!r}: lower_is_better must be True or False, or None with a finite target, the best value"
        )
    unranked = [key for key in facts.also if not facts.number(key).ranks]
    if unranked:
        raise UserError(f"metric {name!r}: {', '.join(unranked)} of `also` needs a direction in `numbers`")
    return facts


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


class MetricRegistry(Registry[Metric]):
    """The table of metrics. A metric without its facts cannot be registered."""

    def register(self, name: str, *, example: Mapping[str, Any] | None = None) -> Callable:
        """As of `Registry`.

        Raises:
          UserError: a fact is missing or wrong.
        """
        add = super().register(name, example=example)

        def checked(factory: Callable[..., Metric]) -> Callable[..., Metric]:
            facts_of(factory, name)
            return add(factory)

        return checked

    def facts(self, name: str) -> Facts:
        """The facts of a metric.

        Raises:
          UserError: unknown metric.
        """
        return facts_of(self[name], name)


METRICS = MetricRegistry("metric")


def evaluate_all(
    metrics: Iterable[str] | Mapping[str, Metric], samples: ImageSet, *, train: ImageSet, test: ImageSet
) -> dict[str, dict[str, float]]:
    """Several metrics at once: {metric name: {number name: value}}, the content of `evaluation.json`.

    Args:
      metrics: names, of metrics that need no feature space, or metrics by name.
      samples: samples of the model.
      train: images it has seen.
      test: images it has not.

    Raises:
      UserError: an unknown metric (before any is computed), a metric of the model and not of samples, input that one of
        them cannot take, or a result without the metric's headline.
    """
    if not isinstance(metrics, Mapping):
        metrics = {name: METRICS.build(name) for name in metrics}
    of_model = [name for name in metrics if name in METRICS and "model" in METRICS.facts(name).reads]
    if of_model:
        raise UserError(f"{', '.join(of_model)}: measures the model itself, not samples; call it with a `Judged` model")
    return {
        name: checked_result(name, metric, metric(samples, train=train, test=test)) for name, metric in metrics.items()
    }


def checked_result(name: str, metric: Metric, result: Any) -> dict[str, float]:
    """The result of a metric, checked.

    Raises:
      UserError: it is no dict of numbers, or lacks the metric's headline.
    """
    if not isinstance(result, Mapping) or not all(isinstance(key, str) for key in result):
        raise UserError(f"metric {name!r} must return a dict of numbers by name, not {type(result).__name__}")
    wrong = [key for key, value in result.items() if isinstance(value, bool) or not isinstance(value, _NUMBERS)]
    if wrong:
        raise UserError(f"metric {name!r} must return numbers; {', '.join(wrong)}: not a number")
    facts = facts_of(metric, name)
    if facts.headline not in result and not facts.headline_may_lack:
        raise UserError(
            f"metric {name!r} returned {', '.join(result) or 'nothing'}; its headline {facts.headline!r} is not among "
            "these: return it, or state another headline"
        )
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in result.items()}


_NUMBERS = (int, float, np.floating, np.integer)


def check_same_shape(samples: ImageSet, *others: ImageSet) -> None:
    """Raise UserError unless all sets hold images of one height, width and number of channels."""
    for other in others:
        if other.images.shape[1:] != samples.images.shape[1:]:
            raise UserError(
                f"samples of shape {list(samples.images.shape[1:])} cannot be compared with real images of shape "
                f"{list(other.images.shape[1:])}; load the data at the resolution the model was trained on"
            )


def proportion(name: str, hits: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """The share of hits as numbers of a metric: `name`, with its 95% Wilson interval `name_low` to `name_high`."""
    interval = scipy.stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return {name: float(hits.mean()), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
