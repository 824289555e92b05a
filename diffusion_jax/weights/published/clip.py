"""CLIP's text and picture encoders, and SigLIP's picture encoder, in `transformers`' format."""

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders.blocks import stack_shapes
from diffusion_jax.models.encoders.clip import ClipText
from diffusion_jax.models.encoders.vision import VisionTransformer
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import (
    Entry,
    Path,
    WeightMap,
    dense,
    norm,
    patch_embedding,
    prefixed,
    same,
    separate_qkv,
    stacked,
)
from diffusion_jax.weights.published.config_fields import GENERATION, counted, read_fields

Entries = dict[Path, Entry]

ACTIVATION_NAMES: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_ARGMAX_EOS = 2  # older configs have this end token, and mean the highest token of a text
_TRAINING = ("attention_dropout", "dropout")


def activation(config: Mapping[str, Any], name: str) -> str:
    """The name here of the activation in a field.

    Raises:
      UserError: it is not known.
    """
    found = config[name]
    if found not in ACTIVATION_NAMES:
        raise UserError(f"config.json says {name} = {found!r}; known are {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[found]


def clip_text(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32, *, projected: bool = False) -> ClipText:
    """The text encoder that a config describes."""
    found = read_fields(
        config,
        read={
            "vocab_size": 49_408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "projection_dim": 512,
            "eos_token_id": 49_407,
        },
        ignored=(*_TRAINING, *GENERATION, "pad_token_id", "bos_token_id"),
    )
    counted(found, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    counted(found, "max_position_embeddings", "projection_dim")
    require_heads(found)
    end = found["eos_token_id"]
    return ClipText(
        vocabulary=found["vocab_size"],
        length=found["max_position_embeddings"],
        width=found["hidden_size"],
        depth=found["num_hidden_layers"],
        num_heads=found["num_attention_heads"],
        hidden_units=found["intermediate_size"],
        projection=found["projection_dim"] if projected else 0,
        activation=activation(found, "hidden_act"),
        norm_eps=found["layer_norm_eps"],
        end_token=None if end == _ARGMAX_EOS else end,
        dtype=dtype,
    )


def require_heads(config: Mapping[str, Any]) -> None:
    """Raise UserError if the width does not divide into heads."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        raise UserError(f"config.json says hidden_size = {width}, which does not divide into {heads} heads")


def vision_transformer(
    config: Mapping[str, Any], dtype: DTypeLike = jnp.float32, *, projected: bool = False
) -> VisionTransformer:
    """CLIP's picture encoder that a config describes."""
    found = read_fields(
        config,
        read={
            **_PICTURES,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "patch_size": 32,
            "image_size": 224,
            "projection_dim": 512,
        },
        neutral={"num_channels": (3,)},
        ignored=(*_TRAINING, *GENERATION, "pad_token_id", "bos_token_id", "eos_token_id"),
    )
    return VisionTransformer(
        **_of_pictures(found),
        projection=found["projection_dim"] if projected else 0,
        first_norm=True,
        patch_bias=False,
        dtype=dtype,
    )


def siglip(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> VisionTransformer:
    """SigLIP's picture encoder that a config describes."""
    found = read_fields(
        config,
        read={
            **_PICTURES,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "patch_size": 16,
            "image_size": 224,
        },
        neutral={"num_channels": (3,), "vision_use_head": (True,)},
        ignored=(*_TRAINING, *GENERATION),
    )
    return VisionTransformer(**_of_pictures(found), class_token=False, dtype=dtype)


_PICTURES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def _of_pictures(found: Mapping[str, Any]) -> dict[str, Any]:
    counted(found, *_PICTURES, "patch_size", "image_size")
    require_heads(found)
    return {
        "patch_size": found["patch_size"],
        "grid": found["image_size"] // found["patch_size"],
        "width": found["hidden_size"],
        "depth": found["num_hidden_layers"],
        "num_heads": found["num_attention_heads"],
        "hidden_units": found["intermediate_size"],
        "activation": activation(found, "hidden_act"),
        "norm_eps": found["layer_norm_eps"],
    }


def clip_text_map(network: ClipText, names: Collection[str]) -> WeightMap:
    """The names of `CLIPTextModel`, with or without the prefix "text_model.", as in the given file."""
    prefixed_names = any(name.startswith("text_model.") for name in names)
    start = "text_model." if prefixed_names or not names else ""
    entries = {
        ("token",): same(f"{start}embeddings.token_embedding.weight"),
        ("position",): same(f"{start}embeddings.position_embedding.weight"),
        **prefixed("norm", norm(f"{start}final_layer_norm")),
        **stacked("blocks", (clip_block(f"{start}encoder.layers.{i}") for i in range(network.depth))),
    }
    if network.projection:
        entries |= prefixed("projection", dense("text_projection", bias=False))
    return WeightMap(entries, constants=position_ids(names, network.length))


def clip_image_map(network: VisionTransformer, names: Collection[str] = ()) -> WeightMap:
    """The names of `CLIPVisionModel`."""
    there = "vision_model" if not names or any(name.startswith("vision_model.") for name in names) else ""
    there = f"{there}." if there else ""
    entries = {
        ("class_token",): same(f"{there}embeddings.class_embedding"),
        ("position",): same(f"{there}embeddings.position_embedding.weight"),
        **prefixed(
            "patch_embedding",
            patch_embedding(f"{there}embeddings.patch_embedding", patch=network.patch_size, channels=3, bias=False),
        ),
        **prefixed("first_norm", norm(f"{there}pre_layrnorm")),
        **prefixed("norm", norm(f"{there}post_layernorm")),
        **stacked("blocks", (clip_block(f"{there}encoder.layers.{i}") for i in range(network.depth))),
    }
    if network.projection:
        entries |= prefixed("projection", dense("visual_projection", bias=False))
    return WeightMap(entries, constants=position_ids(names, 1 + network.grid**2))


def siglip_map(network: VisionTransformer, names: Collection[str] = ()) -> WeightMap:
    """The names of `SiglipVisionModel`, with or without the prefix "vision_model."."""
    start = "vision_model." if any(name.startswith("vision_model.") for name in names) else ""
    fused = {"kernel": "in_proj_weight", "bias": "in_proj_bias"}
    head = {
        ("probe",): same(f"{start}head.probe").then(lambda x: x[0, 0], lambda x: x[None, None]),
        ("qkv", "kernel"): same(f"{start}head.attention.{fused['kernel']}").then(np.transpose, np.transpose),
        ("qkv", "bias"): same(f"{start}head.attention.{fused['bias']}"),
        **prefixed("attention_out", dense(f"{start}head.attention.out_proj")),
        **prefixed("norm", norm(f"{start}head.layernorm")),
        **prefixed("mlp_in", dense(f"{start}head.mlp.fc1")),
        **prefixed("mlp_out", dense(f"{start}head.mlp.fc2")),
    }
    embedding = patch_embedding(f"{start}embeddings.patch_embedding", patch=network.patch_size, channels=3)
    entries = {
        ("position",): same(f"{start}embeddings.position_embedding.weight"),
        **prefixed("patch_embedding", embedding),
        **prefixed("norm", norm(f"{start}post_layernorm")),
        **prefixed("head", head),
        **stacked("blocks", (clip_block(f"{start}encoder.layers.{i}") for i in range(network.depth))),
    }
    return WeightMap(entries, constants=position_ids(names, network.grid**2))


def clip_block(there: str) -> Entries:
    """The names of a block of CLIP or SigLIP."""
    return {
        **prefixed("norm_1", norm(f"{there}.layer_norm1")),
        **prefixed("qkv", separate_qkv([f"{there}.self_attn.{letter}_proj" for letter in "qkv"])),
        **prefixed("attention_out", dense(f"{there}.self_attn.out_proj")),
        **prefixed("norm_2", norm(f"{there}.layer_norm2")),
        **prefixed("mlp_in", dense(f"{there}.mlp.fc1")),
        **prefixed("mlp_out", dense(f"{there}.mlp.fc2")),
    }


def position_ids(names: Collection[str], length: int) -> dict[str, np.ndarray]:
    """The numbers 0 ... length - 1, which older files contain and newer ones do not."""
    return {name: np.arange(length)[None] for name in names if name.endswith("embeddings.position_ids")}


def vision_shapes(network: VisionTransformer) -> PyTree:
    """The parameters as ShapeDtypeStruct."""
    return stack_shapes(network, jax.ShapeDtypeStruct((1, network.image_size, network.image_size, 3), jnp.float32))


def token_shapes(network: nn.Module) -> PyTree:
    """The parameters of a token encoder as ShapeDtypeStruct."""
    return stack_shapes(network, jax.ShapeDtypeStruct((1, 2), jnp.int32))


@COMPONENTS.register("CLIPTextModel")
def _text() -> Component:
    return Component(build=clip_text, weight_map=clip_text_map, shapes=token_shapes)


@COMPONENTS.register("CLIPTextModelWithProjection")
def _text_projected() -> Component:
    return Component(
        build=lambda config, dtype=jnp.float32: clip_text(config, dtype, projected=True),
        weight_map=clip_text_map,
        shapes=token_shapes,
    )


@COMPONENTS.register("CLIPVisionModel")
def _vision() -> Component:
    return Component(build=vision_transformer, weight_map=clip_image_map, shapes=vision_shapes)


@COMPONENTS.register("CLIPVisionModelWithProjection")
def _vision_projected() -> Component:
    return Component(
        build=lambda config, dtype=jnp.float32: vision_transformer(config, dtype, projected=True),
        weight_map=clip_image_map,
        shapes=vision_shapes,
    )


@COMPONENTS.register("SiglipVisionModel")
def _siglip() -> Component:
    return Component(build=siglip, weight_map=siglip_map, shapes=vision_shapes)
