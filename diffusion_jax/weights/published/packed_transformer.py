"""Ideogram 4's transformer, with the tensor names of diffusers' folders."""

from collections.abc import Collection, Mapping
from typing import Any

from jax.typing import DTypeLike

from diffusion_jax.domains import shown
from diffusion_jax.errors import UserError
from diffusion_jax.models import PackedTransformer, parameter_shapes
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import Entry, Path, WeightMap, dense, norm, prefixed, same, separate_qkv, stacked
from diffusion_jax.weights.published.config_fields import counted, read_fields

_IDEOGRAM4 = {
    "in_channels": 128,
    "num_layers": 34,
    "attention_head_dim": 256,
    "num_attention_heads": 18,
    "intermediate_size": 12_288,
    "adaln_dim": 512,
    "llm_features_dim": 53_248,
    "rope_theta": 5_000_000.0,
    "mrope_section": (24, 20, 20),
    "norm_eps": 1e-5,
}
_SIZE = 64  # squares of latents of a 1024 x 1024 image; nothing depends on it


def build_ideogram4(config: Mapping[str, Any], dtype: DTypeLike) -> PackedTransformer:
    """The network of an Ideogram4Transformer2DModel's config.json; its data are squares of 2 x 2 latents as channels.

    Raises:
      UserError: an option is not supported here.
    """
    fields = read_fields(config, read=_IDEOGRAM4)
    sections = fields["mrope_section"]
    if not isinstance(sections, list | tuple) or any(type(part) is not int or part < 0 for part in sections):
        raise UserError(f"config.json says mrope_section = {shown(sections)}: it must be a list of whole numbers")
    counted(fields, *(name for name, value in _IDEOGRAM4.items() if type(value) is int))
    return PackedTransformer(
        image_size=_SIZE,
        image_channels=fields["in_channels"],
        hidden_size=fields["num_attention_heads"] * fields["attention_head_dim"],
        depth=fields["num_layers"],
        num_heads=fields["num_attention_heads"],
        mlp_size=fields["intermediate_size"],
        modulation_size=fields["adaln_dim"],
        context_channels=fields["llm_features_dim"],
        rotary_sections=tuple(sections),
        rotary_theta=float(fields["rope_theta"]),
        norm_eps=fields["norm_eps"],
        dtype=dtype,
    )


def ideogram4_map(network: PackedTransformer, names: Collection[str]) -> WeightMap:
    """The map of diffusers' names."""
    del names
    entries = {
        **prefixed("patch_embedding", dense("input_proj")),
        **prefixed("context_norm", norm("llm_cond_norm", bias=False)),
        **prefixed("context_embedding", dense("llm_cond_proj")),
        **prefixed("time/dense_0", dense("t_embedding.mlp_in")),
        **prefixed("time/dense_1", dense("t_embedding.mlp_out")),
        **prefixed("vector", dense("adaln_proj")),
        ("role", "embedding"): same("embed_image_indicator.weight"),
        **prefixed("final_modulation", dense("final_layer.adaln_modulation")),
        **prefixed("final_linear", dense("final_layer.linear")),
    }
    return WeightMap({**entries, **stacked("blocks", map(_block, range(network.depth)))})


def _block(i: int) -> dict[Path, Entry]:
    there = f"layers.{i}"
    norms = {
        "norm_0": "attention_norm1",
        "norm_1": "attention_norm2",
        "norm_2": "ffn_norm1",
        "norm_3": "ffn_norm2",
        "query_norm": "attention.norm_q",
        "key_norm": "attention.norm_k",
    }
    return {
        **prefixed("modulation", dense(f"{there}.adaln_modulation")),
        **prefixed("qkv", separate_qkv([f"{there}.attention.to_{letter}" for letter in "qkv"], bias=False)),
        **prefixed("attention_out", dense(f"{there}.attention.to_out.0", bias=False)),
        **prefixed("mlp_in", separate_qkv([f"{there}.feed_forward.w1", f"{there}.feed_forward.w3"], bias=False)),
        **prefixed("mlp_out", dense(f"{there}.feed_forward.w2", bias=False)),
        **{
            path: entry
            for here, name in norms.items()
            for path, entry in prefixed(here, norm(f"{there}.{name}", bias=False)).items()
        },
    }


COMPONENTS.register("Ideogram4Transformer2DModel")(
    lambda: Component(build=build_ideogram4, weight_map=ideogram4_map, shapes=parameter_shapes)
)
