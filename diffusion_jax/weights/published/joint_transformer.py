"""Stable Diffusion 3's and FLUX.1's transformers, with the tensor names of diffusers' folders and of the authors'
files.

Both layouts describe one module. They differ not only in names. The authors keep query, key and value in one tensor, in
FLUX.1's one-stream blocks together with the first layer of the MLP. Where a layer norm is modulated without a gate,
they write (shift, scale), and diffusers (scale, shift). FLUX.1 orders the values of a patch as (channel, row, column).
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.domains import shown
from diffusion_jax.errors import UserError
from diffusion_jax.models import parameter_shapes
from diffusion_jax.models.joint_transformer import JointTransformer
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import (
    Cut,
    Entry,
    Path,
    WeightMap,
    dense,
    patch_embedding,
    prefixed,
    reordered,
    same,
    separate_qkv,
    stacked,
)
from diffusion_jax.weights.published.config_fields import counted, read_fields

Entries = dict[Path, Entry]
AUTHORS_PREFIX = "model.diffusion_model."
"""The prefix of the names in the authors' files for a network that is stored with other networks."""

_SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": (),
    "qk_norm": None,
}
_FLUX = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
_FLUX_PATCH = 2  # FLUX.1's configs describe latents whose 2 x 2 squares are already packed into channels
_FLUX_SIZE = 128  # latents of the 1024 x 1024 images that it was trained on; nothing depends on it


def _fields(config: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config, after a check: counts are above 0, lists contain whole numbers."""
    fields = read_fields(config, read=read)
    counted(fields, *(name for name, value in read.items() if type(value) is int and name != "num_single_layers"))
    for name in (name for name, value in read.items() if isinstance(value, tuple)):
        value = fields[name]
        if not isinstance(value, list | tuple) or any(type(item) is not int or item < 0 for item in value):
            raise UserError(f"config.json says {name} = {shown(value)}: it must be a list of whole numbers")
        fields[name] = tuple(value)
    return fields


def build_sd3(config: Mapping[str, Any], dtype: DTypeLike) -> JointTransformer:
    """The network of an SD3Transformer2DModel's config.json. UserError for options that are not supported here."""
    kind = "SD3Transformer2DModel"
    fields = _fields(config, _SD3)
    width = fields["num_attention_heads"] * fields["attention_head_dim"]
    if fields["caption_projection_dim"] != width:
        raise UserError(
            f"config.json of {kind} has caption_projection_dim={fields['caption_projection_dim']}; the text must be as "
            f"wide as the {width} channels of an image's token"
        )
    if fields["qk_norm"] not in (None, "rms_norm"):
        raise UserError(f"config.json of {kind} has qk_norm={fields['qk_norm']!r}; known: null, 'rms_norm'")
    return JointTransformer(
        image_size=fields["sample_size"],
        image_channels=fields["in_channels"],
        out_channels=fields["out_channels"],
        patch_size=fields["patch_size"],
        hidden_size=width,
        depth=fields["num_layers"],
        num_heads=fields["num_attention_heads"],
        context_channels=fields["joint_attention_dim"],
        pooled_channels=fields["pooled_projection_dim"],
        table_size=fields["pos_embed_max_size"],
        table_span=fields["sample_size"] // fields["patch_size"],
        qk_norm=fields["qk_norm"] is not None,
        dual_blocks=fields["dual_attention_layers"],
        text_ends=True,
        dtype=dtype,
    )


def build_flux(config: Mapping[str, Any], dtype: DTypeLike) -> JointTransformer:
    """The network of a FluxTransformer2DModel's config.json. UserError for options that are not supported here."""
    kind = "FluxTransformer2DModel"
    fields = _fields(config, _FLUX)
    if fields["patch_size"] != 1:
        raise UserError(f"config.json of {kind} has patch_size={fields['patch_size']}; known: 1, of packed latents")
    packed, out = fields["in_channels"], fields["out_channels"] or fields["in_channels"]
    if packed % _FLUX_PATCH**2 or out % _FLUX_PATCH**2 or out > packed:
        raise UserError(
            f"config.json of {kind} has in_channels={packed} and out_channels={out}; these are squares of 2 x 2 "
            "latents, multiples of 4, and no more come out than go in"
        )
    channels = out // _FLUX_PATCH**2
    return JointTransformer(
        image_size=_FLUX_SIZE,
        image_channels=channels,
        extra_channels=packed // _FLUX_PATCH**2 - channels,
        patch_size=_FLUX_PATCH,
        hidden_size=fields["num_attention_heads"] * fields["attention_head_dim"],
        depth=fields["num_layers"],
        single_depth=fields["num_single_layers"],
        num_heads=fields["num_attention_heads"],
        context_channels=fields["joint_attention_dim"],
        pooled_channels=fields["pooled_projection_dim"],
        has_guidance=fields["guidance_embeds"],
        time_scale=1000.0,
        rotary_dims=fields["axes_dims_rope"],
        qk_norm=True,
        dtype=dtype,
    )


def sd3_map(network: JointTransformer, names: Collection[str]) -> WeightMap:
    """The map of diffusers' names, or of the authors' if `names` are these."""
    if any("joint_blocks." in name for name in names):
        return _authors_sd3(network, names)
    entries = {
        ("frozen_position_embedding",): _table("pos_embed.pos_embed", network.table_size),
        **prefixed(
            "patch_embedding",
            patch_embedding("pos_embed.proj", patch=network.patch_size, channels=network.image_channels),
        ),
        **_diffusers_ends(network),
    }
    runs = (
        stacked(run.name, [_diffusers_double(i, run.dual, run.text_ends, network) for i in _numbers(run)])
        for run in network.runs
    )
    return WeightMap({**entries, **_joined(runs)})


def flux_map(network: JointTransformer, names: Collection[str]) -> WeightMap:
    """The map of diffusers' names, or of the authors' if `names` are these."""
    if any("double_blocks." in name for name in names):
        return _authors_flux(network, names)
    entries = {**_packed_ends(network, "x_embedder", "proj_out"), **_diffusers_ends(network, linear=False)}
    runs = (
        stacked(run.name, [_diffusers_double(i, run.dual, run.text_ends, network) for i in _numbers(run)])
        for run in network.runs
    )
    there = [f"single_transformer_blocks.{i}" for i in range(network.single_depth)]
    single = stacked("single", map(_diffusers_single, there)) if there else {}
    wide = _mlp_width(network)
    cuts = tuple(Cut(f"{name}.proj_out.weight", 1, (network.hidden_size, wide)) for name in there)
    return WeightMap({**entries, **_joined(runs), **single}, cuts=cuts)


def _numbers(run) -> range:
    return range(run.start, run.start + run.length)


def _joined(parts) -> dict[Path, tuple[Entry, ...]]:
    return {path: entry for part in parts for path, entry in part.items()}


def _mlp_width(network: JointTransformer) -> int:
    return round(network.mlp_ratio * network.hidden_size)


def _table(name: str, size: int) -> Entry:
    """[1, size * size, dim] there, [size, size, dim] here."""
    return same(name).then(lambda x: x[0].reshape(size, size, -1), lambda x: x.reshape(1, size * size, -1))


def _swapped(entries: Mapping[Path, Entry], width: int) -> Entries:
    """A layer whose halves, each of this width, are exchanged."""
    order = np.roll(np.arange(2 * width), width)
    return {path: reordered(entry, order) for path, entry in entries.items()}


def _scale(name: str) -> Entries:
    return {("scale",): same(name)}


def _packed_ends(network: JointTransformer, first: str, last: str) -> Entries:
    """The first and the last layer on patches: (channel, row, column) there, (row, column, channel) here."""
    patch, channels = network.patch_size, network.image_channels + network.extra_channels
    out_order = _patch_order(network.out_channels or network.image_channels, patch)
    in_order = _patch_order(channels, patch)
    back = np.argsort(in_order)
    embedding = dense(first)
    embedding["kernel",] = embedding["kernel",].then(lambda kernel: kernel[in_order], lambda kernel: kernel[back])
    linear = {path: reordered(entry, out_order) for path, entry in dense(last).items()}
    return {**prefixed("patch_embedding", embedding), **prefixed("final/linear", linear)}


def _patch_order(channels: int, patch: int) -> np.ndarray:
    return np.arange(channels * patch**2).reshape(channels, patch, patch).transpose(1, 2, 0).reshape(-1)


def _diffusers_ends(network: JointTransformer, *, linear: bool = True) -> Entries:
    """The layers before and after the blocks."""
    embedders = {"time": "timestep_embedder", "pooled": "text_embedder"}
    if network.has_guidance:
        embedders["guidance"] = "guidance_embedder"
    entries = _embedding_mlps({here: f"time_text_embed.{there}" for here, there in embedders.items()}, "linear_{}", 1)
    return {
        **entries,
        **prefixed("context_embedding", dense("context_embedder")),
        **prefixed("final/modulation", _swapped(dense("norm_out.linear"), network.hidden_size)),
        **(prefixed("final/linear", dense("proj_out")) if linear else {}),
    }


def _embedding_mlps(there: Mapping[str, str], layer: str, first: int, step: int = 1) -> Entries:
    """The two layers of each embedding of time, text and guidance."""
    return {
        path: entry
        for here, name in there.items()
        for i in range(2)
        for path, entry in prefixed(
            f"conditioning/{here}/dense_{i}", dense(f"{name}.{layer.format(first + step * i)}")
        ).items()
    }


def _diffusers_double(i: int, dual: bool, text_ends: bool, network: JointTransformer) -> Entries:
    there = f"transformer_blocks.{i}"
    attention = f"{there}.attn"
    image = {
        **prefixed("modulation", dense(f"{there}.norm1.linear")),
        **prefixed("qkv", separate_qkv([f"{attention}.to_{letter}" for letter in "qkv"])),
        **prefixed("attention_out", dense(f"{attention}.to_out.0")),
        **prefixed("mlp_in", dense(f"{there}.ff.net.0.proj")),
        **prefixed("mlp_out", dense(f"{there}.ff.net.2")),
    }
    text = prefixed("qkv", separate_qkv([f"{attention}.add_{letter}_proj" for letter in "qkv"]))
    modulation = dense(f"{there}.norm1_context.linear")
    if text_ends:
        text |= prefixed("modulation", _swapped(modulation, network.hidden_size))
    else:
        text |= prefixed("modulation", modulation)
        text |= prefixed("attention_out", dense(f"{attention}.to_add_out"))
        text |= prefixed("mlp_in", dense(f"{there}.ff_context.net.0.proj"))
        text |= prefixed("mlp_out", dense(f"{there}.ff_context.net.2"))
    if dual:
        image |= prefixed("dual_qkv", separate_qkv([f"{there}.attn2.to_{letter}" for letter in "qkv"]))
        image |= prefixed("dual_attention_out", dense(f"{there}.attn2.to_out.0"))
    if network.qk_norm:
        image |= _norms("", f"{attention}.norm_{{}}.weight")
        text |= _norms("", f"{attention}.norm_added_{{}}.weight")
        image |= _norms("dual_", f"{there}.attn2.norm_{{}}.weight") if dual else {}
    return {**prefixed("image", image), **prefixed("text", text)}


def _norms(prefix: str, there: str) -> Entries:
    """The norms of query and key."""
    return {
        **prefixed(f"{prefix}query_norm", _scale(there.format("q"))),
        **prefixed(f"{prefix}key_norm", _scale(there.format("k"))),
    }


def _diffusers_single(there: str) -> Entries:
    attention_out, mlp_out = Cut(f"{there}.proj_out.weight", 1, (0, 0)).parts
    return {
        **prefixed("modulation", dense(f"{there}.norm.linear")),
        **prefixed("qkv", separate_qkv([f"{there}.attn.to_{letter}" for letter in "qkv"])),
        **_norms("", f"{there}.attn.norm_{{}}.weight"),
        **prefixed("mlp_in", dense(f"{there}.proj_mlp")),
        ("attention_out", "kernel"): _part_kernel(attention_out),
        ("mlp_out", "kernel"): _part_kernel(mlp_out),
        ("mlp_out", "bias"): same(f"{there}.proj_out.bias"),
    }


def _part_kernel(name: str) -> Entry:
    """A dense layer whose weight is a part of a tensor."""
    return same(name).then(lambda x: x.T, lambda x: x.T)


def _prefix(names: Collection[str]) -> str:
    return AUTHORS_PREFIX if any(name.startswith(AUTHORS_PREFIX) for name in names) else ""


def _beside(prefix: str) -> tuple[str, ...]:
    """The pattern of the names of other networks in the same file."""
    return (rf"(?!{prefix.replace('.', '[.]')}).*",) if prefix else ()


def _authors_sd3(network: JointTransformer, names: Collection[str]) -> WeightMap:
    prefix = _prefix(names)
    ends = {
        ("frozen_position_embedding",): _table(f"{prefix}pos_embed", network.table_size),
        **prefixed(
            "patch_embedding",
            patch_embedding(f"{prefix}x_embedder.proj", patch=network.patch_size, channels=network.image_channels),
        ),
        **_embedding_mlps({"time": f"{prefix}t_embedder", "pooled": f"{prefix}y_embedder"}, "mlp.{}", 0, 2),
        **prefixed("context_embedding", dense(f"{prefix}context_embedder")),
        **prefixed("final/modulation", dense(f"{prefix}final_layer.adaLN_modulation.1")),
        **prefixed("final/linear", dense(f"{prefix}final_layer.linear")),
    }

    def stream(there: str, *, dual: bool, ends: bool) -> Entries:
        entries = {
            **prefixed("modulation", dense(f"{there}.adaLN_modulation.1")),
            **prefixed("qkv", dense(f"{there}.attn.qkv")),
        }
        if not ends:
            entries |= prefixed("attention_out", dense(f"{there}.attn.proj"))
            entries |= prefixed("mlp_in", dense(f"{there}.mlp.fc1"))
            entries |= prefixed("mlp_out", dense(f"{there}.mlp.fc2"))
        if dual:
            entries |= prefixed("dual_qkv", dense(f"{there}.attn2.qkv"))
            entries |= prefixed("dual_attention_out", dense(f"{there}.attn2.proj"))
        if network.qk_norm:
            entries |= _norms("", f"{there}.attn.ln_{{}}.weight")
            entries |= _norms("dual_", f"{there}.attn2.ln_{{}}.weight") if dual else {}
        return entries

    def block(i: int, dual: bool, text_ends: bool) -> Entries:
        there = f"{prefix}joint_blocks.{i}"
        return {
            **prefixed("image", stream(f"{there}.x_block", dual=dual, ends=False)),
            **prefixed("text", stream(f"{there}.context_block", dual=False, ends=text_ends)),
        }

    runs = (stacked(run.name, [block(i, run.dual, run.text_ends) for i in _numbers(run)]) for run in network.runs)
    return WeightMap({**ends, **_joined(runs)}, ignored=_beside(prefix))


def _authors_flux(network: JointTransformer, names: Collection[str]) -> WeightMap:
    prefix = _prefix(names)
    embedders = {"time": f"{prefix}time_in", "pooled": f"{prefix}vector_in"}
    if network.has_guidance:
        embedders["guidance"] = f"{prefix}guidance_in"
    ends = {
        **_packed_ends(network, f"{prefix}img_in", f"{prefix}final_layer.linear"),
        **{
            path: entry
            for here, there in embedders.items()
            for i, layer in enumerate(("in_layer", "out_layer"))
            for path, entry in prefixed(f"conditioning/{here}/dense_{i}", dense(f"{there}.{layer}")).items()
        },
        **prefixed("context_embedding", dense(f"{prefix}txt_in")),
        **prefixed("final/modulation", dense(f"{prefix}final_layer.adaLN_modulation.1")),
    }

    def double(i: int) -> Entries:
        streams = {"image": "img", "text": "txt"}
        return {
            path: entry
            for here, kind in streams.items()
            for path, entry in prefixed(here, _authors_stream(f"{prefix}double_blocks.{i}.{kind}")).items()
        }

    runs = (stacked(run.name, map(double, _numbers(run))) for run in network.runs)
    there = [f"{prefix}single_blocks.{i}" for i in range(network.single_depth)]
    single = stacked("single", map(_authors_single, there)) if there else {}
    dim, wide = network.hidden_size, _mlp_width(network)
    cuts = tuple(
        cut
        for name in there
        for cut in (
            Cut(f"{name}.linear1.weight", 0, (3 * dim, wide)),
            Cut(f"{name}.linear1.bias", 0, (3 * dim, wide)),
            Cut(f"{name}.linear2.weight", 1, (dim, wide)),
        )
    )
    return WeightMap({**ends, **_joined(runs), **single}, ignored=_beside(prefix), cuts=cuts)


def _authors_stream(there: str) -> Entries:
    return {
        **prefixed("modulation", dense(f"{there}_mod.lin")),
        **prefixed("qkv", dense(f"{there}_attn.qkv")),
        **prefixed("query_norm", _scale(f"{there}_attn.norm.query_norm.scale")),
        **prefixed("key_norm", _scale(f"{there}_attn.norm.key_norm.scale")),
        **prefixed("attention_out", dense(f"{there}_attn.proj")),
        **prefixed("mlp_in", dense(f"{there}_mlp.0")),
        **prefixed("mlp_out", dense(f"{there}_mlp.2")),
    }


def _authors_single(there: str) -> Entries:
    qkv, mlp_in = Cut(f"{there}.linear1.weight", 0, (0, 0)).parts
    qkv_bias, mlp_in_bias = Cut(f"{there}.linear1.bias", 0, (0, 0)).parts
    attention_out, mlp_out = Cut(f"{there}.linear2.weight", 1, (0, 0)).parts
    return {
        **prefixed("modulation", dense(f"{there}.modulation.lin")),
        **prefixed("query_norm", _scale(f"{there}.norm.query_norm.scale")),
        **prefixed("key_norm", _scale(f"{there}.norm.key_norm.scale")),
        ("qkv", "kernel"): _part_kernel(qkv),
        ("qkv", "bias"): same(qkv_bias),
        ("mlp_in", "kernel"): _part_kernel(mlp_in),
        ("mlp_in", "bias"): same(mlp_in_bias),
        ("attention_out", "kernel"): _part_kernel(attention_out),
        ("mlp_out", "kernel"): _part_kernel(mlp_out),
        ("mlp_out", "bias"): same(f"{there}.linear2.bias"),
    }


COMPONENTS.register("SD3Transformer2DModel")(
    lambda: Component(
        build=build_sd3,
        weight_map=sd3_map,
        shapes=parameter_shapes,
        authors_map=lambda module: _authors_sd3(module, ()),
    )
)
COMPONENTS.register("FluxTransformer2DModel")(
    lambda: Component(
        build=build_flux,
        weight_map=flux_map,
        shapes=parameter_shapes,
        authors_map=lambda module: _authors_flux(module, ()),
    )
)
