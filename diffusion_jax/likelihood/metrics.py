"""Metrics of a model itself: the bits, or the choices per token, that held-out data cost under its bound.

They are in `METRICS` beside those of samples, read "model" and "held_out", and are called with a `Judged` model.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Float

from diffusion_jax.metrics.base import METRICS, Number

_Z = 1.959963984540054  # for the 95% interval of a mean


class Judged(Protocol):
    """A trained model together with held-out data.

    Attributes:
      bins: levels of every number of the data.
      evaluations: network evaluations for each example.
    """

    bins: int
    evaluations: int

    def nats(self) -> Float[np.ndarray, " n"]:
        """A bound on -log P of every held-out example, per number (per token for text), in float64."""


@METRICS.register("bits_per_dim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsPerDim:
    """An upper bound on -log2 P of held-out images, per dimension."""

    title: ClassVar[str] = "Bits per dimension"
    about: ClassVar[str] = (
        "An upper bound on the code length of held-out images under the model: the VDM's, in continuous time; of "
        "models of tokens that of their objective."
    )
    headline: ClassVar[str] = "bits_per_dim"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"model", "held_out"})
    numbers: ClassVar[Mapping[str, Number]] = {
        "bits_per_dim": Number(label="Bits per dimension"),
        "bins": Number(label="Levels of the data", kind="count"),
    }

    def __call__(self, model: Judged) -> dict[str, float]:
        """Returns `bits_per_dim`, the mean over images, with the 95% interval that follows from their number;
        `num_images`, `bins`, and the network evaluations for each."""
        values = model.nats() / math.log(2.0)
        mean, half = _interval(values)
        return {
            "bits_per_dim": mean,
            "bits_per_dim_low": mean - half,
            "bits_per_dim_high": mean + half,
            "num_images": len(values),
            "bins": model.bins,
            "network_evaluations": model.evaluations,
        }


@METRICS.register("perplexity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp of an upper bound on -log P per token of held-out text, with the data's own tokens."""

    title: ClassVar[str] = "Perplexity"
    about: ClassVar[str] = (
        "Of held-out text, an upper bound: the exponential of the model's bound on -log P, per token."
    )
    headline: ClassVar[str] = "perplexity"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"model", "held_out"})
    of: ClassVar[str] = "text"
    numbers: ClassVar[Mapping[str, Number]] = {
        "perplexity": Number(label="Perplexity"),
        "bits_per_token": Number(label="Bits per token", lower_is_better=True),
    }

    def __call__(self, model: Judged) -> dict[str, float]:
        """Returns `perplexity`, with the 95% interval that follows from the number of sequences; `bits_per_token`;
        `num_sequences` and the network evaluations for each."""
        values = model.nats()
        mean, half = _interval(values)
        return {
            "perplexity": math.exp(mean),
            "perplexity_low": math.exp(mean - half),
            "perplexity_high": math.exp(mean + half),
            "bits_per_token": mean / math.log(2.0),
            "num_sequences": len(values),
            "network_evaluations": model.evaluations,
        }


def _interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The mean, and half of its 95% interval."""
    half = _Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), half
