"""The weights of LPIPS from their two published files."""

import functools
from pathlib import Path

import jax
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.lpips import STAGES, init_lpips
from diffusion_jax.weights.names import Entry, WeightMap, convolution_kernel, same
from diffusion_jax.weights.reading import read_state

VGG_SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth (its SHA-256 begins with 397923af)"
LPIPS_SOURCE = (
    "https://github.com/richzhang/PerceptualSimilarity/blob/master/lpips/weights/v0.1/vgg.pth "
    "(SHA-256 a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868)"
)


def lpips_map() -> WeightMap:
    """The names of torchvision's VGG-16, and of the package lpips for the weights of the channels."""
    entries: dict[tuple[str, ...], Entry] = {}
    layer = 0
    for stage, (_, convolutions) in enumerate(STAGES):
        for i in range(convolutions):
            entries[f"{stage}_{i}", "kernel"] = convolution_kernel(f"features.{layer}.weight")
            entries[f"{stage}_{i}", "bias"] = same(f"features.{layer}.bias")
            layer += 2  # a rectifier after each
        layer += 1  # the pool
        entries[(f"weight_{stage}",)] = same(f"lin{stage}.model.1.weight").then(
            lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None]
        )
    return WeightMap(entries, ignored=(r"classifier\..*",))


@functools.cache
def lpips_shapes() -> PyTree:
    """The parameters of `Lpips` as ShapeDtypeStruct."""
    return jax.eval_shape(init_lpips, jax.random.key(0))


def require_lpips(vgg: Path | str, lpips: Path | str) -> None:
    """Raise UserError if there is no such file; the message says where it is published."""
    for path, name, source in ((vgg, "VGG-16", VGG_SOURCE), (lpips, "LPIPS", LPIPS_SOURCE)):
        if not Path(path).is_file():
            raise UserError(f"there are no weights of {name} at {str(path)!r}; they are published at {source}")


def read_lpips(vgg: Path | str, lpips: Path | str) -> PyTree:
    """Parameters of `Lpips`.

    Args:
      vgg: torchvision's VGG-16.
      lpips: the weights of its channels, version 0.1.

    Raises:
      UserError: there is no such file (the error says where it is published), or it has other weights.
    """
    require_lpips(vgg, lpips)
    return lpips_map().params({**read_state(vgg), **read_state(lpips)}, lpips_shapes())
