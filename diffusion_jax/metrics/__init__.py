"""Metrics that compare generated images with real ones.

    samples -> metric(samples, train=..., test=...) -> {"accuracy": 0.97, "accuracy_low": 0.95, ...}

`METRICS` maps a name to a metric. Every metric says in its docstring what it measures and from which data, and states
its facts (`Facts`): its title, which of its numbers decides, whether a lower value is better, what it reads. Metrics of
a feature space receive one: Inception's, DINOv2's or CLIP's, with weights from a file that the user names, or the
proxy's, a classifier trained on the real images. The proxy's metrics are named `proxy_...` and are never called FID or
KID.
"""

from diffusion_jax.metrics.base import METRICS, Facts, ImageSet, Metric, Number, evaluate_all
from diffusion_jax.metrics.class_accuracy import ClassAccuracy
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
from diffusion_jax.metrics.feature_metrics import CLIP, DINOV2, INCEPTION, PROXY, FeatureMetric
from diffusion_jax.metrics.features import (
    CONVENTIONS,
    Features,
    FeatureSpace,
    NetworkFeatures,
    PixelFeatures,
    clip_features,
    dinov2_features,
    dinov2_patches,
    inception_features,
)
from diffusion_jax.metrics.inception import InceptionV3
from diffusion_jax.metrics.lpips import init_lpips, lpips
from diffusion_jax.metrics.nearest_neighbours import NearestNeighbours, nearest
from diffusion_jax.metrics.ocr import RapidOcr, Tesseract, TextReader
from diffusion_jax.metrics.prompt_adherence import PromptAdherence, adherence
from diffusion_jax.metrics.reconstruction import PSNR, RECONSTRUCTIONS, SSIM, psnr, ssim
from diffusion_jax.metrics.references import read_gaussian
from diffusion_jax.metrics.word_reading import EditDistance, WordAccuracy, edit_distance

__all__ = [
    "CLIP",
    "CONVENTIONS",
    "DINOV2",
    "INCEPTION",
    "METRICS",
    "PROXY",
    "PSNR",
    "RECONSTRUCTIONS",
    "SSIM",
    "ClassAccuracy",
    "EditDistance",
    "Facts",
    "FeatureMetric",
    "FeatureSpace",
    "Features",
    "ImageSet",
    "InceptionV3",
    "Metric",
    "NearestNeighbours",
    "NetworkFeatures",
    "Number",
    "PixelFeatures",
    "PromptAdherence",
    "RapidOcr",
    "Tesseract",
    "TextReader",
    "WordAccuracy",
    "adherence",
    "clip_features",
    "density_coverage",
    "dinov2_features",
    "dinov2_patches",
    "edit_distance",
    "evaluate_all",
    "frechet_distance",
    "gaussian",
    "gaussian_kernel_distance",
    "inception_features",
    "inception_score",
    "init_lpips",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "lpips",
    "nearest",
    "precision_recall",
    "psnr",
    "read_gaussian",
    "ssim",
]
