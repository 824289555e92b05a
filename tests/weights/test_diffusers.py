"""Networks with diffusers' weights give diffusers' outputs (tests/golden/README.md)."""

import json
import pathlib

import jax
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, parameter_shapes
from diffusion_jax.weights import (
    describe,
    find_format,
    fitted,
    network_spec,
    read_config,
    read_state,
    weight_map,
)

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
    """The published DiT of diffusers stores 28 copies of the embeddings; with equal copies it is the original DiT."""
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


NAMES = json.loads((GOLDEN / "weights" / "diffusers_names.json").read_text())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_is_written_has_the_names_of_diffusers(name):
    """The written keys and shapes are exactly those of diffusers (tests/golden/weights/README.md)."""
    config = NAMES[name]["config"]
    spec, form = network_spec(config)
    network = MODELS.build(spec)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameter_shapes(network))
    state = weight_map(form, network).state(params)
    assert {key: list(value.shape) for key, value in state.items()} == NAMES[name]["names"]
    assert describe(network) == config


def test_groups_of_two_channels():
    """diffusers uses `norm_num_groups` groups everywhere; fewer groups would change the output."""
    spec, _ = network_spec(NAMES["few"]["config"])
    network, draw = MODELS.build(spec), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(draw.standard_normal(leaf.shape) * 0.1), parameter_shapes(network))
    io = np.load(GOLDEN / "weights" / "diffusers_few.npz")
    output = jax.jit(network.apply)({"params": params}, np.moveaxis(io["x"], 1, -1), io["t"], {})
    assert np.abs(np.moveaxis(np.asarray(output), -1, 1) - io["y"]).max() / np.abs(io["y"]).max() < 1e-5
    with pytest.raises(UserError, match="norm_channels=4"):
        describe(network.clone(norm_channels=4))


def test_absent_fields_have_the_defaults_of_diffusers():
    spec, _ = network_spec({"_class_name": "UNet2DModel", "sample_size": 32})
    assert spec["head_channels"] == 8
    assert spec["channel_multipliers"] == (1, 2, 3, 4)
    assert spec["attention_resolutions"] == (16, 8, 4)
    assert (spec["norm_eps"], spec["norm_groups"], spec["num_res_blocks"]) == (1e-5, 32, 2)
    assert (spec["flip_sin_to_cos"], spec["frequency_shift"], spec["downsample_padding"]) == (True, 0, "symmetric")
    spec, _ = network_spec({"_class_name": "DiTTransformer2DModel"})
    assert (spec["hidden_size"], spec["depth"], spec["num_heads"], spec["num_classes"]) == (1152, 28, 16, 1000)
    published = {  # as in facebook/DiT-XL-2-256, without norm_eps
        "_class_name": "Transformer2DModel", "activation_fn": "gelu-approximate", "attention_bias": True,
        "attention_head_dim": 72, "in_channels": 4, "norm_elementwise_affine": False, "norm_type": "ada_norm_zero",
        "num_embeds_ada_norm": 1000, "num_layers": 28, "out_channels": 8, "patch_size": 2, "sample_size": 32,
    }  # fmt: skip
    assert network_spec(published)[0] == {**spec, "learn_sigma": True}


def test_the_first_names_of_blocks_and_of_attention():
    """Models of 2022 on the hub use UNetResAttnDownBlock2D, and query, key, value and proj_attn."""
    config = json.loads((GOLDEN / "unet2d_ddpm" / "config.json").read_text())
    old = {
        side: [name.replace("AttnDown", "UNetResAttnDown").replace("AttnUp", "UNetResAttnUp") for name in config[side]]
        for side in ("down_block_types", "up_block_types")
    }
    assert network_spec({**config, **old}) == network_spec(config)
    network, state = MODELS.build(network_spec(config)[0]), read_state(GOLDEN / "unet2d_ddpm")
    today = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in state.items():
        for now, before in today.items():
            name = name.replace(f".{now}.", f".{before}.")
        renamed[name] = value
    assert set(renamed) != set(state)
    for tensors in (renamed, {f"unet.{name}": value for name, value in renamed.items()}):
        found, expected = (fitted(network, each) for each in (tensors, state))
        assert found[0] == expected[0]
        jax.tree.map(np.testing.assert_array_equal, dict(found[1]), dict(expected[1]))


UNET = {"_class_name": "UNet2DModel", "sample_size": 32}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1], "a JSON list"),
        ("x", "a JSON str"),
        ({}, "describes a None"),
        ({"_class_name": ["UNet2DModel"]}, "describes a"),
        ({"_class_name": "UNet2DModel"}, "no sample_size"),
        ({**UNET, "sample_size": [32, 64]}, "square"),
        ({**UNET, "sample_size": "32"}, "sample_size='32'"),
        ({**UNET, "sample_size": 36}, "cannot be halved"),
        ({**UNET, "block_out_channels": 64}, "block_out_channels=64"),
        ({**UNET, "block_out_channels": []}, r"block_out_channels=\[\]"),
        ({**UNET, "block_out_channels": [64, 10**12, 64, 64]}, "block_out_channels"),
        ({**UNET, "layers_per_block": 10**9}, "layers_per_block=1000000000"),
        ({**UNET, "layers_per_block": True}, "layers_per_block=True"),
        ({**UNET, "in_channels": -3}, "in_channels=-3"),
        ({**UNET, "norm_eps": float("nan")}, "norm_eps=nan"),
        ({**UNET, "norm_num_groups": 5}, "do not divide into 5 groups"),
        ({**UNET, "attention_head_dim": 9}, "attention_head_dim=9"),
        ({**UNET, "flip_sin_to_cos": 1}, "flip_sin_to_cos=1"),
        ({**UNET, "time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({**UNET, "time_embedding_dim": 7}, "time_embedding_dim=7"),
        ({**UNET, "mid_block_type": "UNetMidBlock2DCrossAttn"}, "UNetMidBlock2DCrossAttn"),
        ({**UNET, "down_block_types": ["SkipDownBlock2D"] * 4}, "the block SkipDownBlock2D in the down path"),
        ({**UNET, "up_block_types": ["AttnDownBlock2D"] * 4}, "the block AttnDownBlock2D in the up path"),
        ({**UNET, "down_block_types": ["DownBlock2D"]}, "1 down_block_types and 4 block_out_channels"),
        ({**UNET, "downsample_type": "resnet"}, "by a convolution in some blocks and by a residual block in others"),
        ({"_class_name": "Transformer2DModel"}, "norm_type='layer_norm'"),
        ({"_class_name": "DiTTransformer2DModel", "num_layers": 10**9}, "num_layers"),
        ({"_class_name": "DiTTransformer2DModel", "sample_size": 2**20}, "too many patches"),
        ({"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2.5}, "num_attention_heads=2.5"),
    ],
)
def test_bad_configs_are_one_line_with_the_files_name(config, message):
    with pytest.raises(UserError, match=message) as caught:
        network_spec(config, origin="folder/config.json")
    assert "folder/config.json" in str(caught.value)


def test_what_diffusers_cannot_say_is_named():
    network = MODELS.example("dit")
    with pytest.raises(UserError, match=r"cannot have.*own_conditioning=False"):
        describe(network)
    with pytest.raises(UserError, match="diffusers has no UViT"):
        describe(MODELS.example("uvit"))
