"""Networks with the authors' weights give the authors' outputs (tests/golden/networks/README.md).

Both sides draw the weights at random from each tensor's name, so that only names, shapes, inputs and outputs are
stored. The maps are total, so the test also checks that the names are complete.
"""

import json
import math
import pathlib
import zlib

import jax
import numpy as np
import pytest

from diffusion_jax.models import MODELS, NoisyClassifier, UNet, parameter_shapes
from diffusion_jax.weights import find_format, weight_map

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "networks"
FORMAT = {
    "dit": "dit",
    "sit": "dit",
    "adm": "guided_diffusion",
    "adm_classifier": "guided_diffusion_classifier",
    "adm_new_order": "guided_diffusion_new_order",
    "iddpm": "guided_diffusion",
    "flow_matching": "guided_diffusion_new_order",
    "ldm": "guided_diffusion",
    "edm_ddpmpp": "edm",
    "edm_ddpmpp_double_norm": "edm",
    "edm_ncsnpp": "edm",
    "edm_ncsnpp_skip": "edm",
    "edm_adm": "edm_adm",
    "edm2": "edm2",
    "uvit": "uvit",
    "vit": "min_snr_vit",
    "uvit_time_mlp": "uvit",
    "jit": "jit",
    "score_ncsnpp": "score_sde",
    "score_ncsnpp_skip": "score_sde",
    "score_ddpmpp": "score_sde",
    "score_ddpm": "score_sde_ddpm",
    "mdlm": "mdlm",
    "vdm": "vdm",
}


def random_tensor(name, shape):
    """Random values for the tensor of this name; the authors' code ran with the same values."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 0:
        return np.float32(0.7 + 0.1 * draw)
    if len(shape) == 1:
        return np.float32(float(name.endswith(("weight", "scale"))) + 0.1 * draw)
    fan_in = math.prod(shape[:-1] if "/" in name else shape[1:])  # Flax's names contain slashes
    return np.float32(draw / math.sqrt(fan_in))


def load(name):
    io = dict(np.load(GOLDEN / f"{name}.npz"))
    meta = json.loads(str(io.pop("meta")))
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["config"].items()}
    kind = NoisyClassifier if name == "adm_classifier" else UNet
    network = MODELS.build(fields) if "name" in fields else kind(**fields)
    tensors = {n: random_tensor(n, s) for n, s in meta["names"].items() if n not in meta["constants"]}
    return network, tensors, io


def double(array):
    return np.float64(array) if array.dtype == np.float32 else array


def nhwc(x):
    return np.moveaxis(x, 1, -1)


@pytest.fixture(scope="module", params=list(FORMAT))
def golden(request):
    return request.param, *load(request.param)


def test_output(golden, x64):
    """The outputs are compared in float64, so that only the rounding of the authors' code remains."""
    name, network, tensors, io = golden
    params = weight_map(FORMAT[name], network).params(tensors, parameter_shapes(network))
    network, params, io = network.clone(dtype=np.float64), *jax.tree.map(double, (params, io))
    expected, x = io.pop("output"), io.pop("x")
    time = io.pop("time")
    tokens = np.issubdtype(x.dtype, np.integer)
    conditioning = {key: np.int32(value) if key == "label" else value for key, value in io.items()}
    inputs = (np.int32(x) if tokens else nhwc(x), np.float64(time))
    if not isinstance(network, NoisyClassifier):
        inputs = (*inputs, conditioning)
    output = jax.jit(network.apply)({"params": params}, *inputs)
    expected = nhwc(expected) if expected.ndim == 4 else expected
    assert output.shape == expected.shape
    assert np.abs(np.asarray(output) - expected).max() / np.abs(expected).max() < 1e-5


def test_round_trip_is_exact(golden):
    name, network, tensors, _ = golden
    maps = weight_map(FORMAT[name], network)
    back = maps.state(maps.params(tensors, parameter_shapes(network)))
    ignored = set(tensors) - set(maps.names())
    assert all(n.startswith(("logvar_", "rotary_emb.")) for n in ignored)
    assert set(back) - set(maps.constants) == set(tensors) - ignored
    for tensor_name in maps.names():
        assert back[tensor_name].dtype == np.float32
        np.testing.assert_array_equal(back[tensor_name], tensors[tensor_name])


def test_format_is_recognised(golden):
    name, network, tensors, _ = golden
    found = find_format(network, tensors)
    assert found == FORMAT[name].removesuffix("_new_order")  # both orders have the same names


def test_the_order_of_query_key_and_value_matters():
    """Read in guided diffusion's other channel order, the same tensors give another network."""
    network, tensors, io = load("adm")
    inputs = nhwc(io["x"]), np.float32(io["time"]), {"label": np.int32(io["label"])}
    outputs = [
        network.apply({"params": weight_map(form, network).params(tensors, parameter_shapes(network))}, *inputs)
        for form in ("guided_diffusion", "guided_diffusion_new_order")
    ]
    assert np.abs(np.asarray(outputs[0]) - outputs[1]).max() > 1e-3
