"""The tiny and the deep compression autoencoder, in `diffusers`' format."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import SCALE, SHIFT
from diffusion_jax.models.autoencoders.deep_compression import DeepCodec, DeepDecoder, DeepEncoder, DeepLevel
from diffusion_jax.models.autoencoders.tiny import TinyCodec, TinyDecoder, TinyEncoder
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import Entry, Path, WeightMap, conv, dense, prefixed, same, separate_qkv
from diffusion_jax.weights.published.autoencoders import codec_shapes, constant
from diffusion_jax.weights.published.config_fields import REQUIRED, counted, read_fields

Entries = dict[Path, Entry]
_KINDS = {"ResBlock": "residual", "EfficientViTBlock": "attention"}


def tiny(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> TinyCodec:
    """The `AutoencoderTiny` that a config describes."""
    found = read_fields(
        config,
        read={
            "in_channels": 3,
            "latent_channels": 4,
            "encoder_block_out_channels": [64, 64, 64, 64],
            "decoder_block_out_channels": [64, 64, 64, 64],
            "num_encoder_blocks": [1, 3, 3, 3],
            "num_decoder_blocks": [3, 3, 3, 1],
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
        },
        neutral={
            "out_channels": (config.get("in_channels", 3),),
            "act_fn": ("relu",),
            "upsample_fn": ("nearest",),
            "upsampling_scaling_factor": (2,),
        },
        # The first two describe how latents become 8-bit pictures; the others repeat fields or have no effect.
        ignored=("latent_magnitude", "latent_shift", "block_out_channels", "force_upcast"),
    )
    counted(found, "in_channels", "latent_channels")
    widths, blocks = {}, {}
    for part in ("encoder", "decoder"):
        channels, counts = found[f"{part}_block_out_channels"], found[f"num_{part}_blocks"]
        if len(set(channels)) != 1 or len(channels) != len(counts) or not all(type(one) is int for one in counts):
            raise UserError(
                f"config.json says {part}_block_out_channels = {list(channels)} and num_{part}_blocks = "
                f"{list(counts)}: all levels have the same channels, and each a number of blocks"
            )
        widths[part], blocks[part] = channels[0], tuple(counts)
    return TinyCodec(
        data_channels=found["in_channels"],
        latent_channels=found["latent_channels"],
        encoder_channels=widths["encoder"],
        decoder_channels=widths["decoder"],
        encoder_blocks=blocks["encoder"],
        decoder_blocks=blocks["decoder"],
        shift=float(found["shift_factor"]),
        scale=float(found["scaling_factor"]),
        dtype=dtype,
    )


def tiny_map(codec: TinyCodec, names: Collection[str] = ()) -> WeightMap:
    """The names of `AutoencoderTiny`, where layers are counted, including activations and doublings."""
    entries: Entries = {
        (SHIFT,): constant(codec.shift, (codec.latent_channels,)),
        (SCALE,): constant(codec.scale, (codec.latent_channels,)),
        **prefixed("encoder", _tiny_encoder(codec.encoder)),
        **prefixed("decoder", _tiny_decoder(codec.decoder)),
    }
    return WeightMap(entries)


def _tiny_block(there: str) -> Entries:
    return {
        path: entry for i in range(3) for path, entry in prefixed(f"conv_{i}", conv(f"{there}.conv.{2 * i}")).items()
    }


def _tiny_encoder(network: TinyEncoder) -> Entries:
    entries, number = prefixed("conv_in", conv("encoder.layers.0")), 1
    for level, count in enumerate(network.blocks):
        if level:
            entries |= prefixed(f"down_{level}", conv(f"encoder.layers.{number}", bias=False))
            number += 1
        for index in range(count):
            entries |= prefixed(f"block_{level}_{index}", _tiny_block(f"encoder.layers.{number}"))
            number += 1
    return entries | prefixed("conv_out", conv(f"encoder.layers.{number}"))


def _tiny_decoder(network: TinyDecoder) -> Entries:
    entries, number = prefixed("conv_in", conv("decoder.layers.0")), 2  # an activation follows it
    for level, count in enumerate(network.blocks):
        for index in range(count):
            entries |= prefixed(f"block_{level}_{index}", _tiny_block(f"decoder.layers.{number}"))
            number += 1
        if level < len(network.blocks) - 1:  # after a doubling, which counts as a layer
            entries |= prefixed(f"up_{level}", conv(f"decoder.layers.{number + 1}", bias=False))
            number += 2
    return entries | prefixed("conv_out", conv(f"decoder.layers.{number}"))


def deep(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> DeepCodec:
    """The `AutoencoderDC` that a config describes."""
    sides = ("encoder", "decoder")
    lists = {f"{side}_{name}": REQUIRED for side in sides for name in ("block_out_channels", "layers_per_block")}
    found = read_fields(
        config,
        read={
            **lists,
            **{f"{side}_block_types": REQUIRED for side in sides},
            **{f"{side}_qkv_multiscales": [] for side in sides},
            "in_channels": 3,
            "latent_channels": 32,
            "attention_head_dim": 32,
            "upsample_block_type": "pixel_shuffle",
            "downsample_block_type": "pixel_unshuffle",
            "encoder_out_shortcut": True,
            "decoder_in_shortcut": True,
            "scaling_factor": 1.0,
        },
        neutral={
            "decoder_norm_types": ("rms_norm", *_repeats(config, "decoder_norm_types", "rms_norm")),
            "decoder_act_fns": ("silu", *_repeats(config, "decoder_act_fns", "silu")),
            "decoder_conv_act_fn": ("relu",),
        },
    )
    counted(found, "in_channels", "latent_channels", "attention_head_dim")
    kinds = {"Conv": True, "pixel_unshuffle": False}, {"interpolate": True, "pixel_shuffle": False}
    for name, known in zip(("downsample_block_type", "upsample_block_type"), kinds, strict=True):
        if found[name] not in known:
            raise UserError(f"config.json says {name} = {found[name]!r}; known are {', '.join(known)}")
    return DeepCodec(
        data_channels=found["in_channels"],
        latent_channels=found["latent_channels"],
        head_channels=found["attention_head_dim"],
        encoder_levels=_levels(found, "encoder"),
        decoder_levels=_levels(found, "decoder"),
        encoder_strided=kinds[0][found["downsample_block_type"]],
        decoder_repeated=kinds[1][found["upsample_block_type"]],
        encoder_shortcut=found["encoder_out_shortcut"],
        decoder_shortcut=found["decoder_in_shortcut"],
        scale=float(found["scaling_factor"]),
        dtype=dtype,
    )


def _repeats(config: Mapping[str, Any], name: str, value: str) -> tuple[list[str], ...]:
    """The list in a config that has `value` for every level, as a further neutral value."""
    there = config.get(name)
    return (there,) if isinstance(there, list | tuple) and set(there) == {value} else ()


def _levels(found: Mapping[str, Any], side: str) -> tuple[DeepLevel, ...]:
    channels, counts = found[f"{side}_block_out_channels"], found[f"{side}_layers_per_block"]
    kinds, scales = found[f"{side}_block_types"], found[f"{side}_qkv_multiscales"]
    kinds = [kinds] * len(channels) if isinstance(kinds, str) else kinds
    scales = scales or [[]] * len(channels)
    if len({len(channels), len(counts), len(kinds), len(scales)}) != 1:
        raise UserError(f"config.json says of the {side}'s levels lists of different lengths")
    unknown = [kind for kind in kinds if kind not in _KINDS]
    if unknown:
        raise UserError(f"config.json says {side}_block_types with {unknown[0]!r}; known are {', '.join(_KINDS)}")
    if not all(counts[1:]):
        raise UserError(f"config.json says {side}_layers_per_block = {list(counts)}: only the first may be 0")
    return tuple(
        DeepLevel(channels=width, blocks=count, kind=_KINDS[kind], scales=tuple(sides))
        for width, count, kind, sides in zip(channels, counts, kinds, scales, strict=True)
    )


def deep_map(codec: DeepCodec, names: Collection[str] = ()) -> WeightMap:
    """The names of `AutoencoderDC`."""
    entries: Entries = {
        (SHIFT,): constant(0.0, (codec.latent_channels,)),
        (SCALE,): constant(codec.scale, (codec.latent_channels,)),
        **prefixed("encoder", _deep_encoder(codec.encoder)),
        **prefixed("decoder", _deep_decoder(codec.decoder)),
    }
    return WeightMap(entries)


def _channel_norm(there: str) -> Entries:
    return {("norm", "scale"): same(f"{there}.weight"), ("bias",): same(f"{there}.bias")}


def _deep_block(level: DeepLevel, there: str, name: str) -> Entries:
    if level.kind == "residual":
        block = {
            **prefixed("conv_0", conv(f"{there}.conv1")),
            **prefixed("conv_1", conv(f"{there}.conv2", bias=False)),
            **prefixed("norm", _channel_norm(f"{there}.norm")),
        }
        return prefixed(name, block)
    attention = {
        **prefixed("qkv", separate_qkv([f"{there}.attn.to_{letter}" for letter in "qkv"], bias=False)),
        **prefixed("out", dense(f"{there}.attn.to_out", bias=False)),
        **prefixed("norm", _channel_norm(f"{there}.attn.norm_out")),
    }
    for index in range(len(level.scales)):
        scale = f"{there}.attn.to_qkv_multiscale.{index}"
        attention |= prefixed(f"scale_{index}_in", conv(f"{scale}.proj_in", bias=False))
        attention |= prefixed(f"scale_{index}_out", conv(f"{scale}.proj_out", bias=False))
    gated = {
        **prefixed("expand", dense(f"{there}.conv_out.conv_inverted", ndim=4)),
        **prefixed("depth", conv(f"{there}.conv_out.conv_depth")),
        **prefixed("shrink", dense(f"{there}.conv_out.conv_point", bias=False, ndim=4)),
        **prefixed("norm", _channel_norm(f"{there}.conv_out.norm")),
    }
    return {**prefixed(f"{name}_attention", attention), **prefixed(f"{name}_gated", gated)}


def _deep_encoder(network: DeepEncoder) -> Entries:
    first = prefixed("conv", conv("encoder.conv_in.conv")) if network.first else conv("encoder.conv_in")
    entries = {**prefixed("conv_in", first), **prefixed("conv_out", conv("encoder.conv_out"))}
    for number, level in enumerate(network.levels):
        there = f"encoder.down_blocks.{number}"
        for index in range(level.blocks):
            entries |= _deep_block(level, f"{there}.{index}", f"level_{number}_{index}")
        if level.blocks and number < len(network.levels) - 1:
            entries |= prefixed(f"down_{number}/conv", conv(f"{there}.{level.blocks}.conv"))
    return entries


def _deep_decoder(network: DeepDecoder) -> Entries:
    last = prefixed("conv", conv("decoder.conv_out.conv")) if network.first else conv("decoder.conv_out")
    entries = {
        **prefixed("conv_in", conv("decoder.conv_in")),
        **prefixed("norm_out", _channel_norm("decoder.norm_out")),
        **prefixed("conv_out", last),
    }
    for number, level in enumerate(network.levels):
        there, doubled = f"decoder.up_blocks.{number}", int(number < len(network.levels) - 1)
        for index in range(level.blocks):
            entries |= _deep_block(level, f"{there}.{index + doubled}", f"level_{number}_{index}")
        if level.blocks and doubled:
            entries |= prefixed(f"up_{number}/conv", conv(f"{there}.0.conv"))
    return entries


@COMPONENTS.register("AutoencoderTiny")
def _tiny() -> Component:
    return Component(build=tiny, weight_map=tiny_map, shapes=codec_shapes)


@COMPONENTS.register("AutoencoderDC")
def _deep() -> Component:
    return Component(build=deep, weight_map=deep_map, shapes=codec_shapes)
