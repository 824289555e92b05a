"""Random weights of Inception-v3 in a file with the names of pytorch-fid's."""

import math
import zlib

import jax
import numpy as np
from safetensors.numpy import save_file

from diffusion_jax.weights import inception_map, inception_shapes


def random_tensor(name, shape):
    """What both sides fill the tensor of this name with (tests/golden/metrics/README.md)."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        return np.float32(np.exp(0.2 * draw))
    if name.endswith("bn.weight"):
        return np.float32(1 + 0.1 * draw)
    if len(shape) == 1:
        return np.float32(0.1 * draw)
    return np.float32(draw * math.sqrt(2 / math.prod(shape[1:])))


def random_state(weight_map, parameters, draw):
    """Every tensor that a map names, as `draw(name, shape)` has it."""
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameters)
    return {name: draw(name, tensor.shape) for name, tensor in weight_map.state(empty).items()}


def write_random_inception(path):
    """A safetensors file."""
    state = random_state(inception_map(), inception_shapes(), random_tensor)
    state["fc.bias"] = np.zeros(1008, np.float32)
    state["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.zeros((), np.int64)
    save_file(state, path)
