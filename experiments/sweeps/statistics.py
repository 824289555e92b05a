"""Statistics of an ablation: means with confidence intervals, and sound comparisons with the baseline.

Seeds are pairs: a cell and the baseline with the same seed share data order and noise, so the paired t-test applies.
Among many comparisons some are small by chance; p-values are corrected by Holm's method (1979) over all of them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

LEVEL = 0.95
_ROUNDING = 4 * float(np.finfo(np.float32).eps)  # rounding of values computed in float32


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over `count` seeds and the half-width of its 95% interval by Student's t.

    Values that are not finite are ignored. The half-width is nan for one seed; for none, the mean is nan too.
    """

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Compute the estimate from the values of the seeds."""
        values = np.asarray(values, float)
        values = values[np.isfinite(values)]
        if len(values) < 2:
            return cls(float(values[0]) if len(values) else math.nan, math.nan, len(values))
        quantile = scipy.stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)
        return cls(float(values.mean()), float(quantile * scipy.stats.sem(values)), len(values))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A cell compared with the baseline, over the seeds that both have.

    Attributes:
      difference: cell minus baseline.
      p: p-value of the paired t-test, before the correction; nan for fewer than two seeds, and for differences that are
        equal up to rounding, whose spread does not come from the experiment.
      corrected: the p-value corrected by Holm's method over all comparisons of a table.
    """

    difference: Estimate
    p: float
    corrected: float = math.nan


def compare(cell: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """Compare values by seed; None if no seed is common. Values that are not finite are ignored."""
    pairs = [(cell[seed], baseline[seed]) for seed in sorted(set(cell) & set(baseline))]
    pairs = np.array([pair for pair in pairs if np.isfinite(pair).all()], float).reshape(-1, 2)
    if not len(pairs):
        return None
    differences = pairs[:, 0] - pairs[:, 1]
    if len(pairs) < 2 or np.ptp(differences) <= _ROUNDING * np.abs(pairs).max():
        return Comparison(Estimate(float(differences.mean()), math.nan, len(pairs)), math.nan)
    return Comparison(Estimate.of(differences), float(scipy.stats.ttest_1samp(differences, 0.0).pvalue))


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with corrected p-values; those without a p-value are ignored."""
    known = [i for i, one in enumerate(comparisons) if math.isfinite(one.p)]
    corrected = list(comparisons)
    worst = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: comparisons[i].p)):
        worst = max(worst, min(1.0, (len(known) - rank) * comparisons[i].p))
        corrected[i] = dataclasses.replace(comparisons[i], corrected=worst)
    return corrected


def best(badness: Sequence[float]) -> int | None:
    """The index of the least badness (`Number.badness`); None if no value is known."""
    known = [i for i, bad in enumerate(badness) if math.isfinite(bad)]
    return min(known, key=lambda i: badness[i], default=None)


def pareto_front(costs: Sequence[float], values: Sequence[float], *, lower: bool = True) -> list[bool]:
    """For each point, whether no other point is at least as cheap and at least as good, and better in one of the two.

    A point whose cost or value is not finite is not on the front, and displaces no other point.
    """
    sign = 1.0 if lower else -1.0
    points = [(cost, sign * value) for cost, value in zip(costs, values, strict=True)]
    known = [point for point in points if np.isfinite(point).all()]
    return [
        bool(np.isfinite(point).all())
        and not any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in known)
        for point in points
    ]
