"""Published U-Nets and ControlNets, read from config.json and tensors, give the reference's outputs and are written
back unchanged (tests/golden/README.md)."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import parameter_shapes, scaled_control, summed_controls
from diffusion_jax.weights import read_component, read_state
from diffusion_jax.weights.published import controlnet, unet
from diffusion_jax.weights.published.unet_config import (
    build_controlnet,
    build_unet,
    describe_controlnet,
    describe_unet,
)

GOLDEN = Path(__file__).parent.parent / "golden"
PIPELINES, MODULES = GOLDEN / "pipelines", GOLDEN / "modules"
INDEX = json.loads((PIPELINES / "index.json").read_text())
UNETS = [
    *(PIPELINES / name / "unet" for name in ("sd15", "sd2", "sdxl", "sdxl_refiner", "sd15_lcm", "sd15_upscale")),
    *(PIPELINES / name / "unet" for name in ("sd15_inpaint9", "sd15_ip2p")),
    MODULES / "eps_unet_sd15",
    MODULES / "act_unet_sd15",
]
CONTROLNETS = [PIPELINES / "adapters" / "controlnet_a", PIPELINES / "adapters" / "controlnet_b"]
CONTROLNETS.append(MODULES / "controlnet_sdxl")
read = functools.lru_cache(read_component)
QUICK = {"xla_backend_optimization_level": 0}  # these programs run only once


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(network, params, *inputs):
    return network.apply({"params": params}, *inputs)


def last(x):
    """Move channels to the last axis."""
    return np.moveaxis(x, 1, -1)


def first(x):
    """Move channels to the first axis after the batch."""
    return np.moveaxis(np.asarray(x), -1, 1)


def lists(value):
    """Turn tuples into lists, as in JSON."""
    return [lists(part) for part in value] if isinstance(value, tuple | list) else value


@dataclasses.dataclass(eq=False)
class Case:
    """The arrays of a pipeline's run, including those that are composed of others."""

    name: str

    def __post_init__(self):
        self.entry = INDEX["cases"][self.name]
        self.stored = np.load(PIPELINES / "cases" / f"{self.name}.npz")

    def __contains__(self, key):
        return key in self.entry["arrays"]

    def __getitem__(self, key):
        what = self.entry["arrays"][key]
        if what.startswith("= concat"):
            return np.concatenate([self[name] for name in what[len("= concat(") : -1].split(", ")])
        return self[what[2:]] if what.startswith("= ") else self.stored[key]

    def within(self, found, expected, group):
        assert np.abs(found - expected).max() < self.entry["tolerance"][group]


def told(case, network):
    """x, time and conditions of the network's first call, in the form of networks here."""
    x = last(case["m0_in_sample"])
    conditions = {"context": case["m0_in_encoder_hidden_states"]}
    for slot, key in (
        ("pooled", "m0_in_added_cond_kwargs.text_embeds"),
        ("sizes", "m0_in_added_cond_kwargs.time_ids"),
        ("noise_level", "m0_in_class_labels"),
    ):
        if key in case:
            conditions[slot] = case[key]
    if "m0_in_timestep_cond" in case:
        conditions["guidance"] = np.float32([case.entry["call"]["guidance_scale"] - 1])
    if network.extra_channels:
        conditions["image"] = x[..., network.image_channels :]
    if "m0_in_mid_block_additional_residual" in case:
        down = [last(case[f"m0_in_down_block_additional_residuals.{index}"]) for index in range(4)]
        conditions["control"] = {"down": tuple(down), "mid": last(case["m0_in_mid_block_additional_residual"])}
    time = np.broadcast_to(np.float32(case["m0_in_timestep"]), x.shape[:1])
    return x[..., : network.image_channels], time, conditions


@pytest.mark.parametrize(
    "name",
    [
        "sd15_ddim_batch",
        "sd2_ddim_v",
        "sdxl_microcond",
        "sdxl_refiner_last40",
        "sd15_upscale_x4",
        "sd15_lcm_w",
        "sd15_controlnet",
        pytest.param("sd15_inpaint9", marks=pytest.mark.slow),
        pytest.param("sd15_instruct_pix2pix", marks=pytest.mark.slow),
        pytest.param("sd15_controlnet_guess", marks=pytest.mark.slow),
        pytest.param("sdxl_euler", marks=pytest.mark.slow),
        pytest.param("sd15_euler_a", marks=pytest.mark.slow),
    ],
)
def test_a_unet_of_a_pipeline(name):
    case = Case(name)
    components = case.entry["components"]
    network, params = read(PIPELINES / components.get("unet", f"{components['pipeline']}/unet"))
    case.within(first(run(network, params, *told(case, network))), case["m0_out"], "model")


@pytest.mark.parametrize("name", ["eps_unet_sd15", "act_unet_sd15"])
def test_probes_of_epsilons_and_of_the_activation(name):
    network, params = read(MODULES / name)
    io = np.load(MODULES / name / "io.npz")
    found = run(network, params, last(io["in_x"]), np.float32(io["in_timestep"]), {"context": io["in_c"]})
    assert np.abs(first(found) - io["out_sample"]).max() < INDEX["modules"][name]["tolerance"]["sample"]


def test_controlnets_of_a_pipeline():
    """One ControlNet, one in guess mode, which weakens the finest residuals most, and the sum of two."""
    (network, one), (same, two) = read(CONTROLNETS[0]), read(CONTROLNETS[1])
    assert network == same

    def control(params, case, picture):
        x = last(case["c0_in_sample"])[:1]
        conditions = {"context": case["c0_in_encoder_hidden_states"][:1], "control_image": last(case[picture])[:1]}
        return run(network, params, x, np.float32(case["c0_in_timestep"])[None], conditions)

    plain, guess, both = (Case(f"sd15_controlnet{end}") for end in ("", "_guess", "_two"))
    found = {
        plain: scaled_control(control(one, plain, "c0_in_controlnet_cond"), 0.8),
        guess: scaled_control(control(one, guess, "c0_in_controlnet_cond"), 0.8, guess_mode=True),
        both: summed_controls(
            [
                scaled_control(control(params, both, f"c0_in_controlnet_cond.{index}"), scale)
                for index, (params, scale) in enumerate(((one, 0.8), (two, 0.4)))
            ]
        ),
    }
    for case, residuals in found.items():
        for index, residual in enumerate(residuals["down"]):
            case.within(first(residual), case[f"c0_down{index}"][:1], "controlnet")
        case.within(first(residuals["mid"]), case["c0_mid"][:1], "controlnet")


def test_the_controlnet_of_sdxl():
    network, params = read(MODULES / "controlnet_sdxl")
    io = np.load(MODULES / "controlnet_sdxl" / "io.npz")
    conditions = {"context": io["in_c"], "pooled": io["in_text_embeds"], "sizes": io["in_time_ids"]}
    conditions["control_image"] = last(io["in_cond"])
    found = run(network, params, last(io["in_x"]), np.float32(io["in_timestep"]), conditions)
    found = scaled_control(found, 0.6)
    tolerance = INDEX["modules"]["controlnet_sdxl"]["tolerance"]
    for name, residual in [*((f"down{i}", part) for i, part in enumerate(found["down"])), ("mid", found["mid"])]:
        assert np.abs(first(residual) - io[f"out_{name}"]).max() < tolerance[name]


def room(folder):
    return controlnet if "controlnet" in folder.name else unet


@pytest.mark.parametrize("folder", [*UNETS, *CONTROLNETS], ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_folder_goes_back_as_it_came(folder):
    network, params = read(folder)
    tensors = read_state(folder)
    back = room(folder).weight_map(network, tensors).state(params)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].tobytes() == tensor.tobytes(), name
    config = json.loads((folder / "config.json").read_text())
    described = (describe_controlnet if room(folder) is controlnet else describe_unet)(network)
    assert described == {key: value for key, value in config.items() if key != "_diffusers_version"}


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_the_original_layout(name, prefix):
    """The names of single files give the same network, and other tensors in such a file are ignored."""
    folder = PIPELINES / name / "unet"
    network, expected = read(folder)
    tensors = read_state(folder)
    names = json.loads((MODULES / "original_unet_names.json").read_text())[name]
    names = {prefix + original.removeprefix("model.diffusion_model."): theirs for original, theirs in names.items()}
    state = {original: tensors[theirs] for original, theirs in names.items()}
    others = {"first_stage_model.quant_conv.weight": np.zeros((1,))} if prefix else {}
    names = unet.weight_map(network, state)
    params = names.params({**state, **others}, parameter_shapes(network))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    back = names.state(params)
    assert {key: value.tobytes() for key, value in back.items()} == {
        key: value.tobytes() for key, value in state.items()
    }
    with pytest.raises(UserError, match=r"1 missing: .*conv_in|1 missing: .*input_blocks.0.0.weight"):
        names.params({k: v for k, v in state.items() if not k.endswith("input_blocks.0.0.weight")}, expected)


def test_the_original_layout_of_a_controlnet():
    """In lllyasviel's files the indices of the picture's convolutions skip the activations."""
    network, params = read(CONTROLNETS[0])
    names = controlnet.original_map(network)
    state = names.state(params)
    hints = {name.split(".")[2] for name in state if "input_hint_block" in name}
    assert hints == {"0", "2", "4", "6", "8", "10"}
    zero = [name for name in state if "zero_convs" in name and name.endswith("weight")]
    assert sorted(zero) == [f"control_model.zero_convs.{index}.0.weight" for index in range(4)]
    assert state["control_model.middle_block_out.0.weight"].shape == (16, 16, 1, 1)
    again = controlnet.weight_map(network, state).params(state, parameter_shapes(network))
    jax.tree.map(np.testing.assert_array_equal, again, params)


OPTIONS = [
    {"transformer_layers_per_block": [2, 3], "layers_per_block": [1, 2]},
    {"downsample_padding": 0, "mid_block_type": None, "resnet_time_scale_shift": "scale_shift"},
    {"mid_block_type": "UNetMidBlock2D", "only_cross_attention": [True, False], "dropout": 0.1},
    {"attention_head_dim": [2, 4], "upcast_attention": True, "out_channels": 8, "sample_size": 96},
    {"transformer_layers_per_block": [[2], 1], "reverse_transformer_layers_per_block": [1, [1, 2]]},
]


@pytest.mark.parametrize("fields", OPTIONS, ids=str)
def test_options_survive(fields):
    config = {**json.loads((PIPELINES / "sd15" / "unet" / "config.json").read_text()), **fields}
    network = build_unet(config)
    assert describe_unet(network) == {key: value for key, value in config.items() if key != "_diffusers_version"}
    assert len(unet.diffusers_map(network).entries) == len(jax.tree.leaves(parameter_shapes(network)))


def test_an_option_changes_the_network_as_it_says():
    base = json.loads((PIPELINES / "sd15" / "unet" / "config.json").read_text())

    def names(**fields):
        return set(unet.diffusers_map(build_unet({**base, **fields})).names())

    assert names() - names(mid_block_type=None) == {name for name in names() if name.startswith("mid_block.")}
    assert all(".resnets.1" in name for name in names(layers_per_block=[1, 2]) - names() if "down" in name)
    deep = {"transformer_layers_per_block": [1, 1], "reverse_transformer_layers_per_block": [1, 3]}
    assert {name.split(".")[0] for name in names(**deep) - names()} == {"up_blocks"}
    only = build_unet({**base, "only_cross_attention": True, "cross_attention_dim": 20})
    shapes = parameter_shapes(only)
    assert shapes["down_0_0_attention"]["blocks"]["self"]["key"]["kernel"].shape == (1, 20, 8)
    assert shapes["middle_attention"]["blocks"]["self"]["key"]["kernel"].shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_embed_type": "projection"}, "class_embed_type='projection' is not supported"),
        ({"encoder_hid_dim": 4096}, "encoder_hid_dim=4096 is not supported"),
        ({"addition_embed_type": "image"}, "addition_embed_type='image' is not supported; known: None, 'text_time'"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim=None must be a whole number"),
        ({"addition_time_embed_dim": 8}, "addition_time_embed_dim=8 needs addition_embed_type"),
        (
            {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
            "down_block_types='AttnDownBlock2D' is not supported",
        ),
        ({"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "a level must attend on the upward path"),
        ({"down_block_types": 3}, "down_block_types=3 must be a list"),
        ({"block_out_channels": [8]}, r"block_out_channels=\(8,\) must be one number for each of the 2"),
        ({"block_out_channels": [8, "a"]}, "channels must be a tuple"),
        ({"cross_attention_dim": [32, 32]}, "context_channels must be a whole number"),
        ({"attention_head_dim": [2, 4, 8]}, r"num_heads=\(2, 4, 8\) must be one for each of the 2 levels"),
        ({"attention_head_dim": 3}, "8 channels do not divide into num_heads=3"),
        ({"norm_num_groups": 5}, "8 channels are not divisible by norm_groups=5"),
        ({"in_channels": "4"}, "in_channels='4' must be a whole number"),
        ({"sample_size": [8, 16]}, "sample_size"),
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported"),
        ({"a_new_field": 7}, "the field a_new_field=7 is unknown here"),
        ({"transformer_layers_per_block": [1, [1]]}, None),
        ({"transformer_layers_per_block": [[1], 1]}, "give up_transformer_depth"),
    ],
)
def test_what_is_not_here_is_one_line(fields, message):
    config = {**json.loads((PIPELINES / "sd15" / "unet" / "config.json").read_text()), **fields}
    if message is None:  # the depth of a level without attention, or of the middle alone
        build_unet(config)
        return
    with pytest.raises(UserError, match=message) as caught:
        build_unet(config)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("config.json: ")


def test_fields_of_a_controlnet_are_used_or_refused():
    config = json.loads((CONTROLNETS[0] / "config.json").read_text())
    for fields, message in (
        ({"global_pool_conditions": True}, "global_pool_conditions=True is not supported"),
        ({"controlnet_conditioning_channel_order": "brg"}, "channel_order must be 'rgb' or 'bgr'"),
        ({"conditioning_embedding_out_channels": []}, "embedding_channels is empty"),
    ):
        with pytest.raises(UserError, match=message):
            build_controlnet({**config, **fields})
    network, params = read(CONTROLNETS[0])
    turned = build_controlnet({**config, "controlnet_conditioning_channel_order": "bgr"})
    draw = np.random.default_rng(0)
    x, picture = (np.float32(draw.standard_normal(shape)) for shape in ((1, 8, 8, 4), (1, 32, 32, 3)))
    context, time = np.float32(draw.standard_normal((1, 77, 32))), np.float32([7])

    def middle(network, picture):
        return run(network, params, x, time, {"context": context, "control_image": picture})["mid"]

    np.testing.assert_allclose(middle(network, picture[..., ::-1]), middle(turned, picture), atol=1e-5)
    assert np.abs(middle(network, picture) - middle(turned, picture)).max() > 1e-3
