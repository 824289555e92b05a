"""The weights of Inception-v3 from their published files."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import InceptionV3
from diffusion_jax.weights.names import Entry, WeightMap, convolution_kernel, ones, same, transposed
from diffusion_jax.weights.reading import fingerprint, read_state

SOURCE = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth "
    "(SHA-256 6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2) or "
    "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/metrics/inception-2015-12-05.pkl "
    "(SHA-256 a31bd1d4522101109044ec28621a5fcb591ed6115e0d58104fc013fa01ef94f7)"
)
_NORMS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}

# NVIDIA's names are those of TensorFlow's graph. Blocks and layers under our names:
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
# for a block with the branches branchX_1, branchX_2 ... in sequence, the tower of each X
_TOWERS = {
    "5": {"branch5x5": "tower", "branch3x3dbl": "tower_1"},
    "6a": {"branch3x3dbl": "tower"},
    "6": {"branch7x7": "tower", "branch7x7dbl": "tower_1"},
    "7a": {"branch3x3": "tower", "branch7x7x3": "tower_1"},
}
_FORKED = {  # the layers of 7b and 7c
    "branch1x1": "conv",
    "branch3x3_1": "tower_conv",
    "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1",
    "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1",
    "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1",
    "branch_pool": "tower_2_conv",
}


@functools.cache
def inception_shapes() -> PyTree:
    """The parameters of `InceptionV3` as ShapeDtypeStruct."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]


def inception_map() -> WeightMap:
    """The names of pytorch-fid and torch-fidelity, which are equal; no metric uses the bias of the classes."""

    def entry(path: tuple[str, ...]) -> Entry:
        module, leaf = ".".join(path[:-1]), path[-1]
        if path == ("fc",):
            return transposed("fc.weight")
        if leaf == "kernel":
            return convolution_kernel(f"{module}.conv.weight")
        return same(f"{module}.bn.{_NORMS[leaf]}")

    entries = {path: entry(path) for path in flatten_dict(inception_shapes())}
    return WeightMap(entries, ignored=(r".*\.num_batches_tracked", r"fc\.bias", r"AuxLogits\..*"))


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def _nvidia_layer(modules: tuple[str, ...]) -> str:
    """NVIDIA's name of one of our convolutions."""
    if len(modules) == 1:
        return _numbered("layers.conv", _STEM.index(modules[0]))
    block, layer = modules[0].removeprefix("Mixed_"), modules[1]
    there = _numbered("layers.mixed", _BLOCKS.index(block))
    if block in ("7b", "7c"):
        return f"{there}.{_FORKED[layer]}"
    if layer == "branch_pool":
        return f"{there}.tower_2.conv"
    branch, _, position = layer.partition("_")
    if not position:
        return f"{there}.conv"
    towers = _TOWERS.get(block, _TOWERS.get(block[0], {}))
    return f"{there}.{towers[branch]}.{_numbered('conv', int(position) - 1)}"


def nvidia_inception_map() -> WeightMap:
    """The names of NVIDIA's `inception-2015-12-05`, as in github.com/NVIDIA/tao_pytorch_backend
    (sdg/stylegan_xl/model/metrics/inception_net.py): those of TensorFlow's graph, which has no scales."""
    names = {"bias": "beta", "mean": "mean", "variance": "var"}
    shapes = flatten_dict(inception_shapes())

    def entry(path: tuple[str, ...]) -> Entry:
        if path == ("fc",):
            return transposed("output.weight")
        there, leaf = _nvidia_layer(path[:-1]), path[-1]
        if leaf == "scale":
            return ones(shapes[path].shape)
        return convolution_kernel(f"{there}.weight") if leaf == "kernel" else same(f"{there}.{names[leaf]}")

    return WeightMap({path: entry(path) for path in shapes}, ignored=(r"output\.bias",))


def read_inception(path: Path | str) -> tuple[PyTree, str]:
    """Parameters of `InceptionV3`, and the SHA-256 of the file: pytorch-fid's `.pth` or torch-fidelity's, or NVIDIA's
    `.pkl` or its TorchScript `.pt`. Reading runs no code in the file.

    Raises:
      UserError: there is no such file (the error says where it is published), or it has other weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no weights of Inception-v3 at {str(path)!r}; they are published at {SOURCE}")
    state = read_state(path)
    names = nvidia_inception_map() if "layers.conv.weight" in state else inception_map()
    return names.params(state, inception_shapes()), fingerprint(path)
