"""Published first stages compared with the reference, decoding in tiles, old and new tensor names, and errors."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import SCALE, SHIFT, PublishedKL
from diffusion_jax.systems import describe, rebuild
from diffusion_jax.weights import read_component
from diffusion_jax.weights.published.autoencoders import _DIFFUSERS, _OLDER, _ORIGINAL, _coder_entries, coder_map
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

GAUSSIAN = ("autoencoder_kl", "autoencoder_kl_sd3", "autoencoder_kl_flux2", "eps_vae")
ALL = (*GAUSSIAN, "vq_model", "autoencoder_tiny", "autoencoder_dc", "autoencoder_dc_sana", "eps_dc_ae")


def last(x):
    """Move channels to the last axis."""
    return x.transpose(0, 2, 3, 1)


def squares(x):
    """[batch, rows, columns, channels] with 2 x 2 squares as channels (channel, row, column), by slices."""
    parts = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
    return np.stack(parts, axis=-1).reshape(*parts[0].shape[:3], -1)


def unsquared(z):
    """The inverse of `squares`."""
    batch, rows, columns, channels = z.shape
    parts, x = (
        z.reshape(batch, rows, columns, channels // 4, 4),
        np.empty((batch, 2 * rows, 2 * columns, channels // 4)),
    )
    for index, (i, j) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        x[:, i::2, j::2] = parts[..., index]
    return x


def scaling(name, arrays):
    """Functions that turn the reference's latents into diffused latents and back, with the numbers of the config."""
    if name == "autoencoder_kl_flux2":
        mean, std = arrays["out_bn_mean"], arrays["out_bn_std"]
        return lambda h: (squares(h) - mean) / std, lambda z: unsquared(z * std + mean), lambda s: unsquared(s * std)
    config = config_of(MODULES / name)
    shift, scale = config.get("shift_factor") or 0.0, config["scaling_factor"]
    return lambda h: (h - shift) * scale, lambda z: z / scale + shift, lambda s: s / scale


@functools.cache
def run(name):
    """The mean, deviation and decoded picture of a first stage for the reference's picture and latents."""
    codec, params, arrays = read(MODULES / name)
    diffused, _, _ = scaling(name, arrays)
    both = jax.jit(lambda params, x, z: (*codec.posterior(params, x), codec.decode(params, z)))
    found = both(params, last(arrays["in_image"]), diffused(last(arrays["in_latent"])).astype(np.float32))
    return [np.asarray(value) for value in found]


@pytest.mark.parametrize("name", ALL)
def test_it_encodes_and_decodes_as_the_reference(name):
    codec, params, arrays = read(MODULES / name)
    mean, spread, decoded = run(name)
    _, latents, spreads = scaling(name, arrays)
    given = {key: latents(mean) for key in ("mean", "latent", "encoded")} | {"decoded": decoded}
    if name in GAUSSIAN:
        given |= {"logvar": 2 * np.log(spreads(spread)), "std": spreads(spread)}
    else:
        assert not spread.any()
    if name == "vq_model":
        given["indices"] = codec.nearest(params, latents(mean)).reshape(-1)
    if name == "autoencoder_kl_flux2":
        given |= {"bn_mean": params["frozen_mean"], "bn_std": codec.deviation(params)}
        assert (codec.factor, codec.diffused_channels, mean.shape[1:]) == (8, 32, (4, 4, 32))
    wanted = {key: last(value) if value.ndim == 4 else value for key, value in arrays.items()}
    require_close(name, given, wanted)


@pytest.mark.parametrize("name", ALL)
def test_tensors_are_written_back_byte_for_byte(name):
    require_written_back(MODULES / name, read(MODULES / name)[1])


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        ("autoencoder_tiny", 16),
        ("autoencoder_kl_sd3", 16),
        ("autoencoder_dc_sana", 16),
    ],
)
def test_in_tiles_it_is_the_whole(name, tile):
    """Decoding in tiles equals decoding at once, including the seams, for sizes that tiles do not divide."""
    codec, params, _ = read(MODULES / name)
    z = jax.random.normal(jax.random.key(0), (2, 13, 7, codec.diffused_channels))
    whole = jax.jit(codec.decode)(params, z)
    tiles = jax.jit(lambda params, z: codec.decode_in_tiles(params, z, tile=tile))(params, z)
    np.testing.assert_allclose(tiles, whole, atol=1e-5 * float(jnp.abs(whole).max()))


def test_tiles_need_a_fraction_of_the_memory():
    codec = PublishedKL(channels=(32, 32), num_res_blocks=1, latent_channels=4, norm_groups=4, middle_attention=False)
    z = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)
    shapes = jax.eval_shape(codec.init_params, jax.random.key(0))

    def bytes_of(function):
        return jax.jit(function).lower(shapes, z).compile().memory_analysis().temp_size_in_bytes

    tiles = bytes_of(lambda params, z: codec.decode_in_tiles(params, z, tile=32))
    assert tiles < 0.5 * bytes_of(codec.decode)


def test_no_tile_of_no_size():
    codec, params, _ = read(MODULES / "autoencoder_tiny")
    with pytest.raises(UserError, match="a whole number of pixels above 0, not 0"):
        codec.decode_in_tiles(params, jnp.zeros((1, 4, 4, 4)), tile=0)


@pytest.mark.parametrize(("name", "computed"), [("sd_vae", 8), ("taesd", 8), ("dc_ae_f32c32_sana", 64)])
def test_published_sizes_have_as_many_parameters(name, computed):
    """Published sizes have as many parameters, not counting each channel's shift and scale."""
    require_count(name, computed=computed)


def test_older_and_original_names_are_known(tmp_path):
    """The older attention names in SD1's folder and the authors' names in a single file are read."""
    folder = GOLDEN / "pipelines" / "sd15" / "vae"
    codec, params, _ = read(folder)
    require_written_back(folder, params)
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert any(".query.weight" in name for name in state)
    newer = renamed(state, codec, _OLDER, _DIFFUSERS)
    original = renamed(state, codec, _OLDER, _ORIGINAL)
    single = {f"first_stage_model.{name}": value for name, value in original.items()}
    others = {"model.diffusion_model.out.0.weight": np.ones(3, np.float32), "betas": np.ones(4, np.float32)}
    for index, tensors in enumerate((newer, original, {**single, **others})):
        target = tmp_path / str(index)
        target.mkdir()
        shutil.copy(folder / "config.json", target)
        save_file(tensors, target / "diffusion_pytorch_model.safetensors")
        jax.tree.map(np.testing.assert_array_equal, read_component(target)[1], params)
    assert single["first_stage_model.decoder.up.0.block.0.norm1.weight"].shape == (
        state["decoder.up_blocks.2.resnets.0.norm1.weight"].shape
    )


def renamed(state, codec, before, after):
    """The tensors under the names of another layout, where attention may be stored as convolutions."""
    names = {}
    for part in ("encoder", "decoder"):
        there, here = (_coder_entries(codec, layout, part) for layout in (before, after))
        names |= {old: new for path in there for old, new in zip(there[path].names, here[path].names, strict=True)}
    found = {}
    for name, value in state.items():
        new = names.get(name, name)
        wide = after.ndim == 4 and new.endswith(".weight") and ".mid.attn_1." in new and value.ndim == 2
        found[new] = np.ascontiguousarray(value[..., None, None]) if wide else value
    return found


@pytest.mark.parametrize("name", ["autoencoder_kl_flux2", "vq_model", "autoencoder_tiny", "autoencoder_dc"])
def test_a_file_can_describe_it(name):
    codec = read(MODULES / name)[0]
    assert rebuild(json.loads(json.dumps(describe(codec)))) == codec
    assert {codec: 1}[codec] == 1


def test_a_level_with_attention_is_read_and_run():
    """The reference's tiny config with attention in its last level, as in LDM's f16, is read and runs."""
    config = config_of(MODULES / "eps_vae")
    config["down_block_types"][-1], config["up_block_types"][0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    component = component_of(config)
    codec = component.build(config, jnp.float32)
    names = component.weight_map(codec, ()).names()
    wanted = {"encoder.down_blocks.2.attentions.0.to_q.weight", "decoder.up_blocks.0.attentions.1.to_out.0.bias"}
    assert wanted <= set(names)
    shapes = component.shapes(codec)
    drawn = {name: np.ones(shape, np.float32) for name, shape in _shapes_there(component, codec, shapes).items()}
    params = component.weight_map(codec, drawn).params(drawn, shapes)
    assert jax.jit(codec.decode)(params, jnp.ones((1, 2, 2, 4))).shape == (1, 8, 8, 3)


def _shapes_there(component, codec, shapes):
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    constants = codec._init_constants()
    return {name: x.shape for name, x in component.weight_map(codec, ()).state({**zeros, **constants}).items()}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "autoencoder_kl",
            {"norm_num_groups": 7},
            "channels, which norm_num_groups = 7 does not divide",
        ),
        ("autoencoder_kl", {"latents_mean": [0.0]}, "latents_mean = .0.0.: there is no such field here"),
        ("autoencoder_kl", {"out_channels": 4}, "out_channels = 4, here it is always 3"),
        ("autoencoder_kl", {"act_fn": "gelu"}, "act_fn = 'gelu', here it is always 'silu' or 'swish'"),
        ("autoencoder_kl", {"down_block_types": ["Wave", "Wave"]}, "with 'Wave'; known are DownEncoderBlock2D"),
        ("autoencoder_kl", {"up_block_types": ["UpDecoderBlock2D"]}, "must name 2 blocks"),
        ("vq_model", {"lookup_from_codebook": True}, "lookup_from_codebook = True, here it is always False"),
        ("vq_model", {"norm_type": "spatial"}, "norm_type = 'spatial', here it is always 'group'"),
        ("autoencoder_kl_flux2", {"patch_size": [2, 1]}, "squares of latents are made"),
        ("autoencoder_tiny", {"act_fn": "silu"}, "act_fn = 'silu', here it is always 'relu'"),
        ("autoencoder_tiny", {"num_encoder_blocks": [1, 2]}, "all levels have the same channels"),
        (
            "autoencoder_dc",
            {"encoder_block_types": ["ResBlock", "Wave", "ResBlock"]},
            "with 'Wave'; known are ResBlock",
        ),
        ("autoencoder_dc", {"decoder_norm_types": "batch_norm"}, "here it is always 'rms_norm'"),
        ("autoencoder_dc", {"downsample_block_type": "max"}, "downsample_block_type = 'max'; known are Conv"),
    ],
)
def test_a_config_that_says_something_else_is_refused(name, fields, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**config_of(MODULES / name), **fields}))
    with pytest.raises(UserError, match=message):
        read_component(tmp_path)


def test_parameters_that_no_config_says_are_not_written():
    codec, params, _ = read(MODULES / "autoencoder_kl")
    with pytest.raises(UserError, match=r"the config says 0\.18215 where the parameters have other numbers"):
        coder_map(codec).state({**params, SCALE: params[SCALE] * 2, SHIFT: params[SHIFT]})
