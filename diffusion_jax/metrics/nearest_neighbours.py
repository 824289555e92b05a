"""Is the model drawing, or copying? Distances of samples to the nearest training image.

The distance of two images is the root mean square of their difference over pixels and channels, in units in which black
is -1 and white is 1. It is exact: squared distances of uint8 images are integers, and

    |a - b|^2 = |a|^2 + |b|^2 - 2 <a, b>                                                                       (1)

is evaluated by float64 matrix products of integers, which round nothing below 2^53.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from diffusion_jax.metrics.base import METRICS, ImageSet, Number, check_same_shape

_QUERY_CHUNK = 512
_REFERENCE_CHUNK = 4096


@METRICS.register("nearest_neighbours", example={"max_held_out": 100})
@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """Distance of each sample to its nearest training image, compared with the same distance for held-out real images.

    A model that has learned the distribution draws images as far from the training set as new real images are:
    `distance_ratio` near 1, `fraction_closer` near 0.01. A model that memorises draws images much closer to it. A ratio
    well above 1 means samples unlike anything real, or noisy ones. The distance is between pixels, so it misses copies
    that are shifted or recoloured.

    Attributes:
      max_held_out: test images in the baseline (a fixed random subset of the split).
    """

    max_held_out: int = 10_000
    title: ClassVar[str] = "Distance to the training images"
    about: ClassVar[str] = (
        "How far each sample lies from its nearest training image, against the same distance for real images that were "
        "held out. A model that has learned resembles the held-out images; one that copies lies far closer."
    )
    headline: ClassVar[str] = "distance_ratio"
    lower_is_better: ClassVar[None] = None
    target: ClassVar[float] = 1.0
    headline_may_lack: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"samples", "train", "held_out"})
    numbers: ClassVar[Mapping[str, Number]] = {
        "median_distance": Number(label="Median distance of samples"),
        "held_out_median_distance": Number(label="Median distance of held-out images"),
        "distance_ratio": Number(label="Ratio of the two (1 resembles held-out images)", kind="ratio"),
        "held_out_1pct_distance": Number(label="Distance that 1% of held-out images fall short of"),
        "fraction_closer": Number(label="Samples closer than that (1% is expected)", kind="percent"),
        "exact_copies": Number(label="Samples equal to a training image in every pixel", kind="count"),
        "held_out_exact_copies": Number(label="Held-out images equal to a training image", kind="count"),
    }
    note: ClassVar[str] = "that of held-out images; {exact_copies} exact copies"

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns
        - `median_distance`, `held_out_median_distance`, and `distance_ratio`, the first over the second (left out
          where the second is 0);
        - `held_out_1pct_distance`: the distance that 1% of held-out images fall short of, and `fraction_closer`: the
          fraction of samples that do;
        - `exact_copies`: samples equal to a training image in every pixel, and `held_out_exact_copies`: the same for
          held-out images, which shows duplicates in the data itself;
        - `num_samples`, `num_train`, `num_held_out`.
        """
        check_same_shape(samples, train, test)
        held_out = test.subset(self.max_held_out)
        distances, _ = nearest(samples.images, train.images)
        baseline, _ = nearest(held_out.images, train.images)
        median, baseline_median = float(np.median(distances)), float(np.median(baseline))
        threshold = float(np.quantile(baseline, 0.01))
        ratio = {"distance_ratio": median / baseline_median} if baseline_median > 0 else {}
        return {
            "median_distance": median,
            "held_out_median_distance": baseline_median,
            **ratio,
            "held_out_1pct_distance": threshold,
            "fraction_closer": float(np.mean(distances < threshold)),
            "exact_copies": int(np.sum(distances == 0)),
            "held_out_exact_copies": int(np.sum(baseline == 0)),
            "num_samples": len(samples),
            "num_train": len(train),
            "num_held_out": len(held_out),
        }


def nearest(
    queries: UInt8[np.ndarray, "n height width channels"], references: UInt8[np.ndarray, "m height width channels"]
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The nearest reference of every query, by exhaustive search (Eq. 1); the first one of equally near references.

    Memory beyond the inputs: one chunk of queries, one of references and their product, some 100 MB for 64x64x3 images
    at most; references are never copied to floats as a whole.

    Returns:
      Distances [n] (root mean square per pixel, images in [-1, 1], so between 0 and 2) and indices [n] into references.
    """
    distances, indices = np.empty(len(queries)), np.empty(len(queries), np.int64)
    pixels = int(np.prod(queries.shape[1:]))
    for start in range(0, len(queries), _QUERY_CHUNK):
        rows = slice(start, start + _QUERY_CHUNK)
        squared, indices[rows] = _nearest_of_chunk(_flat(queries[rows]), references)
        distances[rows] = np.sqrt(squared / pixels) / 127.5
    return distances, indices


def _nearest_of_chunk(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best, best_index = np.full(len(queries), np.inf), np.zeros(len(queries), np.int64)
    query_norms = np.einsum("np,np->n", queries, queries)
    for start in range(0, len(references), _REFERENCE_CHUNK):
        chunk = _flat(references[start : start + _REFERENCE_CHUNK])
        squared = queries @ (-2.0 * chunk).T
        squared += np.einsum("np,np->n", chunk, chunk)
        index = np.argmin(squared, axis=1)
        value = squared[np.arange(len(queries)), index] + query_norms
        closer = value < best
        best[closer], best_index[closer] = value[closer], index[closer] + start
    return best, best_index


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)
