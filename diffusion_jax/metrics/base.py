"""What a metric is: its inputs, its result, its registry.

A metric is a frozen dataclass, called with three sets of images: the `samples` of the model, the `train` images the
model has seen, the `test` images it has not. It returns a flat dict of finite numbers. Two naming rules let a report
show any of them: `<name>_low` and `<name>_high` are the 95% interval of `<name>`; `class_<k>` belongs to class k.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images with, where the data has classes, their labels.

    Attributes:
      images: uint8 [n, height, width, channels], n >= 1.
      labels: integers [n], or None. For samples: the class that was asked for.

    Raises:
      UserError: another dtype or rank, no image at all, or a number of labels that differs from the number of images.
    """

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"] | None = None

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
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:limit])
        return ImageSet(images=self.images[chosen], labels=None if self.labels is None else self.labels[chosen])


class Metric(Protocol):
    """Numbers that describe a set of samples; see the module docstring for the names."""

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Compute the metric.

        Raises:
          UserError: the image sizes differ, or labels are missing that the metric needs.
        """


METRICS: Registry[Metric] = Registry("metric")


def evaluate_all(
    metrics: Iterable[str] | Mapping[str, Metric], samples: ImageSet, *, train: ImageSet, test: ImageSet
) -> dict[str, dict[str, float]]:
    """Several metrics at once: {metric name: {number name: value}}, the content of `evaluation.json`.

    Args:
      metrics: names, of metrics that need no feature space, or metrics by name.
      samples: of the model.
      train: images it has seen.
      test: images it has not.

    Raises:
      UserError: unknown metric (before any is computed), or input that one of them cannot take.
    """
    if not isinstance(metrics, Mapping):
        metrics = {name: METRICS.build(name) for name in metrics}
    return {name: metric(samples, train=train, test=test) for name, metric in metrics.items()}


def check_same_shape(samples: ImageSet, *others: ImageSet) -> None:
    """Raise UserError unless all sets hold images of one height, width and number of channels."""
    for other in others:
        if other.images.shape[1:] != samples.images.shape[1:]:
            raise UserError(
                f"samples of shape {list(samples.images.shape[1:])} cannot be compared with real images of shape "
                f"{list(other.images.shape[1:])}; load the data at the resolution the model was trained on"
            )


def wilson_interval(successes: int, trials: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927, JASA 22, 209-212); 95% by default.

    Unlike p +- z sqrt(p (1 - p) / n) it stays inside [0, 1] and is not of zero width at p = 0 or 1.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    p = successes / trials
    scale = 1.0 / (1.0 + z * z / trials)
    centre = scale * (p + z * z / (2 * trials))
    half = scale * z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high
