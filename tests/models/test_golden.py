"""Our networks with diffusers' weights give diffusers' outputs (tests/golden/models/README.md)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_jax.models import MODELS, example_inputs
from diffusion_jax.models.dit import (
    ConditioningEmbedding,
    DiTBlock,
    FinalLayer,
    patchify,
    position_embedding,
    unpatchify,
)

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "models"


def load(name):
    folder = GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    return config, weights, dict(np.load(folder / "io.npz"))


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def assert_close(ours, theirs, tolerance=1e-5):
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < tolerance, error


# The leaves of a layer: torch's names and layouts to ours.


def dense(weights, prefix):
    return {"kernel": weights[f"{prefix}.weight"].T, "bias": weights[f"{prefix}.bias"]}


def conv(weights, prefix):
    return {"kernel": weights[f"{prefix}.weight"].transpose(2, 3, 1, 0), "bias": weights[f"{prefix}.bias"]}


def group_norm(weights, prefix):
    return {"scale": weights[f"{prefix}.weight"], "bias": weights[f"{prefix}.bias"]}


def fused_qkv(weights, prefix):
    layers = [dense(weights, f"{prefix}.to_{letter}") for letter in "qkv"]
    return {leaf: np.concatenate([layer[leaf] for layer in layers], axis=-1) for leaf in ("kernel", "bias")}


def unet_params(weights, levels, num_res_blocks):
    """diffusers' UNet2DModel to our UNet."""
    params = {
        "conv_in": conv(weights, "conv_in"),
        "time": {f"dense_{i}": dense(weights, f"time_embedding.linear_{i + 1}") for i in range(2)},
        "norm_out": group_norm(weights, "conv_norm_out"),
        "conv_out": conv(weights, "conv_out"),
    }

    def add_stage(ours, prefix, index):
        source = f"{prefix}.resnets.{index}"
        params[ours] = {
            "norm_0": group_norm(weights, f"{source}.norm1"),
            "conv_0": conv(weights, f"{source}.conv1"),
            "time": dense(weights, f"{source}.time_emb_proj"),
            "norm_1": group_norm(weights, f"{source}.norm2"),
            "conv_1": conv(weights, f"{source}.conv2"),
        }
        if f"{source}.conv_shortcut.weight" in weights:
            shortcut = conv(weights, f"{source}.conv_shortcut")
            params[ours]["shortcut"] = {"kernel": shortcut["kernel"][0, 0], "bias": shortcut["bias"]}
        if f"{prefix}.attentions.{index}.to_q.weight" in weights:
            add_attention(f"{ours}_attention", f"{prefix}.attentions.{index}")

    def add_attention(ours, source):
        params[ours] = {
            "norm": group_norm(weights, f"{source}.group_norm"),
            "qkv": fused_qkv(weights, source),
            "out": dense(weights, f"{source}.to_out.0"),
        }

    for level in range(levels):
        for block in range(num_res_blocks):
            add_stage(f"down_{level}_{block}", f"down_blocks.{level}", block)
        for block in range(num_res_blocks + 1):
            add_stage(f"up_{level}_{block}", f"up_blocks.{levels - 1 - level}", block)
        if level < levels - 1:
            params[f"down_{level}_downsample"] = conv(weights, f"down_blocks.{level}.downsamplers.0.conv")
        if level > 0:
            params[f"up_{level}_upsample"] = conv(weights, f"up_blocks.{levels - 1 - level}.upsamplers.0.conv")
    add_stage("middle_0", "mid_block", 0)
    params["middle_attention"] = params.pop("middle_0_attention")
    add_stage("middle_1", "mid_block", 1)
    return params


def test_unet_matches_diffusers():
    config, weights, io = load("unet2d_ddpm")
    base = config["block_out_channels"][0]
    module = MODELS["unet"](
        image_size=config["sample_size"],
        image_channels=config["in_channels"],
        base_channels=base,
        channel_multipliers=tuple(c // base for c in config["block_out_channels"]),
        num_res_blocks=config["layers_per_block"],
        attention_resolutions=(8,),  # the second level, as `down_block_types` says
        norm_groups=config["norm_num_groups"],
        norm_eps=config["norm_eps"],
        flip_sin_to_cos=config["flip_sin_to_cos"],
        frequency_shift=config["freq_shift"],
        downsample_padding="symmetric",
    )
    params = unet_params(weights, len(config["block_out_channels"]), config["layers_per_block"])
    shapes = jax.eval_shape(module.init, jax.random.key(0), *example_inputs(module))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    output = jax.jit(module.apply)({"params": params}, nhwc(io["in_sample"]), jnp.float32(io["in_timestep"]), {})
    assert_close(output, nhwc(io["out_sample"]))


def dit_conditioning_params(weights, block):
    source = f"transformer_blocks.{block}.norm1.emb"
    return {
        "time": {f"dense_{i}": dense(weights, f"{source}.timestep_embedder.linear_{i + 1}") for i in range(2)},
        "label": {"embedding": weights[f"{source}.class_embedder.embedding_table.weight"]},
    }


def dit_block_params(weights, block):
    source = f"transformer_blocks.{block}"
    return {
        "modulation": dense(weights, f"{source}.norm1.linear"),
        "qkv": fused_qkv(weights, f"{source}.attn1"),
        "attention_out": dense(weights, f"{source}.attn1.to_out.0"),
        "mlp_in": dense(weights, f"{source}.ff.net.0.proj"),
        "mlp_out": dense(weights, f"{source}.ff.net.2"),
    }


def dit_patch_params(weights):
    kernel = weights["pos_embed.proj.weight"].transpose(2, 3, 1, 0)  # [row, column, channel, features]
    return {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": weights["pos_embed.proj.bias"]}


@pytest.fixture(scope="module")
def dit_golden():
    """The published output, and a function that runs our parts with one conditioning vector for each block.

    diffusers gives every block time and label embedders of its own, and the final layer those of block 0; in trained
    DiTs they are copies of one, here they differ. So the parts are put together by hand, and a second test says that
    with equal embedders the whole module is these parts put together.
    """
    config, weights, io = load("dit")
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    block = DiTBlock(
        num_heads=config["num_attention_heads"], mlp_ratio=4.0, norm_eps=config["norm_eps"], dtype=jnp.float32
    )
    final = FinalLayer(features=config["patch_size"] ** 2 * config["out_channels"], norm_eps=1e-6, dtype=jnp.float32)
    embedder = ConditioningEmbedding(features=dim, num_classes=config["num_embeds_ada_norm"], frequency_shift=1)
    x, time = nhwc(io["in_sample"]), jnp.float32(io["in_timestep"])
    conditioning = {"label": jnp.int32(io["in_class_labels"])}

    @functools.partial(jax.jit, static_argnums=0)
    def run(embedder_of_block):
        vectors = [
            embedder.apply({"params": dit_conditioning_params(weights, i)}, time, conditioning)
            for i in embedder_of_block
        ]
        patch = dit_patch_params(weights)
        h = patchify(jnp.asarray(x), config["patch_size"]) @ patch["kernel"] + patch["bias"]
        h += jnp.float32(position_embedding(config["sample_size"] // config["patch_size"], dim))
        for i, vector in enumerate(vectors):
            h, _ = block.apply({"params": dit_block_params(weights, i)}, h, vector)
        params = {"modulation": dense(weights, "proj_out_1"), "linear": dense(weights, "proj_out_2")}
        h = final.apply({"params": params}, h, vectors[0])
        return unpatchify(h, config["patch_size"], config["sample_size"])

    return config, weights, io, run


def test_dit_parts_match_diffusers(dit_golden):
    config, _, io, run = dit_golden
    assert_close(run(tuple(range(config["num_layers"]))), nhwc(io["out_sample"]))


def test_dit_is_its_parts(dit_golden):
    config, weights, io, run = dit_golden
    module = MODELS["dit"](
        image_size=config["sample_size"],
        image_channels=config["in_channels"],
        num_classes=config["num_embeds_ada_norm"],
        patch_size=config["patch_size"],
        hidden_size=config["num_attention_heads"] * config["attention_head_dim"],
        depth=config["num_layers"],
        num_heads=config["num_attention_heads"],
        learn_sigma=True,
        frequency_shift=1,
    )
    blocks = [dit_block_params(weights, i) for i in range(config["num_layers"])]
    params = {
        "patch_embedding": dit_patch_params(weights),
        "conditioning": dit_conditioning_params(weights, 0),
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        "final": {"modulation": dense(weights, "proj_out_1"), "linear": dense(weights, "proj_out_2")},
    }
    shapes = jax.eval_shape(module.init, jax.random.key(0), *example_inputs(module))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    conditioning = {"label": jnp.int32(io["in_class_labels"])}
    output = jax.jit(module.apply)(
        {"params": params}, nhwc(io["in_sample"]), jnp.float32(io["in_timestep"]), conditioning
    )
    assert_close(output, np.asarray(run((0,) * config["num_layers"])))
