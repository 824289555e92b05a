"""Write random weights of Inception-v3 to a file."""

import math
import zlib

import jax
import numpy as np
from safetensors.numpy import save_file

from diffusion_jax.weights import inception_map, inception_shapes, nvidia_inception_map


def random_tensor(name, shape):
    """Random values for the tensor of this name; the reference uses the same (tests/golden/metrics/README.md)."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith((".running_var", ".var")):
        return np.float32(np.exp(0.2 * draw))
    if name.endswith("bn.weight"):
        return np.float32(1 + 0.1 * draw)
    if len(shape) == 1:
        return np.float32(0.1 * draw)
    return np.float32(draw * math.sqrt(2 / math.prod(shape[1:])))


def random_state(weight_map, parameters, draw):
    """Every tensor that a weight map names, filled with `draw(name, shape)`."""
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), parameters)
    return {name: draw(name, tensor.shape) for name, tensor in weight_map.state(ones).items()}


def write_random_inception(path):
    """Write a safetensors file with the tensor names of pytorch-fid."""
    state = random_state(inception_map(), inception_shapes(), random_tensor)
    state["fc.bias"] = np.zeros(1008, np.float32)
    state["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.zeros((), np.int64)
    save_file(state, path)


def write_random_nvidia_inception(path):
    """Write a safetensors file with the tensor names of NVIDIA."""
    state = random_state(nvidia_inception_map(), inception_shapes(), random_tensor)
    save_file({**state, "output.bias": np.zeros(1008, np.float32)}, path)
