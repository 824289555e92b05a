"""Published text and image encoders equal the reference within its tolerances, are written back, or are refused."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders.t5 import relative_buckets
from diffusion_jax.weights import read_component
from tests.weights.published.parts import (
    GOLDEN,
    MODULES,
    component_of,
    config_of,
    read,
    require_close,
    require_count,
    require_written_back,
)

TEXTS = ("clip_text", "clip_text_projection", "eps_clip_text")
PICTURES = ("clip_vision", "clip_vision_projection", "eps_clip_vision", "siglip_vision")
T5 = ("t5_encoder", "byt5_encoder", "eps_t5")
DECODERS = ("qwen3_text",)


@functools.cache
def applied(name):
    """The encoder of a folder, compiled once per input shape."""
    module, params, _ = read(MODULES / name)
    return jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))


@functools.cache
def states(name):
    """The encoder's outputs for the reference's inputs, and the reference's arrays."""
    _, _, arrays = read(MODULES / name)
    if "in_pixel_values" in arrays:
        return applied(name)(arrays["in_pixel_values"].transpose(0, 2, 3, 1)), arrays
    mask = arrays.get("in_attention_mask")
    return applied(name)(arrays["in_input_ids"], *(() if mask is None else (mask,))), arrays


@pytest.mark.parametrize("name", TEXTS)
def test_clip_reads_texts_as_the_reference(name):
    found, arrays = states(name)
    given = {"last": found.last, "pooled": found.pooled, "penultimate": found.hidden[-2]}
    require_close(name, {**given, "text_embeds": found.projected}, arrays)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_encoded_as_by_the_reference(name):
    found, arrays = states(name)
    last = found.last if name.startswith("siglip") else found.hidden[-1]
    given = {"last": last, "pooled": found.pooled, "penultimate": found.hidden[-2]}
    require_close(name, {**given, "image_embeds": found.projected}, arrays)


@pytest.mark.parametrize("name", T5)
def test_t5_reads_texts_as_the_reference(name):
    found, arrays = states(name)
    require_close(name, {"last": found}, arrays)


def test_qwen3_reads_texts_as_the_reference():
    """All layers are compared, at the positions that the mask keeps."""
    found, arrays = states("qwen3_text")
    counts = arrays["in_attention_mask"].astype(bool)
    depth = len(found.hidden) - 1
    given = {f"hidden{i}": found.hidden[i][counts] for i in range(depth)}
    given |= {f"hidden{depth}": found.last[counts], "last": found.last[counts]}
    wanted = {key: value[counts] if key.startswith("out_") else value for key, value in arrays.items()}
    require_close("qwen3_text", given, wanted)


def test_the_controls_differ():
    """The outputs compared above depend on the text, on the picture and on the mask."""
    for name in ("clip_text", "byt5_encoder"):
        arrays = read(MODULES / name)[2]
        tokens, masks = arrays["in_input_ids"].copy(), [arrays[key] for key in ("in_attention_mask",) if key in arrays]
        tokens[:, 2] = tokens[:, 2] % 90 + 1
        same = jax.tree.leaves(states(name)[0])[-1]
        assert float(jnp.abs(jax.tree.leaves(applied(name)(tokens, *masks))[-1] - same).max()) > 1e-2
        if masks:
            unmasked = applied(name)(arrays["in_input_ids"], np.ones_like(masks[0]))
            assert float(jnp.abs(unmasked - same).max()) > 1e-2
    picture = read(MODULES / "clip_vision")[2]["in_pixel_values"].transpose(0, 2, 3, 1)
    other = applied("clip_vision")(picture[:, ::-1]).projected
    assert float(jnp.abs(other - states("clip_vision")[0].projected).max()) > 1e-2


@pytest.mark.parametrize("name", [*TEXTS, *PICTURES, *T5, *DECODERS])
def test_tensors_are_written_back_byte_for_byte(name):
    require_written_back(MODULES / name, read(MODULES / name)[1])


@pytest.mark.parametrize(
    "name", ["clip_l_text", "openclip_bigg_text_projection", "byt5_small_encoder", "clip_vision_h14_projection"]
)
def test_published_sizes_have_as_many_parameters(name):
    require_count(name)


def test_t5_xxl_and_clip_h_have_as_many_parameters_as_published():
    """T5 v1.1 XXL's encoder has 4,762,310,656 parameters and Stable Diffusion 2's text encoder 340,387,840."""
    xxl = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    for config, count in (
        ({"architectures": ["T5EncoderModel"], "feed_forward_proj": "gated-gelu", **xxl}, 4_762_310_656),
        ({"architectures": ["CLIPTextModel"], "hidden_act": "gelu", **wide}, 340_387_840),
    ):
        component = component_of(config)
        shapes = component.shapes(component.build(config, jnp.float32))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_end_of_a_text_is_where_the_config_says():
    """`eos_token_id: 2` of older configs selects the highest token; any other id selects its first occurrence."""
    config = config_of(MODULES / "clip_text")
    component = component_of(config)
    _, params, _ = read(MODULES / "clip_text")
    tokens = np.array([[97, 5, 6, 98, 7, 98, 98]])
    for end, place in ((98, 3), (2, 3), (6, 2), (50, 0)):
        module = component.build({**config, "eos_token_id": end}, jnp.float32)
        found = module.apply({"params": params}, tokens)
        np.testing.assert_array_equal(found.pooled, found.last[:, place])


def test_a_later_token_changes_no_state_before_it():
    tokens = read(MODULES / "clip_text")[2]["in_input_ids"].copy()
    tokens[:, 4:] = 1
    found = applied("clip_text")(tokens)
    np.testing.assert_allclose(found.last[:, :4], states("clip_text")[0].last[:, :4], atol=1e-6)


def test_relative_positions_fall_into_their_buckets():
    """By hand: one bucket per distance below 8, then logarithmic up to 128; the other 16 for keys after the query."""
    found = relative_buckets(200, 32, 128)
    assert found[100, 100:109].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert found[100, [100, 99, 93, 92, 89, 88, 84]].tolist() == [0, 1, 7, 8, 8, 9, 10]
    edges = {int(d): int(found[199, 199 - d]) for d in (16, 22, 23, 32, 45, 46, 64, 90, 91, 127, 128, 199)}
    assert edges == {16: 10, 22: 10, 23: 11, 32: 12, 45: 12, 46: 13, 64: 14, 90: 14, 91: 15, 127: 15, 128: 15, 199: 15}


def test_names_of_published_files_are_known(tmp_path):
    """Names are known with and without prefix, with position_ids (written back as integers), and T5's table twice."""
    folder = tmp_path / "clip"
    shutil.copytree(MODULES / "clip_text", folder)
    state = load_file(folder / "model.safetensors")
    positions = np.arange(16, dtype=np.int64)[None]
    older = {f"text_model.{name}": value for name, value in state.items()}
    save_file({**older, "text_model.embeddings.position_ids": positions}, folder / "model.safetensors")
    _, params = read_component(folder)
    jax.tree.map(np.testing.assert_array_equal, params, read(MODULES / "clip_text")[1])
    require_written_back(folder, params)
    save_file({**older, "text_model.embeddings.position_ids": positions + 1}, folder / "model.safetensors")
    with pytest.raises(UserError, match="position_ids is a constant of this network"):
        read_component(folder)

    folder = tmp_path / "t5"
    shutil.copytree(MODULES / "t5_encoder", folder)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "encoder.embed_tokens.weight": state["shared.weight"].copy()}, folder / "model.safetensors")
    require_written_back(folder, read_component(folder)[1])
    save_file({**state, "encoder.embed_tokens.weight": state["shared.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(
        UserError, match=r"do not fit the network: shared\.weight .*, encoder\.embed_tokens\.weight .* for embedding"
    ):
        read_component(folder)


def test_the_language_part_of_a_larger_model_is_read():
    module, params = read_component(GOLDEN / "pipelines" / "ideogram4" / "text_encoder")
    assert (module.depth, module.theta, params["embedding"].shape) == (36, 5e6, (379, 16))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("clip_text", {"hidden_act": "mish"}, "hidden_act = 'mish'; known are gelu"),
        ("clip_text", {"num_attention_heads": 5}, "32, which does not divide into 5 heads"),
        ("clip_text", {"num_hidden_layers": 0}, "num_hidden_layers = 0: it must be a whole number above 0"),
        ("clip_text", {"use_rotary": True}, "CLIPTextModel says use_rotary = True: there is no such field here"),
        ("clip_vision", {"num_channels": 4}, "num_channels = 4, here it is always 3"),
        ("t5_encoder", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj = 'gated-mish', which is not known"),
        ("t5_encoder", {"d_ff": "64"}, "d_ff = '64': it must be int"),
        ("qwen3_text", {"use_sliding_window": True}, "use_sliding_window = True, here it is always False"),
        ("qwen3_text", {"rope_parameters": {"rope_type": "yarn"}}, "here its type is default"),
    ],
)
def test_a_config_that_says_something_else_is_refused(name, fields, message, tmp_path):
    folder = tmp_path / name
    shutil.copytree(MODULES / name, folder)
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **fields}))
    with pytest.raises(UserError, match=message):
        read_component(folder)


def test_a_text_that_is_too_long_is_refused():
    module, params, _ = read(MODULES / "clip_text")
    with pytest.raises(UserError, match="the texts have 17 tokens, but the text encoder has 16 positions"):
        module.apply({"params": params}, np.zeros((1, 17), np.int32))
