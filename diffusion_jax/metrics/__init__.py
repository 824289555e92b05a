"""Metrics of generated images against real ones.

    samples -> metric(samples, train=..., test=...) -> {"accuracy": 0.97, "accuracy_low": 0.95, ...}

`METRICS` maps a name to a metric. Every metric says in its docstring exactly what it measures and from which data;
nothing here needs a pretrained feature network, so nothing here is called FID or KID.
"""

from diffusion_jax.metrics.base import METRICS, ImageSet, Metric, evaluate_all, wilson_interval
from diffusion_jax.metrics.class_accuracy import ClassAccuracy
from diffusion_jax.metrics.nearest_neighbours import NearestNeighbours, nearest

__all__ = [
    "METRICS",
    "ClassAccuracy",
    "ImageSet",
    "Metric",
    "NearestNeighbours",
    "evaluate_all",
    "nearest",
    "wilson_interval",
]
