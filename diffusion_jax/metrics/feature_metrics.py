"""The metrics of feature spaces: FID and its kin with those of Inception, proxies with those of a small classifier.

Each is one formula of `distances.py` in one space. A name says both: `fid` is the Frechet distance in Inception's
space, `fd_dinov2` in DINOv2's, `proxy_fd` in the proxy's. Samples are put in an order of their own first, so that no
result depends on how they came.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import METRICS, ImageSet, check_same_shape
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMetric:
    """What these metrics share.

    Attributes:
      space: where the features come from; `needs` says which kind the metric's name promises.
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

    It falls with the number of samples: papers take 50,000. The reference are the training images, or a published file
    of statistics, which is what a number that is to be compared needs.

    Attributes:
      reference: an .npz file of statistics (`references.py`) in the place of the training images.
    """

    reference: str = ""
    name: ClassVar[str] = "fid"
    part: ClassVar[str] = "pooled"

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the distance; `held_out`, that of the test images, which is not 0 only for want of images; and the
        numbers of images."""
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
        return {self.name: distance, **held_out, "num_samples": len(samples), **of_real}


@METRICS.register("sfid", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialFrechetInceptionDistance(FrechetInceptionDistance):
    """sFID (Nash et al. 2021): the same with 7 channels of a 17 x 17 map of Inception, which see the layout."""

    name: ClassVar[str] = "sfid"
    part: ClassVar[str] = "spatial"


@METRICS.register("kid", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelInceptionDistance(FeatureMetric):
    """KID (Binkowski et al. 2018): the unbiased squared MMD of samples and training images, kernel (x.y / d + 1)^3.

    Attributes:
      subset_size: images in each of the subsets over which the published form is averaged; sets smaller than this are
        compared whole only.
      num_subsets: how many.
    """

    subset_size: int = 1000
    num_subsets: int = 100
    name: ClassVar[str] = "kid"

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the distance from all pairs; where the sets are large enough also `subsets_mean` and `subsets_std`;
        `held_out`, that of the test images; and the numbers of images."""
        check_same_shape(samples, train, test)
        ours, real = self._features(samples).pooled, self._features(train).pooled
        subsets = {}
        if min(len(ours), len(real)) >= self.subset_size:
            mean, std = kernel_distance_of_subsets(
                ours, real, subset_size=self.subset_size, num_subsets=self.num_subsets
            )
            subsets = {"subsets_mean": mean, "subsets_std": std}
        held_out = {"held_out": kernel_distance(self._features(test).pooled, real)} if len(test) > 1 else {}
        counts = {"num_samples": len(samples), "num_real": len(train), "num_held_out": len(test)}
        return {self.name: kernel_distance(ours, real), **subsets, **held_out, **counts}


@METRICS.register("inception_score", example={**_EXAMPLE, "splits": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class InceptionScore(FeatureMetric):
    """IS (Salimans et al. 2016): samples that are each of one clear class, and together of many.

    Attributes:
      splits: parts of which each gives a score.
    """

    splits: int = 10

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the mean over splits and its standard deviation; the samples are shuffled, always alike."""
        check_same_shape(samples, train, test)
        logs = self._features(samples).log_probabilities
        logs = logs[np.random.default_rng(0).permutation(len(logs))]
        mean, std = inception_score(logs, splits=self.splits)
        return {"inception_score": mean, "inception_score_std": std, "num_samples": len(samples)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourMetric(FeatureMetric):
    """What precision and recall, and density and coverage share.

    Attributes:
      neighbours: k, of the radius of a ball.
      max_real: training images taken (a fixed random subset); papers take 10,000.
    """

    neighbours: int
    max_real: int = 10_000
    names: ClassVar[tuple[str, str]]
    measure: ClassVar[Callable[..., tuple[float, float]]]

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the two numbers that the metric is called after, and the numbers of images."""
        check_same_shape(samples, train, test)
        real = train.subset(self.max_real)
        features = self._features(samples).pooled, self._features(real).pooled
        values = type(self).measure(*features, neighbours=self.neighbours)
        return {**dict(zip(self.names, values, strict=True)), "num_samples": len(samples), "num_real": len(real)}


@METRICS.register("precision_recall", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionRecall(NeighbourMetric):
    """Improved precision and recall (Kynkaanniemi et al. 2019): fidelity and variety apart, each between 0 and 1."""

    neighbours: int = 3
    names: ClassVar[tuple[str, str]] = ("precision", "recall")
    measure: ClassVar[Callable[..., tuple[float, float]]] = staticmethod(precision_recall)


@METRICS.register("density_coverage", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class DensityCoverage(NeighbourMetric):
    """Density and coverage (Naeem et al. 2020), which outliers do not inflate: near 1, and between 0 and 1."""

    neighbours: int = 5
    names: ClassVar[tuple[str, str]] = ("density", "coverage")
    measure: ClassVar[Callable[..., tuple[float, float]]] = staticmethod(density_coverage)


@METRICS.register("fd_dinov2", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FrechetDinov2Distance(FrechetInceptionDistance):
    """FD-DINOv2 (Stein et al. 2023, arXiv:2306.04675): the Frechet distance by DINOv2's features, not those of classes.

    Papers take ViT-L/14 and 50,000 samples.
    """

    name: ClassVar[str] = "fd_dinov2"
    needs: ClassVar[str] = DINOV2


@METRICS.register("cmmd", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipMaximumMeanDiscrepancy(FeatureMetric):
    """CMMD (Jayasumana et al. 2024, arXiv:2401.09603): 1000 MMD^2 by CLIP's embeddings, Gaussian kernel of width 10.

    The biased estimate, as published. Papers take ViT-L/14 at 336 pixels.

    Attributes:
      max_real: training images taken (a fixed random subset); papers take 30,000.
    """

    max_real: int = 30_000
    needs: ClassVar[str] = CLIP

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the distance to training images; `held_out`, that of the test images; and the numbers of images."""
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
    """CLIP score (Hessel et al. 2021, arXiv:2104.08718): 100 max(cos, 0) of an image and the text that asked for it.

    Hessel et al. scale by 2.5 where most since scale by 100. Its value depends on the CLIP: compare like with like.

    Attributes:
      of_texts: CLIP's embedding of the text of every class, of length 1.
    """

    of_texts: tuple[tuple[float, ...], ...] = ()
    needs: ClassVar[str] = CLIP

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns the mean over samples; `held_out`, that of the test images and their own texts."""
        check_same_shape(samples, train, test)
        score, held_out = self._score(samples), self._score(test)
        return {"clip_score": score, "held_out": held_out, "num_samples": len(samples), "num_held_out": len(test)}

    def _score(self, images: ImageSet) -> float:
        if images.labels is None:
            raise UserError("the CLIP score needs to know which text each image was asked for: there are no labels")
        features, texts = self.space(images.images).pooled, np.asarray(self.of_texts)[images.labels]
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(texts, axis=1)
        return 100.0 * float(np.mean(np.maximum((features * texts).sum(axis=1) / lengths, 0.0)))


@METRICS.register("proxy_fd", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyFrechetDistance(FrechetInceptionDistance):
    """The Frechet distance in the space of a classifier of this very data (`proxy.py`); not a FID."""

    name: ClassVar[str] = "proxy_fd"
    needs: ClassVar[str] = PROXY


@METRICS.register("proxy_kd", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyKernelDistance(KernelInceptionDistance):
    """The kernel distance in the space of a classifier of this very data (`proxy.py`); not a KID."""

    name: ClassVar[str] = "proxy_kd"
    needs: ClassVar[str] = PROXY


@METRICS.register("proxy_precision_recall", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyPrecisionRecall(PrecisionRecall):
    """Precision and recall in the space of a classifier of this very data (`proxy.py`)."""

    needs: ClassVar[str] = PROXY


@METRICS.register("proxy_density_coverage", example=_EXAMPLE)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyDensityCoverage(DensityCoverage):
    """Density and coverage in the space of a classifier of this very data (`proxy.py`)."""

    needs: ClassVar[str] = PROXY
