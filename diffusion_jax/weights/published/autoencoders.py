"""Published first stages in `diffusers`' format, and the convolutional ones also in their authors' format."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import SCALE, SHIFT, Autoencoder
from diffusion_jax.models.autoencoders.published import (
    COUNT,
    MEAN,
    VARIANCE,
    BatchNormKL,
    PublishedCodec,
    PublishedKL,
    PublishedVQ,
)
from diffusion_jax.models.autoencoders.vq import TABLE
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import Entry, Path, WeightMap, conv, dense, norm, prefixed, same, separate_qkv
from diffusion_jax.weights.published.config_fields import REQUIRED, counted, read_fields

Entries = dict[Path, Entry]

_BLOCKS = (
    {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True},
    {
        "UpDecoderBlock2D": False,
        "AttnUpDecoderBlock2D": True,
    },
)
_CODER: Mapping[str, Any] = {
    "in_channels": 3,
    "down_block_types": REQUIRED,
    "up_block_types": REQUIRED,
    "block_out_channels": REQUIRED,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {"act_fn": ("silu", "swish")}
_UNREAD = ("sample_size", "force_upcast")


def _coder(config: Mapping[str, Any], found: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """The fields of `PublishedCodec` that all convolutional autoencoders share."""
    counted(found, "in_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    channels = _channels(found, "block_out_channels")
    decoder = _channels(config, "decoder_block_out_channels") if config.get("decoder_block_out_channels") else None
    groups = found["norm_num_groups"]
    for width in {*channels, *(decoder or ())}:
        if width % groups:
            raise UserError(f"config.json says {width} channels, which norm_num_groups = {groups} does not divide")
    down = _kinds(found, "down_block_types", _BLOCKS[0], len(channels))
    up = _kinds(found, "up_block_types", _BLOCKS[1], len(channels))[::-1]  # from the highest resolution on
    return {
        "channels": channels,
        "decoder_channels": decoder,
        "num_res_blocks": found["layers_per_block"],
        "latent_channels": found["latent_channels"],
        "data_channels": found["in_channels"],
        "norm_groups": groups,
        "encoder_attention": tuple(level for level, attends in enumerate(down) if attends),
        "decoder_attention": tuple(level for level, attends in enumerate(up) if attends),
        "middle_attention": found["mid_block_add_attention"],
        "dtype": dtype,
    }


def _channels(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = config[name]
    if not isinstance(value, list | tuple) or not value or not all(type(one) is int and one > 0 for one in value):
        raise UserError(f"config.json says {name} = {value!r}: it must be a list of whole numbers above 0")
    return tuple(value)


def _kinds(config: Mapping[str, Any], name: str, known: Mapping[str, bool], count: int) -> list[bool]:
    kinds = config[name]
    if not isinstance(kinds, list | tuple) or len(kinds) != count:
        raise UserError(f"config.json says {name} = {kinds!r}: it must name {count} blocks, as block_out_channels does")
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise UserError(f"config.json says {name} with {unknown[0]!r}; known are {', '.join(known)}")
    return [known[kind] for kind in kinds]


def kl(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> PublishedKL:
    """The `AutoencoderKL` that a config describes."""
    own = {"scaling_factor": 0.18215, "shift_factor": 0.0, "use_quant_conv": True, "use_post_quant_conv": True}
    neutral = {**_NEUTRAL, "out_channels": (config.get("in_channels", 3),)}  # latents_mean and latents_std: only null
    found = read_fields(config, read={**_CODER, **own}, neutral=neutral, ignored=_UNREAD)
    return PublishedKL(
        **_coder(config, found, dtype),
        quant=found["use_quant_conv"],
        post_quant=found["use_post_quant_conv"],
        shift=float(found["shift_factor"]),
        scale=float(found["scaling_factor"]),
    )


def batch_norm_kl(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> BatchNormKL:
    """The `AutoencoderKLFlux2` that a config describes."""
    own = {
        **{"latent_channels": 32, "layers_per_block": 2},
        **{"use_quant_conv": True, "use_post_quant_conv": True},
        **{"batch_norm_eps": 1e-4, "patch_size": [2, 2], "decoder_block_out_channels": None},
    }
    neutral = {**_NEUTRAL, "out_channels": (config.get("in_channels", 3),)}
    found = read_fields(config, read={**_CODER, **own}, neutral=neutral, ignored=(*_UNREAD, "batch_norm_momentum"))
    patch = _channels(found, "patch_size")
    if len(patch) != 2 or patch[0] != patch[1]:
        raise UserError(f"config.json says patch_size = {list(patch)}: squares of latents are made, [2, 2]")
    return BatchNormKL(
        **_coder(config, found, dtype),
        quant=found["use_quant_conv"],
        post_quant=found["use_post_quant_conv"],
        patch=patch[0],
        norm_eps=float(found["batch_norm_eps"]),
    )


def vq(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> PublishedVQ:
    """The `VQModel` that a config describes."""
    own = {"latent_channels": 3, "num_vq_embeddings": 256, "scaling_factor": 0.18215}
    neutral = {
        **_NEUTRAL,
        "out_channels": (config.get("in_channels", 3),),
        "vq_embed_dim": (config.get("latent_channels", 3),),
        "norm_type": ("group",),
        "lookup_from_codebook": (False,),
    }
    found = read_fields(config, read={**_CODER, **own}, neutral=neutral, ignored=_UNREAD)
    counted(found, "num_vq_embeddings")
    return PublishedVQ(
        **_coder(config, found, dtype), num_codes=found["num_vq_embeddings"], scale=float(found["scaling_factor"])
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of an autoencoder's parts; {level} counts from the highest resolution, {low} from the lowest.

    Attributes:
      prefix: prefix of all names.
      residual: residual blocks of a coder's levels, "down" and "up".
      attention: attention after a residual block of a level, "down" and "up".
      resample: the convolution that halves, and the one that doubles.
      middle: the two residual blocks; middle_attention: the attention between them.
      norm_out: the last norm; shortcut: the convolution where channels change.
      letters: norm, query, key, value and output of attention.
      ndim: axes of the kernels of query, key, value and result.
    """

    prefix: str
    residual: tuple[str, str]
    attention: tuple[str, str]
    resample: tuple[str, str]
    middle: tuple[str, str]
    middle_attention: str
    norm_out: str
    shortcut: str
    letters: tuple[str, str, str, str, str]
    ndim: int


_DIFFUSERS = Layout(
    prefix="",
    residual=("down_blocks.{level}.resnets.{index}", "up_blocks.{low}.resnets.{index}"),
    attention=("down_blocks.{level}.attentions.{index}", "up_blocks.{low}.attentions.{index}"),
    resample=("down_blocks.{level}.downsamplers.0.conv", "up_blocks.{low}.upsamplers.0.conv"),
    middle=("mid_block.resnets.0", "mid_block.resnets.1"),
    middle_attention="mid_block.attentions.0",
    norm_out="conv_norm_out",
    shortcut="conv_shortcut",
    letters=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    ndim=2,
)
_OLDER = dataclasses.replace(_DIFFUSERS, letters=("group_norm", "query", "key", "value", "proj_attn"))
_ORIGINAL = Layout(
    prefix="",
    residual=("down.{level}.block.{index}", "up.{level}.block.{index}"),
    attention=("down.{level}.attn.{index}", "up.{level}.attn.{index}"),
    resample=("down.{level}.downsample.conv", "up.{level}.upsample.conv"),
    middle=("mid.block_1", "mid.block_2"),
    middle_attention="mid.attn_1",
    norm_out="norm_out",
    shortcut="nin_shortcut",
    letters=("norm", "q", "k", "v", "proj_out"),
    ndim=4,
)
_SINGLE_FILE = "first_stage_model."


def layout_of(names: Collection[str]) -> Layout:
    """The layout of a file with these names: that of `diffusers`, today's or an older one, or that of the authors of
    latent diffusion, alone or in a file with the whole model.
    """
    start = _SINGLE_FILE if any(name.startswith(_SINGLE_FILE) for name in names) else ""
    if any(".mid.block_1." in name for name in names):
        return dataclasses.replace(_ORIGINAL, prefix=start)
    return _OLDER if any(".query.weight" in name for name in names) else _DIFFUSERS


def coder_map(codec: PublishedCodec, names: Collection[str] = ()) -> WeightMap:
    """The names of a convolutional autoencoder; in a file with the whole model the names of other parts are left
    out."""
    layout = layout_of(names)
    start = layout.prefix
    entries = {
        **prefixed("encoder", _coder_entries(codec, layout, "encoder")),
        **prefixed("decoder", _coder_entries(codec, layout, "decoder")),
        (SHIFT,): constant(codec.shift, (codec.diffused_channels,)),
        (SCALE,): constant(codec.scale, (codec.diffused_channels,)),
    }
    for part, name, there in (("encoder", "quant_conv", codec.quant), ("decoder", "post_quant_conv", codec.post_quant)):
        if there:
            entries |= prefixed(f"{part}/quant", dense(f"{start}{name}", ndim=4))
    losses = (rf"{re.escape(start)}loss\..*", rf"{re.escape(start)}model_ema\..*")
    others = (rf"(?!{re.escape(start)}).*",) if start else ()
    return WeightMap(entries, ignored=(*losses, *others))


def vq_map(codec: PublishedVQ, names: Collection[str] = ()) -> WeightMap:
    """The names of `VQModel`: the coder's and the table's."""
    coder = coder_map(codec, names)
    table = same(f"{layout_of(names).prefix}quantize.embedding.weight")
    return dataclasses.replace(coder, entries={**coder.entries, (TABLE,): table})


def batch_norm_map(codec: BatchNormKL, names: Collection[str] = ()) -> WeightMap:
    """The names of `AutoencoderKLFlux2`: the coder's and the batch norm's."""
    coder = coder_map(codec, names)
    rest = {path: entry for path, entry in coder.entries.items() if path not in ((SHIFT,), (SCALE,))}
    count = same("bn.num_batches_tracked").then(
        lambda x: np.asarray(x, np.float32), lambda x: np.asarray(np.rint(x), np.int64)
    )
    statistics = {(MEAN,): same("bn.running_mean"), (VARIANCE,): same("bn.running_var"), (COUNT,): count}
    return dataclasses.replace(coder, entries={**rest, **statistics})


def _coder_entries(codec: PublishedCodec, layout: Layout, part: str) -> Entries:
    network = codec.encoder if part == "encoder" else codec.decoder
    down = part == "encoder"
    levels = len(network.channels)
    there = f"{layout.prefix}{part}."

    def named(pattern: str, level: int, index: int = 0) -> str:
        return there + pattern.format(level=level, low=levels - 1 - level, index=index)

    entries: Entries = {
        **prefixed("conv_in", conv(f"{there}conv_in")),
        **prefixed("norm_out", norm(f"{there}{layout.norm_out}")),
        **prefixed("conv_out", conv(f"{there}conv_out")),
        **prefixed("middle/block_0", _residual(there + layout.middle[0], layout, shortcut=False)),
        **prefixed("middle/block_1", _residual(there + layout.middle[1], layout, shortcut=False)),
    }
    if network.middle_attention:
        entries |= prefixed("middle/attention", _attention(there + layout.middle_attention, layout))
    side, way = ("down", 0) if down else ("up", 1)
    width = network.channels[0] if down else network.channels[-1]
    for level in range(levels) if down else reversed(range(levels)):
        for index in range(network.num_res_blocks + (0 if down else 1)):
            changes, width = width != network.channels[level], network.channels[level]
            name = f"{side}_{level}_{index}"
            entries |= prefixed(name, _residual(named(layout.residual[way], level, index), layout, shortcut=changes))
            if level in network.attention_levels:
                attention = _attention(named(layout.attention[way], level, index), layout)
                entries |= prefixed(f"{name}_attention", attention)
        if level != (levels - 1 if down else 0):
            name = f"{side}_{level}_{'downsample' if down else 'upsample'}"
            entries |= prefixed(name, conv(named(layout.resample[way], level)))
    return entries


def _residual(there: str, layout: Layout, *, shortcut: bool) -> Entries:
    entries = {
        **prefixed("norm_0", norm(f"{there}.norm1")),
        **prefixed("conv_0", conv(f"{there}.conv1")),
        **prefixed("norm_1", norm(f"{there}.norm2")),
        **prefixed("conv_1", conv(f"{there}.conv2")),
    }
    return entries | prefixed("shortcut", dense(f"{there}.{layout.shortcut}", ndim=4)) if shortcut else entries


def _attention(there: str, layout: Layout) -> Entries:
    norm_name, *qkv, out = (f"{there}.{letter}" for letter in layout.letters)
    return {
        **prefixed("norm", norm(norm_name)),
        **prefixed("qkv", separate_qkv(qkv, ndim=layout.ndim)),
        **prefixed("out", dense(out, ndim=layout.ndim)),
    }


def constant(value: float, shape: tuple[int, ...]) -> Entry:
    """A parameter that no tensor holds, only a number in the config."""
    whole = np.full(shape, value, np.float32)

    def write(ours: np.ndarray) -> Sequence[np.ndarray]:
        if not np.array_equal(ours, whole):
            raise UserError(f"the config says {value} where the parameters have other numbers: they cannot be written")
        return []

    return Entry((), lambda tensors: whole, write)


def codec_shapes(codec: Autoencoder) -> PyTree:
    """The parameters as ShapeDtypeStruct."""
    return jax.eval_shape(codec.init_params, jax.random.key(0))


@COMPONENTS.register("AutoencoderKL")
def _kl() -> Component:
    return Component(build=kl, weight_map=coder_map, shapes=codec_shapes)


@COMPONENTS.register("AutoencoderKLFlux2")
def _batch_norm_kl() -> Component:
    return Component(build=batch_norm_kl, weight_map=batch_norm_map, shapes=codec_shapes)


@COMPONENTS.register("VQModel")
def _vq() -> Component:
    return Component(build=vq, weight_map=vq_map, shapes=codec_shapes)
