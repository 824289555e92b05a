"""How close reconstructions are to their originals, picture by picture: PSNR and SSIM.

Sample i is the reconstruction of held-out image i, so these judge first stages, never samples that a model draws.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import correlate1d

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import METRICS, ImageSet, Number, check_same_shape

RECONSTRUCTIONS = "reconstructions"
_PEAK = 255.0
_EXACT = 1.0 / 12.0  # the squared error of rounding to whole numbers, used for equal pictures
_SIDE, _SIGMA = 11, 1.5  # the window of SSIM
_K1, _K2 = 0.01, 0.03

Pictures = UInt8[np.ndarray, "n height width channels"]


def psnr(x: Pictures, y: Pictures) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each pair, 10 log10(255^2 / mean squared error) in decibels; 58.9 for equal
    ones."""
    error = np.mean(np.square(x.astype(np.float64) - y), axis=(1, 2, 3))
    return 10 * np.log10(_PEAK**2 / np.maximum(error, _EXACT))


def ssim(x: Pictures, y: Pictures) -> Float[np.ndarray, " n"]:
    """Structural similarity of each pair (Wang et al. 2004, IEEE TIP 13, 600) with Gaussian windows of 11 pixels and
    standard deviation 1.5, per channel, averaged over the windows inside the picture; 1 for equal ones.

    Raises:
      UserError: pictures with less than 11 pixels on a side.
    """
    if min(x.shape[1:3]) < _SIDE:
        raise UserError(f"SSIM takes pictures of at least {_SIDE}x{_SIDE} pixels, not {x.shape[1]}x{x.shape[2]}")
    weights = np.exp(-np.square(np.arange(_SIDE) - _SIDE // 2) / (2 * _SIGMA**2))
    inner = slice(_SIDE // 2, -(_SIDE // 2))

    def blurred(values: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            values = correlate1d(values, weights / weights.sum(), axis=axis)
        return values[:, inner, inner]

    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return np.mean(luminance * (2 * covariance + c2) / (var_x + var_y + c2), axis=(1, 2, 3))


def _pairs(name: str, samples: ImageSet, test: ImageSet) -> None:
    check_same_shape(samples, test)
    if len(samples) != len(test):
        raise UserError(f"{name} compares pairs: {len(samples)} reconstructions, but {len(test)} originals")


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean over pictures, with its 95% interval."""
    half = 1.959963984540054 * float(values.std()) / len(values) ** 0.5
    mean = float(values.mean())
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half, "num_samples": len(values)}


@METRICS.register("psnr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PSNR:
    """Peak signal-to-noise ratio of reconstructions, averaged over pictures; see `psnr`."""

    title: ClassVar[str] = "PSNR"
    about: ClassVar[str] = (
        "How much stronger the greatest possible signal is than the error of a reconstruction, in decibels: a mean "
        "over held-out pictures. 10 more are a tenth of the squared error; 58.9 is what equal pictures are given."
    )
    headline: ClassVar[str] = "psnr"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"samples", "held_out", RECONSTRUCTIONS})
    numbers: ClassVar[Mapping[str, Number]] = {"psnr": Number(label="Decibels")}

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns `psnr` with its interval; sample i is the reconstruction of `test` i."""
        _pairs("psnr", samples, test)
        return _mean("psnr", psnr(samples.images, test.images))


@METRICS.register("ssim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SSIM:
    """Structural similarity of reconstructions, averaged over pictures; see `ssim`."""

    title: ClassVar[str] = "SSIM"
    about: ClassVar[str] = (
        "How alike light, contrast and structure of a reconstruction and its original are in windows of 11 pixels: a "
        "mean over held-out pictures; 1 for equal ones."
    )
    headline: ClassVar[str] = "ssim"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"samples", "held_out", RECONSTRUCTIONS})
    least_side: ClassVar[int] = _SIDE
    numbers: ClassVar[Mapping[str, Number]] = {"ssim": Number(label="Similarity")}

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns `ssim` with its interval; sample i is the reconstruction of `test` i."""
        _pairs("ssim", samples, test)
        return _mean("ssim", ssim(samples.images, test.images))
