"""Write random weights of LPIPS to two files with the tensor names of torchvision and of the lpips package."""

import math
import zlib

import numpy as np
from safetensors.numpy import save_file

from diffusion_jax.weights import lpips_map, lpips_shapes
from tests.inception_weights import random_state


def random_tensor(name, shape):
    """Random values for the tensor of this name; the reference uses the same (tests/golden/metrics/README.md)."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.startswith("lin"):
        return np.float32(np.abs(draw) / shape[1])
    if len(shape) == 1:
        return np.float32(0.1 * draw)
    return np.float32(draw * math.sqrt(2 / math.prod(shape[1:])))


def write_random_lpips(folder):
    """Write the two safetensors files; returns their paths."""
    state = random_state(lpips_map(), lpips_shapes(), random_tensor)
    vgg = {name: tensor for name, tensor in state.items() if name.startswith("features")}
    vgg["classifier.0.bias"] = np.zeros(8, np.float32)
    save_file(vgg, folder / "vgg16.safetensors")
    save_file({name: state[name] for name in state if name not in vgg}, folder / "lpips.safetensors")
    return folder / "vgg16.safetensors", folder / "lpips.safetensors"
