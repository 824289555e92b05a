"""Distances between two sets of features, and scores of one set, in float64 whatever the features are.

    name                of                    compares                                       source
    frechet_distance    mean and covariance   two Gaussians                                  Heusel et al. 2017
    kernel_distance     features              unbiased MMD^2, kernel (x.y / d + 1)^3         Binkowski et al. 2018
    inception_score     class probabilities   each image's classes with those of all         Salimans et al. 2016
    precision_recall    features              each set with balls around the other           Kynkaanniemi et al. 2019
    density_coverage    features              the same, counting balls around reals only     Naeem et al. 2020

The features can be any: only with those of Inception-v3 are these FID and KID.
"""

from collections.abc import Iterator

import numpy as np
import scipy.linalg
from jaxtyping import Float

from diffusion_jax.errors import UserError

_ROWS = 2048  # rows of a matrix of pairs that is held at once


Gaussian = tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]
"""Mean and covariance, float64."""


def gaussian(features: Float[np.ndarray, "n d"]) -> Gaussian:
    """Mean and unbiased covariance (n - 1 in the denominator, as in every published FID) of features.

    Summed in float64, some rows at a time.

    Raises:
      UserError: fewer than two rows.
    """
    if len(features) < 2:
        raise UserError(f"a covariance needs at least 2 images, got {len(features)}")
    parts = [features[first : first + _ROWS] for first in range(0, len(features), _ROWS)]
    mean = sum(np.sum(part, axis=0, dtype=np.float64) for part in parts) / len(features)
    centred = (np.asarray(part, np.float64) - mean for part in parts)
    return mean, sum(part.T @ part for part in centred) / (len(features) - 1)


def frechet_distance(
    mean: Float[np.ndarray, " d"],
    covariance: Float[np.ndarray, "d d"],
    other_mean: Float[np.ndarray, " d"],
    other_covariance: Float[np.ndarray, "d d"],
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is the sum of the singular values of R1^T R2 with C = R R^T. This avoids the root of a product
    that is not symmetric, is real for singular covariances (fewer images than dimensions), and needs no added multiple
    of the identity.

    Raises:
      UserError: sizes that differ, or numbers that are not finite.
    """
    arrays = [np.asarray(a, np.float64) for a in (mean, covariance, other_mean, other_covariance)]
    d = arrays[0].shape[-1] if arrays[0].ndim else 0
    if [a.shape for a in arrays] != [(d,), (d, d), (d,), (d, d)]:
        raise UserError(f"two means [d] and covariances [d, d] are needed, got {[list(a.shape) for a in arrays]}")
    if not all(np.isfinite(a).all() for a in arrays):
        raise UserError("features or their statistics are not finite")
    shift = arrays[0] - arrays[2]
    roots = [_root(arrays[1]), _root(arrays[3])]
    of_root = scipy.linalg.svdvals(roots[0].T @ roots[1]).sum()
    return float(shift @ shift + np.trace(arrays[1]) + np.trace(arrays[3]) - 2.0 * of_root)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R R^T = C, for a positive semi-definite C."""
    values, vectors = scipy.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def kernel_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The unbiased estimate of MMD^2 with the kernel (x.y / d + 1)^3 from all pairs; it may be negative.

    Raises:
      UserError: fewer than two rows in a set, or numbers of columns that differ.
    """
    x, y = _pair(x, y, least=2)
    n, m = len(x), len(y)
    within = [_kernel_sum(a, a) - (((a * a).sum(axis=1) / a.shape[1] + 1.0) ** 3).sum() for a in (x, y)]
    return float(within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2.0 * _kernel_sum(x, y) / (n * m))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    return sum(((rows @ y.T / x.shape[1] + 1.0) ** 3).sum() for rows in _chunks(x))


def kernel_distance_of_subsets(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    subset_size: int = 1000,
    num_subsets: int = 100,
    seed: int = 2020,
) -> tuple[float, float]:
    """Mean and standard deviation of `kernel_distance` over random subsets, as KID is published.

    With its defaults it draws the same subsets as torch-fidelity.

    Raises:
      UserError: a set is smaller than a subset.
    """
    x, y = _pair(x, y, least=2)
    if min(len(x), len(y)) < subset_size:
        raise UserError(f"subsets of {subset_size} cannot be drawn from sets of {len(x)} and {len(y)}")
    draw = np.random.RandomState(seed)
    distances = [
        kernel_distance(
            x[draw.choice(len(x), subset_size, replace=False)], y[draw.choice(len(y), subset_size, replace=False)]
        )
        for _ in range(num_subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def gaussian_kernel_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], *, width: float) -> float:
    """The biased estimate of MMD^2 with the kernel exp(-|x - y|^2 / (2 width^2)): each row is also paired with itself.

    Raises:
      UserError: an empty set, or numbers of columns that differ.
    """
    x, y = _pair(x, y, least=1)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        of_b = (b * b).sum(axis=1)
        total = 0.0
        for rows in _chunks(a):
            squares = (rows * rows).sum(axis=1)[:, None] + of_b - 2.0 * rows @ b.T
            total += np.exp(-np.maximum(squares, 0.0) / (2.0 * width**2)).sum()
        return total / (len(a) * len(b))

    return float(mean(x, x) + mean(y, y) - 2.0 * mean(x, y))


def inception_score(log_probabilities: Float[np.ndarray, "n classes"], *, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence of each image's classes from those of all, per split: mean and standard deviation.

    Between 1 (all images alike in class, or none clear) and the number of classes.

    Raises:
      UserError: fewer images than splits.
    """
    logs = np.asarray(log_probabilities, np.float64)
    if not 1 <= splits <= len(logs):
        raise UserError(f"{len(logs)} images cannot be divided into {splits} splits")
    scores = []
    for i in range(splits):
        part = logs[i * len(logs) // splits : (i + 1) * len(logs) // splits]
        p = np.exp(part)
        with np.errstate(divide="ignore"):  # a class that no image has contributes nothing: p log p is 0 there
            marginal = np.log(p.mean(axis=0))
        terms = np.where(p > 0, p * (np.where(p > 0, part, 0.0) - np.where(p > 0, marginal, 0.0)), 0.0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    fake: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], *, neighbours: int = 3
) -> tuple[float, float]:
    """Precision: the share of fakes inside a ball around a real; recall: the share of reals inside a ball around a
    fake.

    The ball of a point reaches to its k-th nearest neighbour in its own set (itself not counted).

    Raises:
      UserError: a set has no more than `neighbours` rows.
    """
    fake, real = _pair(fake, real, least=neighbours + 1)
    return (
        float(_inside(fake, real, neighbours).astype(bool).mean()),
        float(_inside(real, fake, neighbours).astype(bool).mean()),
    )


def density_coverage(
    fake: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], *, neighbours: int = 5
) -> tuple[float, float]:
    """Density: in how many real balls a fake lies on average, over k; coverage: the share of real balls with a fake in
    them.

    Density is not bounded by 1. For two samples of one distribution its expectation is 1, and that of coverage is near
    1 - 2^-k.

    Raises:
      UserError: a set has no more than `neighbours` rows.
    """
    fake, real = _pair(fake, real, least=neighbours + 1)
    density = _inside(fake, real, neighbours).mean() / neighbours
    radii = _radii(real, neighbours)
    nearest = np.concatenate([_squares(rows, fake).min(axis=1) for rows in _chunks(real)])
    return float(density), float((nearest <= radii).mean())


def _inside(points: np.ndarray, centres: np.ndarray, neighbours: int) -> np.ndarray:
    """The number of balls of `centres` that each point lies in."""
    radii = _radii(centres, neighbours)
    return np.concatenate([(_squares(rows, centres) <= radii).sum(axis=1) for rows in _chunks(points)])


def _radii(points: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance of every point to its k-th nearest neighbour; the point itself, at 0, is the first of k + 1."""
    return np.concatenate(
        [np.partition(_squares(rows, points), neighbours, axis=1)[:, neighbours] for rows in _chunks(points)]
    )


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2.0 * (x @ y.T)
    return np.maximum(squares, 0.0)


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(x), _ROWS):
        yield x[first : first + _ROWS]


def _pair(x: np.ndarray, y: np.ndarray, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UserError(f"two sets of features [n, d] are needed, got {list(x.shape)} and {list(y.shape)}")
    if min(len(x), len(y)) < least:
        raise UserError(f"at least {least} images are needed in each set, got {len(x)} and {len(y)}")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise UserError("features are not finite")
    return x, y
