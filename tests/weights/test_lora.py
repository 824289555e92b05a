"""LoRA files and related formats change each tensor of the original layout as they specify; they are also written and
read again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from diffusion_jax.adapters import apply, merge, weighted
from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders import TEXT_ENCODERS, init_encoder
from diffusion_jax.weights.lora import Target, read_lora
from diffusion_jax.weights.lora_writing import write_lora
from diffusion_jax.weights.names import WeightMap, conv, dense, prefixed
from diffusion_jax.weights.texts import bert_map
from tests.bert import bert_folder, tensors

ATTENTION = "encoder.layer.{}.attention.self.{}"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Targets, parameters and original tensors of an encoder with two scanned layers and fused query, key and value."""
    encoder = TEXT_ENCODERS.build({"name": "bert", "folder": str(bert_folder(tmp_path_factory.mktemp("bert")))})
    shapes = jax.eval_shape(lambda: init_encoder(encoder, jax.random.key(0)))
    state = tensors()
    params = bert_map(encoder).params(state, shapes)
    target = Target("conditioning/text", (bert_map(encoder),), flatten_dict(shapes))
    return {"text_encoder": target}, {"conditioning/text": params}, state


CONVOLUTIONS = WeightMap({**prefixed("conv", conv("conv_in")), **prefixed("proj", dense("proj_in", ndim=4))})


@pytest.fixture(scope="module")
def convolutional():
    """A 3x3 convolution, and a 1x1 convolution that is a dense layer here."""
    rng = np.random.default_rng(5)
    shapes = {
        "conv_in.weight": (6, 4, 3, 3),
        "conv_in.bias": (6,),
        "proj_in.weight": (6, 6, 1, 1),
        "proj_in.bias": (6,),
    }
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    sizes = {
        ("conv", "kernel"): (3, 3, 4, 6),
        ("conv", "bias"): (6,),
        ("proj", "kernel"): (6, 6),
        ("proj", "bias"): (6,),
    }
    flat = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in sizes.items()}
    tree = {
        "conv": {name: flat["conv", name] for name in ("kernel", "bias")},
        "proj": {name: flat["proj", name] for name in ("kernel", "bias")},
    }
    return {"denoiser": Target("network", (CONVOLUTIONS,), flat)}, {"network": CONVOLUTIONS.params(state, tree)}, state


def factors(seed, outputs, inputs, rank, *kernel):
    rng = np.random.default_rng(seed)
    down = rng.standard_normal((rank, inputs, *kernel)).astype(np.float32)
    return down, rng.standard_normal((outputs, rank, *(1 for _ in kernel))).astype(np.float32)


def changed(targets, params, own):
    """The adapted tensors under their original names."""
    (target,) = targets.values()
    return target.maps[0].state(merge(params, [own])[target.group])


def check(found, state, wanted):
    """Require the values in `wanted`, and no change in all other tensors."""
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, wanted.get(name, state[name]), rtol=1e-5, atol=1e-5, err_msg=name)
    assert set(wanted) <= set(found)


SPELLINGS = {
    "peft": ("text_encoder.{}", "lora_A.weight", "lora_B.weight"),
    "diffusers": ("text_encoder.{}", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "kohya": ("lora_te_{}", "lora_down.weight", "lora_up.weight"),
    "kohya of two": ("lora_te1_{}", "lora_down.weight", "lora_up.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ranks_of_their_own_in_fused_scanned_layers(tmp_path, bert, spelling):
    targets, params, state = bert
    start, down_name, up_name = SPELLINGS[spelling]
    file, wanted = {}, {}
    for seed, (module, rank) in enumerate(
        {
            ATTENTION.format(0, "query"): 3,
            ATTENTION.format(0, "value"): 1,
            ATTENTION.format(1, "key"): 2,
            "encoder.layer.1.output.dense": 4,
        }.items()
    ):
        outputs, inputs = state[f"{module}.weight"].shape
        down, up = factors(seed, outputs, inputs, rank)
        written = start.format(module.replace(".", "_") if "kohya" in spelling else module)
        file |= {f"{written}.{down_name}": down, f"{written}.{up_name}": up}
        scale = 1.0
        if "kohya" in spelling:
            file[f"{written}.alpha"] = np.array(1.5, np.float32)
            scale = 1.5 / rank
        wanted[f"{module}.weight"] = state[f"{module}.weight"] + scale * up @ down
    save_file(file, tmp_path / "lora.safetensors")
    own = read_lora(tmp_path / "lora.safetensors", targets)
    check(changed(targets, params, own), state, wanted)
    check(changed(targets, params, weighted(own, 0.0)), state, {})


def test_alpha_lies_in_the_metadata_of_peft(tmp_path, bert):
    targets, params, state = bert
    module = ATTENTION.format(1, "query")
    down, up = factors(0, 8, 8, 2)
    file = {f"text_encoder.{module}.lora_A.weight": down, f"text_encoder.{module}.lora_B.weight": up}
    for settings, scale in [
        ({"text_encoder.lora_alpha": 6.0}, 3.0),
        ({"text_encoder.lora_alpha": 6.0, "text_encoder.use_rslora": True}, 6.0 / 2**0.5),
        ({"text_encoder.lora_alpha": 6.0, "text_encoder.alpha_pattern": {"attention.self.query": 1.0}}, 0.5),
        ({"unet.lora_alpha": 6.0}, 1.0),
    ]:
        save_file(file, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
        own = read_lora(tmp_path / "lora.safetensors", targets)
        wanted = {f"{module}.weight": state[f"{module}.weight"] + scale * up @ down}
        check(changed(targets, params, own), state, wanted)


@pytest.mark.parametrize(
    "settings",
    [
        "[" * 100_000,
        "[1]",
        *('{"text_encoder.lora_alpha": ' + value + "}" for value in ("NaN", "1e999", '"6"', "[6]", "true")),
        '{"text_encoder.lora_alpha": 6, "text_encoder.alpha_pattern": {"a": "6"}}',
        '{"text_encoder.lora_alpha": 6, "text_encoder.alpha_pattern": {"a": NaN}}',
        '{"text_encoder.lora_alpha": 6, "text_encoder.alpha_pattern": {"(": 6}}',
        '{"text_encoder.lora_alpha": 6, "text_encoder.alpha_pattern": ["a"]}',
    ],
)
def test_strengths_that_are_none(tmp_path, bert, settings):
    targets, _, _ = bert
    down, up = factors(0, 8, 8, 2)
    module = f"text_encoder.{ATTENTION.format(1, 'query')}"
    file = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    save_file(file, tmp_path / "lora.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(UserError, match=r"lora\.safetensors: .*lora_adapter_metadata"):
        read_lora(tmp_path / "lora.safetensors", targets)


def test_convolutions_biases_and_whole_differences(tmp_path, convolutional):
    targets, params, state = convolutional
    down, up = factors(1, 6, 4, 2, 3, 3)
    thin_down, thin_up = factors(2, 6, 6, 3, 1, 1)
    difference = np.random.default_rng(3).standard_normal(6).astype(np.float32)
    file = {
        "lora_unet_conv_in.lora_down.weight": down,
        "lora_unet_conv_in.lora_up.weight": up,
        "lora_unet_conv_in.alpha": np.array(1.0, np.float32),
        "lora_unet_conv_in.diff_b": difference,
        "lora_unet_proj_in.lora_down.weight": thin_down,
        "lora_unet_proj_in.lora_up.weight": thin_up,
    }
    save_file(file, tmp_path / "lora.safetensors")
    own = read_lora(tmp_path / "lora.safetensors", targets)
    wanted = {
        "conv_in.weight": state["conv_in.weight"] + 0.5 * np.einsum("or,rikl->oikl", up[..., 0, 0], down),
        "conv_in.bias": state["conv_in.bias"] + difference,
        "proj_in.weight": state["proj_in.weight"] + np.einsum("orkl,rikl->oikl", thin_up, thin_down),
    }
    check(changed(targets, params, own), state, wanted)


def test_hadamard_kronecker_and_tucker(tmp_path, convolutional):
    targets, params, state = convolutional
    rng = np.random.default_rng(4)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    hada = {"hada_w1_a": draw(6, 2), "hada_w1_b": draw(2, 36), "hada_w2_a": draw(6, 2), "hada_w2_b": draw(2, 36)}
    product = 2.0 * (hada["hada_w1_a"] @ hada["hada_w1_b"]) * (hada["hada_w2_a"] @ hada["hada_w2_b"])
    kron = {"lokr_w1": draw(2, 3), "lokr_w2_a": draw(3, 2), "lokr_w2_b": draw(2, 2)}
    file = {
        **{f"lora_unet_conv_in.{name}": value for name, value in hada.items()},
        "lora_unet_conv_in.alpha": np.array(4.0, np.float32),
        **{f"lora_unet_proj_in.{name}": value for name, value in kron.items()},
        "lora_unet_proj_in.alpha": np.array(2.0, np.float32),
    }
    save_file(file, tmp_path / "lycoris.safetensors")
    own = read_lora(tmp_path / "lycoris.safetensors", targets)
    wanted = {
        "conv_in.weight": state["conv_in.weight"] + product.reshape(6, 4, 3, 3),
        "proj_in.weight": state["proj_in.weight"]
        + np.kron(kron["lokr_w1"], kron["lokr_w2_a"] @ kron["lokr_w2_b"])[..., None, None],
    }
    check(changed(targets, params, own), state, wanted)
    middle, down, up = draw(2, 2, 3, 3), draw(2, 4, 1, 1), draw(6, 2, 1, 1)
    file = {
        "lora_unet_conv_in.lora_mid.weight": middle,
        "lora_unet_conv_in.lora_down.weight": down,
        "lora_unet_conv_in.lora_up.weight": up,
    }
    save_file(file, tmp_path / "tucker.safetensors")
    own = read_lora(tmp_path / "tucker.safetensors", targets)
    term = np.einsum("or,rskl,si->oikl", up[..., 0, 0], middle, down[..., 0, 0])
    check(changed(targets, params, own), state, {"conv_in.weight": state["conv_in.weight"] + term})


@pytest.mark.parametrize("name", ["lora_magnitude_vector", "dora_scale"])
def test_magnitudes_in_one_part_of_a_fused_layer(tmp_path, bert, name):
    targets, params, state = bert
    module = ATTENTION.format(1, "key")
    down, up = factors(0, 8, 8, 2)
    magnitude = np.abs(np.random.default_rng(6).standard_normal(8)).astype(np.float32)
    if name == "dora_scale":
        start, factor = f"lora_te_{module.replace('.', '_')}", ("lora_down.weight", "lora_up.weight")
    else:
        start, factor = f"text_encoder.{module}", ("lora_A.weight", "lora_B.weight")
    file = {f"{start}.{factor[0]}": down, f"{start}.{factor[1]}": up}
    file[f"{start}.{name}"] = magnitude[:, None] if name == "dora_scale" else magnitude
    save_file(file, tmp_path / "dora.safetensors")
    own = weighted(read_lora(tmp_path / "dora.safetensors", targets), 0.8)
    whole = state[f"{module}.weight"] + 0.8 * up @ down
    wanted = magnitude[:, None] * whole / np.linalg.norm(whole, axis=1, keepdims=True)
    check(changed(targets, params, own), state, {f"{module}.weight": wanted})


@pytest.mark.parametrize("kohya", [False, True])
def test_written_and_read_again(tmp_path, bert, kohya):
    targets, params, _ = bert
    file = {}
    for seed, (module, rank) in enumerate({ATTENTION.format(0, "query"): 3, ATTENTION.format(1, "key"): 2}.items()):
        down, up = factors(seed, 8, 8, rank)
        file |= {f"text_encoder.{module}.lora_A.weight": down, f"text_encoder.{module}.lora_B.weight": up}
    save_file(file, tmp_path / "first.safetensors")
    own = weighted(read_lora(tmp_path / "first.safetensors", targets), 0.5)
    write_lora(tmp_path / "second.safetensors", own, targets, kohya=kohya)
    written = load_file(tmp_path / "second.safetensors")
    assert len(written) == (6 if kohya else 4)  # tensors of the adapted modules only
    again = read_lora(tmp_path / "second.safetensors", targets)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        merge(params, [again]),
        merge(params, [own]),
    )


def test_what_is_of_another_base_or_damaged_is_named(tmp_path, bert):
    targets, params, _ = bert
    path = tmp_path / "lora.safetensors"
    down, up = factors(0, 8, 8, 2)
    good = {f"text_encoder.{ATTENTION.format(0, 'query')}.lora_A.weight": down}
    good[f"text_encoder.{ATTENTION.format(0, 'query')}.lora_B.weight"] = up

    def error(file, match):
        save_file(file, path)
        with pytest.raises(UserError, match=match):
            read_lora(path, targets)

    nowhere = {**good, "text_encoder.encoder.layer.7.output.dense.lora_A.weight": down}
    error(nowhere, r"has 1 of its 2 modules elsewhere .*text_encoder: encoder.layer.7.output.dense")
    error({"unet.mid_block.to_q.lora_A.weight": down}, "denoiser: mid_block.to_q; it is for another base")
    error(
        {**good, "text_encoder.extra": up},
        r"has 1 of 3 tensors that belong to no known kind of adapter: text_encoder.extra",
    )
    wide = {
        name: np.concatenate([value, value], axis=-1) if "lora_A" in name else value for name, value in good.items()
    }
    error(wide, r"is \[8, 16\] there and \[8, 8\] here: it is for another base")
    error({name: np.full_like(value, np.nan) for name, value in good.items()}, "is not finite")
    error(dict(list(good.items())[:1]), "not the rest of an adapter")
    error({"lora": np.zeros(2, np.float32)}, "belong to no known kind of adapter")
    assert merge(params, [])["conditioning/text"].keys() == params["conditioning/text"].keys()
    with pytest.raises(UserError, match="there is no such parameter"):
        apply(params, [{"network/none/kernel": {}}])
