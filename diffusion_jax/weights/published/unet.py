"""Names of the text-conditioned U-Net's tensors: diffusers' UNet2DConditionModel, and the original layout of latent
diffusion and generative-models, used for single files of Stable Diffusion 1, 2 and XL."""

from collections.abc import Collection

from diffusion_jax.models import ConditionalUNet, parameter_shapes
from diffusion_jax.models.conditional_encoder import ConditionalEncoder, Stage
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import Entry, Path, WeightMap, conv, dense, norm, prefixed, same, stacked
from diffusion_jax.weights.published.unet_config import build_unet

Entries = dict[Path, Entry | tuple[Entry, ...]]
ORIGINAL_PREFIX = "model.diffusion_model."
"""The prefix of the U-Net's names in single files, which also hold the other parts."""


def _mlp(here: str, first: str, second: str) -> Entries:
    return {**prefixed(f"{here}/dense_0", dense(first)), **prefixed(f"{here}/dense_1", dense(second))}


def _attention(there: str) -> Entries:
    entries: Entries = {}
    for ours, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        entries |= prefixed(ours, dense(f"{there}.to_{letter}", bias=False))
    return {**entries, **prefixed("out", dense(f"{there}.to_out.0"))}


def _transformer_block(there: str) -> Entries:
    entries = {
        **prefixed("self", _attention(f"{there}.attn1")),
        **prefixed("cross", _attention(f"{there}.attn2")),
        **prefixed("mlp_in", dense(f"{there}.ff.net.0.proj")),
        **prefixed("mlp_out", dense(f"{there}.ff.net.2")),
    }
    for index in range(3):
        entries |= prefixed(f"norm_{index}", norm(f"{there}.norm{index + 1}"))
    return entries


def transformer(there: str, depth: int, *, linear: bool) -> Entries:
    """A transformer, which has the same names in both layouts."""
    ndim = 2 if linear else 4
    blocks = [_transformer_block(f"{there}.transformer_blocks.{layer}") for layer in range(depth)]
    return {
        **prefixed("norm", norm(f"{there}.norm")),
        **prefixed("in", dense(f"{there}.proj_in", ndim=ndim)),
        **prefixed("out", dense(f"{there}.proj_out", ndim=ndim)),
        **stacked("blocks", blocks),
    }


def _res_block(there: str, stage: Stage, names: tuple[str, ...]) -> Entries:
    norm_0, conv_0, time, norm_1, conv_1, shortcut = (f"{there}.{name}" for name in names)
    return {
        **prefixed("norm_0", norm(norm_0)),
        **prefixed("conv_0", conv(conv_0)),
        **prefixed("time", dense(time)),
        **prefixed("norm_1", norm(norm_1)),
        **prefixed("conv_1", conv(conv_1)),
        **(prefixed("shortcut", dense(shortcut, ndim=4)) if stage.inputs != stage.features else {}),
    }


_DIFFUSERS = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
_ORIGINAL = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")


def diffusers_stage(network: ConditionalEncoder, stage: Stage) -> Entries:
    """A stage in diffusers' names."""
    side, index = stage.name.split("_")[0], stage.name.split("_")[-1]
    last = len(network.channels) - 1
    block = {"down": f"down_blocks.{stage.level}", "up": f"up_blocks.{last - stage.level}", "middle": "mid_block"}[side]
    if stage.kind != "block":
        return prefixed(stage.name, conv(f"{block}.{side}samplers.0.conv"))
    entries = prefixed(stage.name, _res_block(f"{block}.resnets.{index}", stage, _DIFFUSERS))
    if stage.depth:
        found = transformer(f"{block}.attentions.{index}", stage.depth, linear=network.linear_projection)
        entries |= prefixed(stage.attention_name, found)
    return entries


def diffusers_embeddings(network: ConditionalEncoder) -> Entries:
    """The first convolution and the embeddings in diffusers' names."""
    entries = {
        **prefixed("conv_in", conv("conv_in")),
        **_mlp("time", "time_embedding.linear_1", "time_embedding.linear_2"),
    }
    if network.added_channels:
        entries |= _mlp("added", "add_embedding.linear_1", "add_embedding.linear_2")
    if network.num_noise_levels:
        entries["noise_level", "embedding"] = same("class_embedding.weight")
    return entries


def diffusers_map(network: ConditionalUNet) -> WeightMap:
    """diffusers' UNet2DConditionModel."""
    entries = {
        **diffusers_embeddings(network),
        **prefixed("norm_out", norm("conv_norm_out")),
        **prefixed("conv_out", conv("conv_out")),
    }
    if network.guidance_channels:
        entries |= prefixed("guidance", dense("time_embedding.cond_proj", bias=False))
    for stage in (*network.down_stages(), *network.middle_stages(), *network.up_stages()):
        entries |= diffusers_stage(network, stage)
    return WeightMap(entries)


def original_block(network: ConditionalEncoder, stage: Stage, block: str, place: int = 0) -> Entries:
    """A stage at a place in a block under the original names; its transformer is at the next place."""
    if stage.kind != "block":
        return prefixed(stage.name, conv(f"{block}.{place}.{'op' if stage.kind == 'downsample' else 'conv'}"))
    entries = prefixed(stage.name, _res_block(f"{block}.{place}", stage, _ORIGINAL))
    if stage.depth:
        found = transformer(f"{block}.{place + 1}", stage.depth, linear=network.linear_projection)
        entries |= prefixed(stage.attention_name, found)
    return entries


def original_encoder(network: ConditionalEncoder, prefix: str) -> Entries:
    """The downward path, the middle and the embeddings under the original names."""
    entries = {
        **prefixed("conv_in", conv(f"{prefix}input_blocks.0.0")),
        **_mlp("time", f"{prefix}time_embed.0", f"{prefix}time_embed.2"),
    }
    if network.added_channels:
        entries |= _mlp("added", f"{prefix}label_emb.0.0", f"{prefix}label_emb.0.2")
    if network.num_noise_levels:
        entries["noise_level", "embedding"] = same(f"{prefix}label_emb.weight")
    for number, stage in enumerate(network.down_stages(), start=1):
        entries |= original_block(network, stage, f"{prefix}input_blocks.{number}")
    place = 0
    for stage in network.middle_stages():
        entries |= original_block(network, stage, f"{prefix}middle_block", place)
        place += 2 if stage.depth else 1
    return entries


def original_map(network: ConditionalUNet, prefix: str = ORIGINAL_PREFIX) -> WeightMap:
    """The original layout, where names without the prefix belong to other parts."""
    entries = {
        **original_encoder(network, prefix),
        **prefixed("norm_out", norm(f"{prefix}out.0")),
        **prefixed("conv_out", conv(f"{prefix}out.2")),
    }
    if network.guidance_channels:
        entries |= prefixed("guidance", dense(f"{prefix}time_embed.cond_proj", bias=False))
    number, place = -1, 0
    for stage in network.up_stages():
        if stage.kind == "block":
            number, place = number + 1, 0
        entries |= original_block(network, stage, f"{prefix}output_blocks.{number}", place)
        place += 2 if stage.depth else 1
    others = (rf"(?!{prefix.replace('.', '[.]')}).*",) if prefix else ()
    return WeightMap(entries, ignored=others)


def weight_map(network: ConditionalUNet, names: Collection[str]) -> WeightMap:
    """The map for a file with these names: the original layout or diffusers'."""
    for prefix in (ORIGINAL_PREFIX, ""):
        if f"{prefix}input_blocks.0.0.weight" in names:
            return original_map(network, prefix)
    return diffusers_map(network)


COMPONENTS.register("UNet2DConditionModel")(
    lambda: Component(
        build=build_unet,
        weight_map=weight_map,
        shapes=parameter_shapes,
        authors_map=lambda module: original_map(module, ""),
    )
)
