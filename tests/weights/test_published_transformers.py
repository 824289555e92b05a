"""The published transformers give the reference's outputs from its own files, and every tensor is written back.

The files of tests/golden/modules are folders in diffusers' format, with random weights and outputs of its networks.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import count_parameters, parameter_shapes
from diffusion_jax.models.packed_transformer import Packing
from diffusion_jax.parallel import FSDP_RULES, TENSOR_RULES
from diffusion_jax.parallel.activations import in_force
from diffusion_jax.parallel.rules import shardings
from diffusion_jax.weights import read_state
from diffusion_jax.weights.components import COMPONENTS, class_name, read_component

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
MODULES, PIPELINES = GOLDEN / "modules", GOLDEN / "pipelines"

# Module -> (tolerance, rows and columns of the image's tokens; for SD3 the file has them).
TOLERANCES = {
    "mmdit_sd3": (4e-5, None),
    "mmdit_sd35": (4e-5, None),
    "eps_mmdit_sd35": (4.2e-5, None),
    "act_mmdit": (4e-5, None),
    "flux": (4e-5, (4, 4)),
    "eps_flux": (4.1e-5, (3, 4)),
    "act_flux": (5.7e-5, (3, 4)),
}
# In the last block the text only provides keys and values, so its query parameters have no effect.
WITHOUT_EFFECT = {
    f"transformer_blocks.2.attn.{name}" for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")
}


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def unpacked(tokens, rows, columns):
    """Turn [n, rows * columns, (channel, 2, 2)] into [n, 2 rows, 2 columns, channel]."""
    x = tokens.reshape(len(tokens), rows, columns, -1, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(len(x), 2 * rows, 2 * columns, -1)


def weight_map(folder, network, names):
    component = COMPONENTS.build(class_name(json.loads((folder / "config.json").read_text())))
    return component.weight_map(network, names)


def run(network, params, *inputs, **options):
    return jax.jit(network.apply, static_argnames="method")({"params": params}, *inputs, **options)


class Golden:
    """A module of the reference, with parameters, inputs and output in the layout of this package."""

    def __init__(self, name):
        self.folder, self.name = MODULES / name, name
        self.network, self.params = read_component(self.folder)
        io = dict(np.load(self.folder / "io.npz"))
        short = {"in_x": "in_sample", "in_c": "in_encoder_hidden_states", "in_p": "in_pooled_projections"}
        x, context, pooled = (io.get(name, io.get(long)) for name, long in short.items())
        self.tolerance, grid = TOLERANCES[name]
        self.x, self.expected = (
            nhwc(part) if grid is None else unpacked(part, *grid) for part in (x, io["out_sample"])
        )
        self.time = np.float32(io["in_timestep"])
        self.conditions = {"context": context, "pooled": pooled}


@pytest.fixture(scope="module", params=list(TOLERANCES))
def golden(request):
    return Golden(request.param)


def test_output_is_the_references(golden):
    found = run(golden.network, golden.params, golden.x, golden.time, golden.conditions)
    assert np.abs(found - golden.expected).max() < golden.tolerance
    assert np.abs(golden.expected).max() > 0.5


@pytest.mark.parametrize("name", [*TOLERANCES, "ideogram4"])
def test_every_tensor_is_written_back(name):
    network, params = read_component(MODULES / name)
    there = read_state(MODULES / name)
    back = weight_map(MODULES / name, network, there).state(params)
    assert set(back) == set(there)
    for tensor, value in there.items():
        assert back[tensor].dtype == value.dtype
        np.testing.assert_array_equal(back[tensor], value)


def test_gradients_flow_to_every_tensor():
    golden = Golden("mmdit_sd35")

    def loss(params):
        found = golden.network.apply({"params": params}, golden.x, golden.time, golden.conditions)
        return jnp.mean((found - 1.0) ** 2)

    gradients = jax.device_get(jax.jit(jax.grad(loss))(golden.params))
    by_name = weight_map(golden.folder, golden.network, read_state(golden.folder)).state(gradients)
    without = {name for name, value in by_name.items() if not value.any()}
    assert without == {"pos_embed.pos_embed", *WITHOUT_EFFECT}  # the position table is a constant


@pytest.mark.parametrize(
    ("lengths", "rules"), [({"data": 2, "fsdp": 4}, FSDP_RULES), ({"data": 2, "fsdp": 2, "tensor": 2}, TENSOR_RULES)]
)
def test_eight_devices_give_the_output_of_one(lengths, rules):
    golden = Golden("flux")
    repeated = jax.tree.map(lambda leaf: np.concatenate([leaf * (1 + i) for i in range(4)]), golden.conditions)
    inputs = (np.concatenate([golden.x] * 4), np.linspace(0.1, 0.9, 8, dtype=np.float32), repeated)
    alone = run(golden.network, golden.params, *inputs)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(*lengths.values()), tuple(lengths))
    params = jax.device_put(golden.params, shardings(golden.params, mesh, rules))
    divided = jax.device_put(inputs, jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    with in_force(mesh):
        together = run(golden.network, params, *divided)
    assert len(together.sharding.device_set) == 8
    np.testing.assert_allclose(together, alone, atol=2e-5)


def text_and_image(io, length):
    """The parts of a reference's sequence: the text of this length, its mask, and the image after it."""
    return io["in_c"][:, :length], io["in_indicator"][:, :length] == 3, io["in_x"][:, length:]


@pytest.mark.parametrize(("name", "tolerance"), [("ideogram4", 3.4e-5), ("eps_ideogram4", 2.3e-5)])
def test_packed_transformer_is_the_references(name, tolerance):
    network, params = read_component(MODULES / name)
    io = dict(np.load(MODULES / name / "io.npz"))
    context, mask, x = text_and_image(io, 6)
    x = x.reshape(len(x), 3, 4, -1)
    found = run(network, params, x, io["in_timestep"], {"context": context, "context_mask": mask})
    assert np.abs(found.reshape(io["out_image_tokens"].shape) - io["out_image_tokens"]).max() < tolerance


def test_examples_packed_into_one_sequence_do_not_see_each_other():
    network, params = read_component(MODULES / "ideogram4_packed")
    io = dict(np.load(MODULES / "ideogram4_packed" / "io.npz"))
    is_image = io["in_indicator"][0] == 2
    order = np.where(is_image, np.cumsum(is_image) - 1 + (~is_image).sum(), np.cumsum(~is_image) - 1)[None]
    packing = Packing(order, io["in_position_ids"], io["in_segment_ids"])
    tokens, context = io["in_x"][:, is_image], io["in_c"][:, ~is_image]
    found = run(network, params, tokens, io["in_timestep"], context, packing, method="packed")
    assert np.abs(found[:, 4:16] - io["out_first"]).max() < 3.3e-5
    assert np.abs(found[:, 18:] - io["out_second"]).max() < 3.5e-5
    other = run(
        network, params, tokens, io["in_timestep"], context * (np.arange(6) < 4)[:, None], packing, method="packed"
    )
    np.testing.assert_allclose(other[:, 4:16], found[:, 4:16], atol=1e-6)
    assert np.abs(other[:, 18:] - found[:, 18:]).max() > 1e-3


# Cases of whole pipelines: inputs and outputs of their networks.


def case(name):
    io = dict(np.load(PIPELINES / "cases" / f"{name}.npz"))
    tolerance = json.loads((PIPELINES / "index.json").read_text())["cases"][name]["tolerance"]["model"]
    return io, tolerance


def calls(io):
    """The numbers of the calls with stored inputs."""
    return [k for k in range(10) if f"m{k}_in_hidden_states" in io]


def test_sd3_in_its_pipeline():
    network, params = read_component(PIPELINES / "sd3" / "transformer")
    for name in ("sd3_flow", "sd3_img2img"):
        io, tolerance = case(name)
        context = np.concatenate([io["enc0_1"], io["enc0_0"]])
        conditions = {"context": context, "pooled": io["m0_in_pooled_projections"]}
        for k in calls(io):
            found = run(network, params, nhwc(io[f"m{k}_in_hidden_states"]), io[f"m{k}_in_timestep"], conditions)
            assert np.abs(found - nhwc(io[f"m{k}_out"])).max() < tolerance


def test_sd3_with_a_layer_skipped():
    network, params = read_component(PIPELINES / "sd3" / "transformer")
    io, tolerance = case("sd3_skip_layer_guidance")
    x, conditions = nhwc(io["s0_latents"]), {"context": io["enc0_0"], "pooled": io["enc0_2"]}
    found = run(network.clone(skipped_blocks=(1,)), params, x, io["m2_timestep"], conditions)
    assert np.abs(found - nhwc(io["m2_out"])).max() < tolerance


@pytest.mark.parametrize(
    ("name", "folder"),
    [("flux_dev", "flux"), ("flux_schnell", "flux_schnell"), ("flux_kontext", "flux"), ("flux_fill", "flux_fill")],
)
def test_flux_in_its_pipeline(name, folder):
    network, params = read_component(PIPELINES / folder / "transformer")
    io, tolerance = case(name)
    conditions = {"context": io["te2_c0_last"], "pooled": io["m0_in_pooled_projections"]}
    if network.has_guidance:
        conditions["guidance"] = io["m0_in_guidance"]
    for k in calls(io):
        tokens, extra = np.split(io[f"m{k}_in_hidden_states"], [16], axis=1)
        x = unpacked(tokens, 4, 4)
        told = {}
        if name == "flux_kontext":
            network, told = network.clone(has_reference=True), {"reference": unpacked(extra, 4, 4)}
        elif name == "flux_fill":
            x, told["image"] = np.split(x, [16], axis=-1)
        found = run(network, params, x, io[f"m{k}_in_timestep"], {**conditions, **told})
        assert np.abs(found - unpacked(io[f"m{k}_out"][:, :16], 4, 4)).max() < tolerance


def test_ideogram4_in_its_pipeline():
    """Outputs for a text whose first positions are masked, and outputs of the unconditional network without text."""
    io, tolerance = case("ideogram4")
    network, params = read_component(PIPELINES / "ideogram4" / "transformer")
    alone, its_params = read_component(PIPELINES / "ideogram4" / "unconditional_transformer")
    conditions = {"context": io["enc0_0"][:, :80], "context_mask": io["enc0_3"][:, :80] == 3}
    nothing = {"context": np.zeros((1, 0, 208), np.float32)}
    for k in calls(io):
        x, time = io[f"m{k}_in_hidden_states"][:, 80:].reshape(1, 4, 4, -1), io[f"m{k}_in_timestep"]
        found = run(network, params, x, time, conditions)
        assert np.abs(found - io[f"m{k}_out"][:, 80:].reshape(x.shape)).max() < tolerance
        found = run(alone, its_params, x, time, nothing)
        assert np.abs(found - io[f"u{k}_out"].reshape(x.shape)).max() < tolerance


# Published sizes.

SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
SD35 = {**SD3, "pos_embed_max_size": 384, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"}
FLUX = {"_class_name": "FluxTransformer2DModel"}
# Counts by diffusers on torch's meta device; FLUX.1 dev is schnell plus two layers.
PUBLISHED = {
    "SD3 medium": (SD3, 2_028_328_000, 682),
    "SD3.5 medium": (SD35, 2_243_171_520, 908),
    "FLUX.1 schnell": (FLUX, 11_891_178_560, 1156),
    "FLUX.1 dev": ({**FLUX, "guidance_embeds": True}, 11_891_178_560 + 257 * 3072 + 3073 * 3072, 1160),
    "Ideogram 4": ({"_class_name": "Ideogram4Transformer2DModel"}, 9_279_288_448, 526),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_sizes(name):
    config, count, tensors = PUBLISHED[name]
    component = COMPONENTS.build(config["_class_name"])
    network = component.build(config, jnp.bfloat16)
    assert count_parameters(network) == count
    names = component.weight_map(network, ()).names()
    assert len(names) == len(set(names)) == tensors + ("pos_embed.pos_embed" in names)


# The files of the authors.


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", ["mmdit_sd35", "flux"])
def test_the_authors_layout(name, prefix):
    """The authors fuse query, key and value, in single blocks with the MLP, and store (shift, scale) without a gate."""
    folder = MODULES / name
    network, params = read_component(folder)
    there = read_state(folder)
    first = "joint_blocks" if name == "mmdit_sd35" else "double_blocks"
    layout = weight_map(folder, network, [f"{prefix}{first}.0"])
    state = layout.state(params)
    back = layout.params({**state, **({"vae.decoder": np.ones(1)} if prefix else {})}, parameter_shapes(network))
    jax.tree.map(np.testing.assert_array_equal, back, params)

    def fused(names, rest="weight"):
        return np.concatenate([there[f"{name}.{rest}"] for name in names])

    scale, shift = np.split(there["norm_out.linear.weight"], 2)
    expected = {"final_layer.adaLN_modulation.1.weight": np.concatenate([shift, scale])}
    if name == "mmdit_sd35":
        block = "transformer_blocks.2.attn"
        scale, shift = np.split(there["transformer_blocks.2.norm1_context.linear.bias"], 2)
        expected |= {
            "joint_blocks.2.x_block.attn.qkv.weight": fused([f"{block}.to_{letter}" for letter in "qkv"]),
            "joint_blocks.2.context_block.attn.qkv.bias": fused([f"{block}.add_{n}_proj" for n in "qkv"], "bias"),
            "joint_blocks.2.context_block.adaLN_modulation.1.bias": np.concatenate([shift, scale]),
            "joint_blocks.1.x_block.attn2.ln_k.weight": there["transformer_blocks.1.attn2.norm_k.weight"],
            "pos_embed": there["pos_embed.pos_embed"],
        }
    else:
        block = "single_transformer_blocks.1"
        parts = [*(f"{block}.attn.to_{letter}" for letter in "qkv"), f"{block}.proj_mlp"]
        expected |= {
            "single_blocks.1.linear1.weight": fused(parts),
            "single_blocks.1.linear1.bias": fused(parts, "bias"),
            "single_blocks.1.linear2.weight": there[f"{block}.proj_out.weight"],
            "double_blocks.0.txt_attn.norm.query_norm.scale": there["transformer_blocks.0.attn.norm_added_q.weight"],
            "img_in.weight": there["x_embedder.weight"],
        }
    for tensor, value in expected.items():
        np.testing.assert_array_equal(state[prefix + tensor], value, tensor)
    assert sum(value.size for value in state.values()) == sum(value.size for value in there.values())


def test_a_tensor_of_another_size_is_named():
    folder = MODULES / "flux"
    network, _ = read_component(folder)
    state = {**read_state(folder), "single_transformer_blocks.1.proj_out.weight": np.zeros((32, 100), np.float32)}
    with pytest.raises(UserError, match=r"single_transformer_blocks\.1\.proj_out\.weight.* \(32, 100\) for single/"):
        weight_map(folder, network, state).params(state, parameter_shapes(network))
    del state["single_transformer_blocks.1.proj_out.weight"]
    with pytest.raises(UserError, match=r"1 missing: single_transformer_blocks\.1\.proj_out\.weight"):
        weight_map(folder, network, state).params(state, parameter_shapes(network))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SD3, "use_pe": True}, "use_pe"),
        ({**SD3, "qk_norm": "layer_norm"}, "qk_norm"),
        ({**SD3, "caption_projection_dim": 1152}, "caption_projection_dim"),
        ({**SD3, "num_layers": 0}, "num_layers"),
        ({**SD3, "dual_attention_layers": [24]}, "dual_blocks"),
        ({**SD3, "dual_attention_layers": "all"}, "dual_attention_layers"),
        ({**FLUX, "patch_size": 2}, "patch_size"),
        ({**FLUX, "in_channels": 62}, "in_channels"),
        ({**FLUX, "axes_dims_rope": [16, 56, 55]}, "rotary_dims"),
        ({"_class_name": "Ideogram4Transformer2DModel", "mrope_section": [24, 44, 20]}, "rotary_sections"),
    ],
)
def test_configs_that_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        COMPONENTS.build(config["_class_name"]).build(config, jnp.float32)


def test_sizes_that_do_not_fit_are_named():
    sd3, flux = Golden("mmdit_sd3"), Golden("flux")
    for golden, shape, message in [
        (sd3, (2, 16, 15, 16), "16 x 15, the sides of x, must be divisible by patch_size=2"),
        (sd3, (2, 50, 16, 16), "the table of positions ends at 48 x 48"),
        (flux, (2, 7, 8, 4), "7 x 8, the sides of x, must be divisible"),
    ]:
        with pytest.raises(UserError, match=message):
            golden.network.apply({"params": golden.params}, np.zeros(shape), golden.time, golden.conditions)
    with pytest.raises(UserError, match="rotary_dims"):
        sd3.network.clone(has_reference=True)
    with pytest.raises(UserError, match="skipped_blocks"):
        sd3.network.clone(skipped_blocks=(2,))
    filling = flux.network.clone(extra_channels=3)
    conditions = {**flux.conditions, "image": np.zeros((2, 4, 8, 3))}
    with pytest.raises(UserError, match=r"takes image as \[2, 8, 8, 3\], got \[2, 4, 8, 3\]"):
        filling.apply({"params": flux.params}, flux.x, flux.time, conditions)


def test_a_skipped_block_is_as_if_it_were_not_there():
    golden = Golden("flux")
    inputs = (golden.x, golden.time, golden.conditions)
    skipped = run(golden.network.clone(skipped_blocks=(2,)), golden.params, *inputs)
    single = jax.tree.map(lambda leaf: leaf[:1], golden.params["single"])
    expected = run(golden.network.clone(single_depth=1), {**golden.params, "single": single}, *inputs)
    np.testing.assert_allclose(skipped, expected, atol=1e-6)
