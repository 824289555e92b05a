"""Metrics of feature spaces: FID and related ones with Inception's features, proxies with a small classifier's.

Each is one formula of `distances.py` in one space. A name says both: `fid` is the Frechet distance in Inception's
space, `fd_dinov2` in DINOv2's, `proxy_fd` in the proxy's. Images are first sorted by the hashes of their bytes, so that
no result depends on their order. The one exception are the subsets of KID, which are drawn from the images in the given
order, as in torch-fidelity.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import METRICS, ImageSet, Number, check_same_shape
from diffusion_jax.metrics.distances import (
    density_coverage,
    frechet_distance,
    gaussian,
    gaussian_kernel_distance,
    inception_score,
    kernel_distance,
    kernel_distance_of_subsets,
    precision_recall,
)
from diffusion_jax.metrics.features import Features, FeatureSpace, PixelFeatures, digests_of
from diffusion_jax.metrics.references import read_gaussian

INCEPTION, DINOV2, CLIP, PROXY = "inception", "dinov2", "clip", "proxy"
_EXAMPLE = {"space": PixelFeatures()}
_OF_THREE_SETS = frozenset({"samples", "train", "held_out"})
_HELD_OUT = {"held_out": Number(label="The same of held-out real images")}
_SUBSETS = {
    "subsets_mean": Number(label="Mean over random subsets"),
    "subsets_std": Number(label="Standard deviation over random subsets"),
}
_FOR_HELD_OUT = "{held_out} for held-out images"


def _distance(key: str) -> dict[str, Number]:
    return {key: Number(label="Distance of the samples"), **_HELD_OUT, **_SUBSETS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMetric:
    """Base of these metrics.

    Attributes:
      space: the feature space; `needs` says which kind the metric's name promises.
    """

    space: FeatureSpace | None = None
    needs: ClassVar[str] = INCEPTION

    def __post_init__(self):
        if self.space is None:
            raise UserError(f"{type(self).__name__} needs a feature space: that of {self.needs}")

    def _features(self, images: ImageSet) -> Features:
        return self.space(images.images).rows(np.argsort(digests_of(images.images), kind="stable"))


@METRICS.register("fid", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FrechetInceptionDistance(FeatureMetric):
    """FID (Heusel et al. 2017): the Frechet distance of samples and training images by Inception's pool_3 features.

    It falls as the number of samples grows: papers use 50,000. The reference is the set of training images, or a
      published
    file of statistics; only with such a file compare it with published numbers.

    Attributes:
      reference: an .npz file of statistics (`references.py`) instead of the training images.
    """

    reference: str = ""
    title: ClassVar[str] = "FID"
    about: ClassVar[str] = (
        "The Fréchet distance of samples and real images by Inception's features. Comparable only with the same "
        "reference, resizer and number of samples."
    )
    headline: ClassVar[str] = "fid"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = _OF_THREE_SETS
    numbers: ClassVar[Mapping[str, Number]] = _distance("fid")
    note: ClassVar[str] = _FOR_HELD_OUT
    reference_field: ClassVar[str] = "reference"
    part: ClassVar[str] = "pooled"

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the distance; `held_out`, the distance of the test images, which differs from 0 only because they are
        few; and the numbers of images."""
        check_same_shape(samples, train, test)
        if self.reference:
            real = read_gaussian(self.reference, self.space, part=self.part)
            of_real = {}
        else:
            real = gaussian(getattr(self._features(train), self.part))
            of_real = {"num_real": len(train)}
        distance = frechet_distance(*gaussian(getattr(self._features(samples), self.part)), *real)
        held_out = {}
        if len(test) > 1:
            value = frechet_distance(*gaussian(getattr(self._features(test), self.part)), *real)
            held_out = {"held_out": value, "num_held_out": len(test)}
        return {self.headline: distance, **held_out, "num_samples": len(samples), **of_real}


@METRICS.register("sfid", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialFrechetInceptionDistance(FrechetInceptionDistance):
    """sFID (Nash et al. 2021): the same with 7 channels of a 17 x 17 map of Inception, which depend on the layout."""

    title: ClassVar[str] = "sFID"
    about: ClassVar[str] = "The Fréchet distance by features of Inception that see the layout."
    headline: ClassVar[str] = "sfid"
    numbers: ClassVar[Mapping[str, Number]] = _distance("sfid")
    part: ClassVar[str] = "spatial"


@METRICS.register("kid", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelInceptionDistance(FeatureMetric):
    """KID (Binkowski et al. 2018): the unbiased squared MMD of samples and training images, kernel (x.y / d + 1)^3.

    Attributes:
      subset_size: images in each of the subsets over which the published form is averaged; smaller sets are compared
        only as a whole. With the defaults the subsets are the same that torch-fidelity draws from the same images in
        the same order. The distance from all pairs does not depend on the order.
      num_subsets: number of subsets.
    """

    subset_size: int = 1000
    num_subsets: int = 100
    title: ClassVar[str] = "KID"
    about: ClassVar[str] = "The unbiased kernel distance by Inception's features: 0 on average for perfect samples."
    headline: ClassVar[str] = "kid"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = _OF_THREE_SETS
    numbers: ClassVar[Mapping[str, Number]] = _distance("kid")
    note: ClassVar[str] = _FOR_HELD_OUT

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the distance from all pairs; if the sets are large enough, also `subsets_mean` and `subsets_std`;
        `held_out`, the distance of the test images; and the numbers of images."""
        check_same_shape(samples, train, test)
        ours, real = self._features(samples).pooled, self._features(train).pooled
        subsets = {}
        if min(len(ours), len(real)) >= self.subset_size:
            as_they_came = self.space(samples.images).pooled, self.space(train.images).pooled
            mean, std = kernel_distance_of_subsets(
                *as_they_came, subset_size=self.subset_size, num_subsets=self.num_subsets
            )
            subsets = {"subsets_mean": mean, "subsets_std": std}
        held_out = {"held_out": kernel_distance(self._features(test).pooled, real)} if len(test) > 1 else {}
        counts = {"num_samples": len(samples), "num_real": len(train), "num_held_out": len(test)}
        return {self.headline: kernel_distance(ours, real), **subsets, **held_out, **counts}


@METRICS.register("inception_score", example={**_EXAMPLE, "splits": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class InceptionScore(FeatureMetric):
    """IS (Salimans et al. 2016): high if each sample has one clear class, and all together have many.

    The splits depend only on the set of samples, not on their order: the samples are sorted by the hashes of their
      bytes
    and then shuffled by one fixed permutation. Other programs split the samples in their order, or shuffle that; the
    results differ by the choice of splits, and agree for one split.

    Attributes:
      splits: number of parts, each of which gives a score.
    """

    splits: int = 10
    title: ClassVar[str] = "Inception Score"
    about: ClassVar[str] = "Samples that are each of one clear class, and together of many, by Inception's classes."
    headline: ClassVar[str] = "inception_score"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})
    numbers: ClassVar[Mapping[str, Number]] = {
        "inception_score": Number(label="Score of the samples"),
        "inception_score_std": Number(label="Standard deviation over the splits"),
    }

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the mean over splits and the standard deviation."""
        check_same_shape(samples, train, test)
        logs = self._features(samples).log_probabilities
        logs = logs[np.random.default_rng(0).permutation(len(logs))]
        mean, std = inception_score(logs, splits=self.splits)
        return {"inception_score": mean, "inception_score_std": std, "num_samples": len(samples)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourMetric(FeatureMetric):
    """Base of precision and recall, and of density and coverage.

    Attributes:
      neighbours: k, which sets the radius of a ball.
      max_real: training images taken (a fixed random subset); papers take 10,000.
    """

    neighbours: int
    max_real: int = 10_000
    headline: ClassVar[str]
    also: ClassVar[tuple[str, ...]]
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"samples", "train"})
    measure: ClassVar[Callable[..., tuple[float, float]]]
    in_order: ClassVar[tuple[str, str]]

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the two numbers in the metric's name, and the numbers of images."""
        check_same_shape(samples, train, test)
        real = train.subset(self.max_real)
        features = self._features(samples).pooled, self._features(real).pooled
        values = type(self).measure(*features, neighbours=self.neighbours)
        by_name = dict(zip(self.in_order, values, strict=True))
        return {**by_name, "num_samples": len(samples), "num_real": len(real)}


@METRICS.register("precision_recall", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionRecall(NeighbourMetric):
    """Improved precision and recall (Kynkaanniemi et al. 2019): fidelity and variety as two numbers between 0 and 1."""

    neighbours: int = 3
    title: ClassVar[str] = "Precision and recall"
    about: ClassVar[str] = "By Inception's features: samples that look real; reals that the samples cover."
    headline: ClassVar[str] = "precision"
    also: ClassVar[tuple[str, ...]] = ("recall",)
    numbers: ClassVar[Mapping[str, Number]] = {
        "precision": Number(label="Precision", kind="percent"),
        "recall": Number(label="Recall", kind="percent", lower_is_better=False),
    }
    in_order: ClassVar[tuple[str, str]] = ("precision", "recall")
    measure: ClassVar[Callable[..., tuple[float, float]]] = staticmethod(precision_recall)


@METRICS.register("density_coverage", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class DensityCoverage(NeighbourMetric):
    """Density and coverage (Naeem et al. 2020), robust to outliers: density near 1, coverage between 0 and 1."""

    neighbours: int = 5
    title: ClassVar[str] = "Density and coverage"
    about: ClassVar[str] = (
        "By Inception's features, without the pull of outliers: how densely reals lie around the samples, 1 for "
        "perfect ones; reals that the samples cover."
    )
    headline: ClassVar[str] = "coverage"
    also: ClassVar[tuple[str, ...]] = ("density",)
    numbers: ClassVar[Mapping[str, Number]] = {
        "density": Number(label="Density", target=1.0),
        "coverage": Number(label="Coverage", kind="percent"),
    }
    in_order: ClassVar[tuple[str, str]] = ("density", "coverage")
    measure: ClassVar[Callable[..., tuple[float, float]]] = staticmethod(density_coverage)


@METRICS.register("fd_dinov2", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FrechetDinov2Distance(FrechetInceptionDistance):
    """FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675): the Frechet distance in DINOv2's features, which are not of
    classes.

    Papers use ViT-L/14 and 50,000 samples.
    """

    title: ClassVar[str] = "FD-DINOv2"
    about: ClassVar[str] = (
        "The Fréchet distance by DINOv2's features, which see more than the classes that Inception knows."
    )
    headline: ClassVar[str] = "fd_dinov2"
    numbers: ClassVar[Mapping[str, Number]] = _distance("fd_dinov2")
    reference_field: ClassVar[str] = "dinov2_reference"
    needs: ClassVar[str] = DINOV2


@METRICS.register("cmmd", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipMaximumMeanDiscrepancy(FeatureMetric):
    """CMMD (Jayasumana et al. 2024, arXiv:2401.09603): 1000 MMD^2 of CLIP's embeddings, Gaussian kernel of width 10.

    This is the biased estimate, as published. Papers use ViT-L/14 at 336 pixels.

    Attributes:
      max_real: training images taken (a fixed random subset); papers take 30,000.
    """

    max_real: int = 30_000
    title: ClassVar[str] = "CMMD"
    about: ClassVar[str] = "1000 times the squared mean discrepancy of CLIP's embeddings."
    headline: ClassVar[str] = "cmmd"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = _OF_THREE_SETS
    numbers: ClassVar[Mapping[str, Number]] = _distance("cmmd")
    note: ClassVar[str] = _FOR_HELD_OUT
    needs: ClassVar[str] = CLIP

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the distance to training images; `held_out`, the distance of the test images; and the numbers of
        images."""
        check_same_shape(samples, train, test)
        real = train.subset(self.max_real)
        of_real = self._features(real).pooled
        distance, held_out = (
            1000.0 * gaussian_kernel_distance(self._features(images).pooled, of_real, width=10.0)
            for images in (samples, test)
        )
        counts = {"num_samples": len(samples), "num_real": len(real), "num_held_out": len(test)}
        return {"cmmd": distance, "held_out": held_out, **counts}


@METRICS.register("clip_score", example={**_EXAMPLE, "of_texts": ((1.0,) * 60, (0.5, -1.0) * 30, (-0.5, 1.0) * 30)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScore(FeatureMetric):
    """CLIP score (Hessel et al. 2021, arXiv:2104.08718): 100 max(cos, 0) of an image and its prompt.

    Hessel et al. scale by 2.5, most later papers by 100. The value depends on the CLIP model: compare only equal ones.

    Attributes:
      of_texts: CLIP's embedding of every class's text, of length 1.
    """

    of_texts: tuple[tuple[float, ...], ...] = ()
    title: ClassVar[str] = "CLIP score"
    about: ClassVar[str] = "How well images fit the text of their class, by CLIP: 100 times the cosine."
    headline: ClassVar[str] = "clip_score"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"samples", "held_out", "texts"})
    numbers: ClassVar[Mapping[str, Number]] = {"clip_score": Number(label="Score of the samples"), **_HELD_OUT}
    note: ClassVar[str] = _FOR_HELD_OUT
    needs: ClassVar[str] = CLIP

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the mean over samples; `held_out`, the mean of the test images with their own texts."""
        check_same_shape(samples, train, test)
        score, held_out = self._score(samples), self._score(test)
        return {"clip_score": score, "held_out": held_out, "num_samples": len(samples), "num_held_out": len(test)}

    def _score(self, images: ImageSet) -> float:
        if images.labels is None:
            raise UserError("the CLIP score needs the text of each image, but there are no labels")
        features, texts = self.space(images.images).pooled, np.asarray(self.of_texts)[images.labels]
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(texts, axis=1)
        return 100.0 * float(np.mean(np.maximum((features * texts).sum(axis=1) / lengths, 0.0)))


@METRICS.register("proxy_fd", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyFrechetDistance(FrechetInceptionDistance):
    """The Frechet distance in the features of a classifier of this data (`proxy.py`); not a FID."""

    title: ClassVar[str] = "Proxy Fréchet distance"
    about: ClassVar[str] = (
        "The Fréchet distance of samples and training images by the features of a small classifier that was trained on "
        "this data. It ranks models on this data; it is no FID."
    )
    headline: ClassVar[str] = "proxy_fd"
    numbers: ClassVar[Mapping[str, Number]] = _distance("proxy_fd")
    reference_field: ClassVar[str] = ""
    needs: ClassVar[str] = PROXY


@METRICS.register("proxy_kd", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyKernelDistance(KernelInceptionDistance):
    """The kernel distance in the features of a classifier of this data (`proxy.py`); not a KID."""

    title: ClassVar[str] = "Proxy kernel distance"
    about: ClassVar[str] = (
        "The unbiased kernel distance by the features of a small classifier that was trained on this data; no KID."
    )
    headline: ClassVar[str] = "proxy_kd"
    numbers: ClassVar[Mapping[str, Number]] = _distance("proxy_kd")
    needs: ClassVar[str] = PROXY


@METRICS.register("proxy_precision_recall", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyPrecisionRecall(PrecisionRecall):
    """Precision and recall in the features of a classifier of this data (`proxy.py`)."""

    title: ClassVar[str] = "Proxy precision and recall"
    about: ClassVar[str] = (
        "By the features of a small classifier: samples that look real; reals that the samples cover."
    )
    needs: ClassVar[str] = PROXY


@METRICS.register("proxy_density_coverage", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyDensityCoverage(DensityCoverage):
    """Density and coverage in the features of a classifier of this data (`proxy.py`)."""

    title: ClassVar[str] = "Proxy density and coverage"
    about: ClassVar[str] = "By the features of a small classifier; near 1 for perfect samples."
    needs: ClassVar[str] = PROXY
