"""Resizing images for a feature network, one function per convention: the choice changes FID by several points.

    name               kernel                                         used by
    tf1_bilinear       bilinear, corners of pixels at 0, no filter    the TF-2015 graph: ADM, NVIDIA, torch-fidelity
    torch_bilinear     bilinear, centres of pixels, no filter         pytorch-fid
    torch_antialias    bilinear, centres, filter when shrinking       torch with antialias=True
    pil_bicubic        bicubic (a = -1/2), centres, filter            clean-fid, on floats

Parmar et al. 2022 (arXiv 2104.11222) compare them. All take values 0..255 and give float32 on the same scale.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name

Resize = Callable[[Num[Array, "n h w c"], int], Float[Array, "n size size c"]]


def tf1_bilinear(images: Num[Array, "n h w c"], size: int) -> Float[Array, "n size size c"]:
    """`tf.image.resize_bilinear(align_corners=False)` of TensorFlow 1: the source of pixel i is i * in / out."""
    x = jnp.asarray(images, jnp.float32)
    for axis in (2, 1):
        length = x.shape[axis]
        source = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = np.floor(source).astype(np.int32)
        high = np.minimum(low + 1, length - 1)
        weight = (source - low).reshape([-1 if a == axis else 1 for a in range(4)])
        first, second = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
        x = first + (second - first) * weight
    return x


def _by_jax(method: str, antialias: bool) -> Resize:
    def resize(images: Num[Array, "n h w c"], size: int) -> Float[Array, "n size size c"]:
        x = jnp.asarray(images, jnp.float32)
        shape = (x.shape[0], size, size, x.shape[3])
        return jax.image.resize(x, shape, method, antialias=antialias, precision=jax.lax.Precision.HIGHEST)

    return resize


RESIZERS: dict[str, Resize] = {
    "tf1_bilinear": tf1_bilinear,
    "torch_bilinear": _by_jax("bilinear", antialias=False),
    "torch_antialias": _by_jax("bilinear", antialias=True),
    "pil_bicubic": _by_jax("bicubic", antialias=True),
}


def resizer(name: str) -> Resize:
    """The function with this name.

    Raises:
      UserError: unknown name.
    """
    if name not in RESIZERS:
        raise UserError(unknown_name("resizer", name, list(RESIZERS)))
    return RESIZERS[name]
