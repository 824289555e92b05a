"""Our networks with diffusers' weights give diffusers' outputs (tests/golden/README.md)."""

import pathlib

import jax
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, parameter_shapes
from diffusion_jax.weights import find_format, network_spec, read_config, read_state, weight_map

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", ["unet2d_ddpm", "unet2d_adm", "dit"])
def test_output(name):
    spec, form = network_spec(read_config(GOLDEN / name))
    network, state = MODELS.build(spec), read_state(GOLDEN / name)
    assert find_format(network, state) == form
    maps = weight_map(form, network)
    params = maps.params(state, parameter_shapes(network))
    io = np.load(GOLDEN / name / "io.npz")
    conditioning = {"label": np.int32(io["in_class_labels"])} if network.num_classes else {}
    output = jax.jit(network.apply)(
        {"params": params}, np.moveaxis(io["in_sample"], 1, -1), np.float32(io["in_timestep"]), conditioning
    )
    expected = np.moveaxis(io["out_sample"], 1, -1)
    assert np.abs(np.asarray(output) - expected).max() / np.abs(expected).max() < 1e-5
    back = maps.state(params)
    assert set(state) <= set(back)
    assert all(np.array_equal(back[tensor], state[tensor]) for tensor in maps.names())


def test_equal_embeddings_are_one_embedding():
    """The published DiT of diffusers stores 28 copies of the embeddings; with copies, DiT itself is the same map."""
    spec, form = network_spec(read_config(GOLDEN / "dit"))
    network = MODELS.build(spec)
    params = weight_map(form, network).params(read_state(GOLDEN / "dit"), parameter_shapes(network))
    first = jax.tree.map(lambda x: x[0], params["conditioning"])
    copies = {**params, "conditioning": jax.tree.map(lambda x: np.stack([x] * network.depth), first)}
    single = network.clone(own_conditioning=False)
    io = np.load(GOLDEN / "dit" / "io.npz")
    inputs = (np.moveaxis(io["in_sample"], 1, -1), np.float32(io["in_timestep"]))
    label = {"label": np.int32(io["in_class_labels"])}
    np.testing.assert_allclose(
        network.apply({"params": copies}, *inputs, label),
        single.apply({"params": {**params, "conditioning": first}}, *inputs, label),
        atol=1e-5,
    )


def test_other_configs_are_refused():
    config = read_config(GOLDEN / "unet2d_adm")
    with pytest.raises(UserError, match="AutoencoderKL"):
        network_spec({"_class_name": "AutoencoderKL"})
    with pytest.raises(UserError, match="act_fn='mish'"):
        network_spec({**config, "act_fn": "mish"})
    with pytest.raises(UserError, match="attention at other levels"):
        network_spec({**config, "up_block_types": ["UpBlock2D", "UpBlock2D"]})
