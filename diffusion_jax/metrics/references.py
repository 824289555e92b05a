"""Files of reference statistics, in every published form.

keys                          from
mu, sigma                     pytorch-fid, ADM (there with mu_s, sigma_s, of sFID), NVIDIA, clean-fid
ref_mu, ref_sigma             MeanFlow's JAX code
pool_3                        score_sde: the features themselves
arr_0                         ADM: images, whose features are taken here
"""

import os
from pathlib import Path

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_npz
from diffusion_jax.metrics.distances import Gaussian, gaussian
from diffusion_jax.metrics.features import FeatureSpace

_PAIRS = {"pooled": (("mu", "sigma"), ("ref_mu", "ref_sigma")), "spatial": (("mu_s", "sigma_s"),)}


def read_gaussian(path: str | Path, space: FeatureSpace, *, part: str = "pooled") -> Gaussian:
    """Mean and covariance, float64, of the reference's features.

    Args:
      path: an .npz file.
      space: computes the features if the file holds images.
      part: "pooled" (FID) or "spatial" (sFID).

    Raises:
      UserError: there is no file, it is no such file, or it has other keys.
    """
    path = expanded(path)
    if not os.path.lexists(path):
        raise UserError(f"there is no file of reference statistics {path}")
    try:
        arrays = read_npz(path)
    except UserError as error:
        raise UserError(f"{path} is not an .npz file of reference statistics: {error}") from error
    for mean, covariance in _PAIRS[part]:
        if mean in arrays and covariance in arrays:
            return _checked(path, arrays[mean], arrays[covariance])
    features = None
    if part == "pooled" and "pool_3" in arrays:
        there = arrays["pool_3"]
        if there.ndim < 2 or len(there) < 2 or not there.size or there.dtype.kind not in "fiu":
            raise UserError(f"pool_3 of {path} should be features [n, ...], not {there.dtype} {list(there.shape)}")
        features = there.reshape(len(there), -1)
    elif "arr_0" in arrays:
        images = arrays["arr_0"]
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) < 2 or not images.size:
            raise UserError(f"arr_0 of {path} should be uint8 images [n, h, w, c], not {images.dtype} {images.shape}")
        features = getattr(space(images), part)
    if features is None:
        raise UserError(f"{path} holds {', '.join(arrays)}: none of the known forms of reference statistics for {part}")
    return _checked(path, *gaussian(features))


def _checked(path: Path, mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu" or not mean.size:
        raise UserError(f"{path} holds a mean of {mean.dtype} and a covariance of {covariance.dtype}, or empty ones")
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
        raise UserError(f"{path} holds a mean {list(mean.shape)} and a covariance {list(covariance.shape)}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"the statistics in {path} are not finite")
    return mean, covariance
