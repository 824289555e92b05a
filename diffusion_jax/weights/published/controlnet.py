"""Names of a ControlNet's tensors: diffusers' ControlNetModel, and the original layout of single files."""

from collections.abc import Collection

from diffusion_jax.models import ControlNet, parameter_shapes
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import WeightMap, conv, dense, prefixed
from diffusion_jax.weights.published.unet import (
    Entries,
    diffusers_embeddings,
    diffusers_stage,
    original_encoder,
)
from diffusion_jax.weights.published.unet_config import build_controlnet

ORIGINAL_PREFIX = "control_model."
"""The prefix of the ControlNet's names in single files."""


def _inner_convolutions(network: ControlNet) -> int:
    return 2 * (len(network.embedding_channels) - 1)


def diffusers_map(network: ControlNet) -> WeightMap:
    """The names of diffusers' ControlNetModel."""
    embedding = "controlnet_cond_embedding"
    entries: Entries = {
        **diffusers_embeddings(network),
        **prefixed("picture_in", conv(f"{embedding}.conv_in")),
        **prefixed("picture_out", conv(f"{embedding}.conv_out")),
        **prefixed("zero_middle", dense("controlnet_mid_block", ndim=4)),
    }
    for index in range(_inner_convolutions(network)):
        entries |= prefixed(f"picture_{index}", conv(f"{embedding}.blocks.{index}"))
    for index in range(len(network.down_stages()) + 1):
        entries |= prefixed(f"zero_{index}", dense(f"controlnet_down_blocks.{index}", ndim=4))
    for stage in (*network.down_stages(), *network.middle_stages()):
        entries |= diffusers_stage(network, stage)
    return WeightMap(entries)


def original_map(network: ControlNet, prefix: str = ORIGINAL_PREFIX) -> WeightMap:
    """The original layout: convolutions of the picture at even positions, with activations between them."""
    inner = _inner_convolutions(network)
    hint = f"{prefix}input_hint_block"
    entries: Entries = {
        **original_encoder(network, prefix),
        **prefixed("picture_in", conv(f"{hint}.0")),
        **prefixed("picture_out", conv(f"{hint}.{2 * (inner + 1)}")),
        **prefixed("zero_middle", dense(f"{prefix}middle_block_out.0", ndim=4)),
    }
    for index in range(inner):
        entries |= prefixed(f"picture_{index}", conv(f"{hint}.{2 * (index + 1)}"))
    for index in range(len(network.down_stages()) + 1):
        entries |= prefixed(f"zero_{index}", dense(f"{prefix}zero_convs.{index}.0", ndim=4))
    others = (rf"(?!{prefix.replace('.', '[.]')}).*",) if prefix else ()
    return WeightMap(entries, ignored=others)


def weight_map(network: ControlNet, names: Collection[str]) -> WeightMap:
    """The map for a file with these names: the original layout or diffusers'."""
    for prefix in (ORIGINAL_PREFIX, ""):
        if f"{prefix}input_blocks.0.0.weight" in names:
            return original_map(network, prefix)
    return diffusers_map(network)


COMPONENTS.register("ControlNetModel")(
    lambda: Component(build=build_controlnet, weight_map=weight_map, shapes=parameter_shapes)
)
