"""Qwen3's decoder as a text encoder, in `transformers`' format."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders.qwen3 import Qwen3
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import Entry, Path, WeightMap, dense, norm, prefixed, same, stacked
from diffusion_jax.weights.published.clip import token_shapes
from diffusion_jax.weights.published.config_fields import GENERATION, counted, read_fields

_COUNTS = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "max_window_layers")


def qwen3(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> Qwen3:
    """The decoder that a config describes."""
    found = read_fields(
        config,
        read={**_COUNTS, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "rope_parameters": {}, "layer_types": []},
        neutral={
            "attention_bias": (False,),
            "hidden_act": ("silu",),
            "use_sliding_window": (False,),
        },
        ignored=("attention_dropout", *_TOKENS, *GENERATION),
    )
    counted(found, *_COUNTS)
    rope = dict(found["rope_parameters"])
    kind = rope.pop("rope_type", "default")
    theta = rope.pop("rope_theta", found["rope_theta"])
    # Axes of positions, which are equal for text.
    rope = {name: value for name, value in rope.items() if name not in ("mrope_section", "mrope_interleaved")}
    if kind != "default" or rope:
        raise UserError(f"config.json says rope_parameters = {found['rope_parameters']}: here its type is default")
    if set(found["layer_types"]) - {"full_attention"}:
        raise UserError("config.json says that some layers attend to a window (layer_types): here all see all")
    if found["num_attention_heads"] % found["num_key_value_heads"]:
        raise UserError("config.json says num_key_value_heads, into which num_attention_heads does not divide")
    return Qwen3(
        vocabulary=found["vocab_size"],
        width=found["hidden_size"],
        depth=found["num_hidden_layers"],
        num_heads=found["num_attention_heads"],
        num_key_heads=found["num_key_value_heads"],
        head_channels=found["head_dim"],
        hidden_units=found["intermediate_size"],
        theta=float(theta),
        norm_eps=found["rms_norm_eps"],
        dtype=dtype,
    )


def qwen3_map(network: Qwen3, names: Collection[str]) -> WeightMap:
    """The names of `Qwen3Model`, or of the language part of a larger model."""
    table = "embed_tokens.weight"
    start = next((name.removesuffix(table) for name in names if name.endswith(table)), "")

    def block(i: int) -> dict[Path, Entry]:
        there = f"{start}layers.{i}"
        layers = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "attention_out": "o_proj"}
        mlp = {"gate": "gate_proj", "mlp_in": "up_proj", "mlp_out": "down_proj"}
        entries: dict[Path, Entry] = {}
        for ours, theirs in layers.items():
            entries |= prefixed(ours, dense(f"{there}.self_attn.{theirs}", bias=False))
        for ours, theirs in mlp.items():
            entries |= prefixed(ours, dense(f"{there}.mlp.{theirs}", bias=False))
        norms = {
            "norm_1": "input_layernorm",
            "norm_2": "post_attention_layernorm",
            "query_norm": "self_attn.q_norm",
            "key_norm": "self_attn.k_norm",
        }
        for ours, theirs in norms.items():
            entries |= prefixed(ours, norm(f"{there}.{theirs}", bias=False))
        return entries

    entries = {
        ("embedding",): same(f"{start}{table}"),
        **prefixed("norm", norm(f"{start}norm", bias=False)),
        **stacked("blocks", map(block, range(network.depth))),
    }
    return WeightMap(entries)


@COMPONENTS.register("Qwen3Model")
def _qwen3() -> Component:
    return Component(build=qwen3, weight_map=qwen3_map, shapes=token_shapes)


def qwen3_vl(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> Qwen3:
    """The language part of Qwen3-VL's config, which reads Ideogram 4's prompts."""
    if not isinstance(config.get("text_config"), Mapping):
        raise UserError("config.json of Qwen3VLModel has no text_config")
    return qwen3(config["text_config"], dtype)


def qwen3_vl_map(network: Qwen3, names: Collection[str]) -> WeightMap:
    """The names of `Qwen3VLModel`; its picture encoder is left out."""
    table = "language_model.embed_tokens.weight"
    named = qwen3_map(network, [name for name in names if not name.startswith("visual.")] or [table])
    return WeightMap(named.entries, ignored=(r"visual\..*", r"model\.visual\..*"))


@COMPONENTS.register("Qwen3VLModel")
def _qwen3_vl() -> Component:
    return Component(build=qwen3_vl, weight_map=qwen3_vl_map, shapes=token_shapes)
