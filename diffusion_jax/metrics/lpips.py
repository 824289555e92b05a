"""LPIPS: how different two images look, in the features of VGG-16 (Zhang et al. 2018, arXiv:1801.03924, version 0.1).

The features after the last rectifier of each of VGG's five stages (Simonyan & Zisserman 2014, arXiv:1409.1556,
configuration D) are normalised to length 1 at every pixel. Their squared differences are weighted by channel, averaged
over the pixels and summed over the stages.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.features import IMAGENET

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each stage of VGG-16."""

Pictures = Float[Array, "n height width channels"]


class Lpips(nn.Module):
    """Maps two sets of images in [-1, 1], with one or three channels, to one distance for each pair.

    Height and width are at least 16. The weights come from files (`diffusion_jax.weights.read_lpips`). A lower distance
    means more alike images. LPIPS judges pairs, so it is not in `METRICS`, whose members judge sets.
    """

    title: ClassVar[str] = "LPIPS"
    about: ClassVar[str] = "How different two images look, in the features of VGG-16: 0 for equal images."
    lower_is_better: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Pictures, y: Pictures) -> Float[Array, " n"]:
        """Differentiable in both arguments; the gradient is zero at pixels whose features are all zero."""
        # x and y are processed one after the other: in one batch they would have to move between devices.
        ours, theirs = _normalised(x), _normalised(y)
        distance = jnp.zeros(len(x), ours.dtype)
        for stage, (features, convolutions) in enumerate(STAGES):
            if stage:
                ours, theirs = (nn.max_pool(h, (2, 2), strides=(2, 2)) for h in (ours, theirs))
            for i in range(convolutions):
                conv = nn.Conv(
                    features, (3, 3), padding=1, kernel_init=nn.initializers.he_normal(), name=f"{stage}_{i}"
                )
                ours, theirs = nn.relu(conv(ours)), nn.relu(conv(theirs))
            weight = self.param(f"weight_{stage}", nn.initializers.constant(1 / features), (features,))
            distance += jnp.mean((_unit(ours) - _unit(theirs)) ** 2 @ weight, axis=(1, 2))
        return distance


def _unit(features: Float[Array, "n height width d"]) -> Float[Array, "n height width d"]:
    squares = jnp.sum(features**2, axis=-1, keepdims=True)
    return features / (jnp.sqrt(jnp.maximum(squares, 1e-20)) + 1e-10)


def _normalised(x: Pictures) -> Float[Array, "n height width 3"]:
    if x.shape[-1] not in (1, 3) or min(x.shape[1:3]) < 16:
        raise UserError(f"LPIPS takes images with one or three channels and at least 16x16 pixels, not {x.shape[1:]}")
    mean, std = (jnp.asarray(values, x.dtype) for values in IMAGENET)
    return ((jnp.broadcast_to(x, (*x.shape[:-1], 3)) + 1) / 2 - mean) / std


def init_lpips(key: Key[Array, ""]) -> PyTree:
    """Random parameters of `Lpips`, instead of trained ones."""
    image = jnp.zeros((1, 16, 16, 3))
    return Lpips().init(key, image, image)["params"]


def lpips(params: PyTree, x: Pictures, y: Pictures, *, size: int = 0) -> Float[Array, " n"]:
    """LPIPS of each pair, in float32.

    Args:
      params: parameters of `Lpips`.
      x, y: images in [-1, 1].
      size: images are first interpolated to size x size (bilinear, without a filter); 0: they are used as they are.

    Raises:
      UserError: images with other than one or three channels, or with less than 16 pixels on a side.
    """
    x, y = (jnp.asarray(image, jnp.float32) for image in (x, y))
    if size:
        x, y = (
            jax.image.resize(image, (len(image), size, size, image.shape[-1]), "bilinear", antialias=False)
            for image in (x, y)
        )
    return Lpips().apply({"params": params}, x, y)
