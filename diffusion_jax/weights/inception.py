"""The weights of Inception-v3 from the files in which they are published."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import InceptionV3
from diffusion_jax.weights.names import Entry, WeightMap, convolution_kernel, same, transposed
from diffusion_jax.weights.reading import fingerprint, read_state

SOURCE = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth "
    "(its SHA-256 begins with 6726825d)"
)
_NORMS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


@functools.cache
def inception_shapes() -> PyTree:
    """The parameters of `InceptionV3` as ShapeDtypeStruct."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]


def inception_map() -> WeightMap:
    """The names of pytorch-fid and torch-fidelity, which are the same; the bias of the classes is not used by any
    metric."""

    def entry(path: tuple[str, ...]) -> Entry:
        module, leaf = ".".join(path[:-1]), path[-1]
        if path == ("fc",):
            return transposed("fc.weight")
        if leaf == "kernel":
            return convolution_kernel(f"{module}.conv.weight")
        return same(f"{module}.bn.{_NORMS[leaf]}")

    entries = {path: entry(path) for path in flatten_dict(inception_shapes())}
    return WeightMap(entries, ignored=(r".*\.num_batches_tracked", r"fc\.bias", r"AuxLogits\..*"))


def read_inception(path: Path | str) -> tuple[PyTree, str]:
    """Parameters of `InceptionV3`, and the SHA-256 of the file.

    Raises:
      UserError: no such file (the error says where it is published), or not these weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no weights of Inception-v3 at {str(path)!r}; they are published at {SOURCE}")
    if path.suffix == ".pkl":
        raise UserError(
            f"{path}: NVIDIA's pickle of Inception-v3 holds code, which is not run; the same network is published at "
            f"{SOURCE}"
        )
    return inception_map().params(read_state(path), inception_shapes()), fingerprint(path)
