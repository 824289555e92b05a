"""Numbers of an ablation: means with confidence intervals, and comparisons with the baseline that may be defended.

Seeds are pairs: a cell and the baseline with one seed share data order and noise, so the paired t-test is the test. Of
many comparisons some come out small by chance; p-values are corrected by Holm's method (1979) over all of them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

LEVEL = 0.95
_LOWER = (
    "fd",
    "fd_dinov2",
    "fid",
    "kd",
    "kid",
    "cmmd",
    "bits_per_dim",
    "perplexity",
    "distance",
    "loss",
    "network_evaluations",
    "exact_copies",
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over `count` seeds and the half-width of its 95% interval by Student's t; nan for one seed."""

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """From the values of the seeds."""
        values = np.asarray(values, float)
        if len(values) < 2:
            return cls(float(values.mean()), math.nan, len(values))
        quantile = scipy.stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)
        return cls(float(values.mean()), float(quantile * scipy.stats.sem(values)), len(values))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A cell against the baseline, over the seeds that both have.

    Attributes:
      difference: cell minus baseline.
      p: of the paired t-test, before the correction; nan for fewer than two seeds, or differences that are all equal.
      corrected: by Holm's method over all comparisons of a table.
    """

    difference: Estimate
    p: float
    corrected: float = math.nan


def compare(cell: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """From the values by seed; None when no seed is common."""
    seeds = sorted(set(cell) & set(baseline))
    if not seeds:
        return None
    differences = np.array([cell[seed] - baseline[seed] for seed in seeds])
    constant = len(seeds) < 2 or np.ptp(differences) == 0
    p = math.nan if constant else float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
    return Comparison(Estimate.of(differences), p)


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with corrected p-values; those that have no p-value do not count."""
    known = [i for i, one in enumerate(comparisons) if math.isfinite(one.p)]
    corrected = list(comparisons)
    worst = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: comparisons[i].p)):
        worst = max(worst, min(1.0, (len(known) - rank) * comparisons[i].p))
        corrected[i] = dataclasses.replace(comparisons[i], corrected=worst)
    return corrected


def lower_is_better(name: str) -> bool:
    """Whether less of a number is better: of distances, code lengths and costs."""
    return name.endswith(_LOWER)


def pareto_front(costs: Sequence[float], values: Sequence[float], *, lower: bool) -> list[bool]:
    """Whether no other point is at least as cheap and at least as good, and better in one of the two."""
    sign = 1.0 if lower else -1.0
    points = [(cost, sign * value) for cost, value in zip(costs, values, strict=True)]
    return [not any(a <= c and b <= v and (a, b) != (c, v) for a, b in points) for c, v in points]
