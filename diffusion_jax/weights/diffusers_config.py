"""The network that a diffusers folder's config.json describes, as a spec of `MODELS`, and a config.json of a network.

A missing field has diffusers' default. An option that the networks here lack is an error that names it.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, DiT, UNet

_UNET = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_DIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
_TRANSFORMER = {  # DiT was a special case of it
    **_DIT,
    "attention_head_dim": 88,
    "in_channels": None,
    "num_layers": 1,
    "attention_bias": False,
    "sample_size": None,
    "patch_size": None,
    "activation_fn": "geglu",
    "num_embeds_ada_norm": None,
    "norm_type": "layer_norm",
    "norm_elementwise_affine": True,
    "cross_attention_dim": None,
    "num_vector_embeds": None,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "double_self_attention": False,
    "attention_type": "default",
    "caption_channels": None,
    "interpolation_scale": None,
    "use_additional_conditions": None,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "UNet2DModel": _UNET,
    "DiTTransformer2DModel": _DIT,
    "Transformer2DModel": _TRANSFORMER,
}
"""Fields of diffusers' classes with their defaults."""
_MOST, _LAYERS, _NUMBERS = 2**20, 1000, 2**28  # limits: of a whole number, of layers, of the table of positions
_LISTS = {"down_block_types": str, "up_block_types": str, "block_out_channels": int}
_MAY_BE_NONE = ("attention_head_dim", "out_channels", "num_class_embeds", "num_embeds_ada_norm", "sample_size")
# block -> (side, whether it attends, how it changes resolution; None: as the config says)
_BLOCKS = {
    "DownBlock2D": ("down", False, "conv"),
    "AttnDownBlock2D": ("down", True, None),
    "ResnetDownsampleBlock2D": ("down", False, "resnet"),
    "UpBlock2D": ("up", False, "conv"),
    "AttnUpBlock2D": ("up", True, None),
    "ResnetUpsampleBlock2D": ("up", False, "resnet"),
}


def network_spec(config: Mapping[str, Any], *, origin: object = "config.json") -> tuple[dict[str, Any], str]:
    """The spec, with image_size, image_channels and num_classes, and the format of its weights.

    Args:
      config: content of config.json.
      origin: its name in errors.

    Raises:
      UserError: it is no object, a value has a wrong type, or the networks here lack a class or an option.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{origin} holds a JSON {type(config).__name__}; it should be an object")
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise UserError(f"{origin} describes a {kind}; known: {', '.join(DEFAULTS)}")
    known = DEFAULTS[kind]
    fields = {**known, **{name: value for name, value in config.items() if name in known}}
    for name, value in fields.items():
        _check_type(name, value, known[name], origin)
    if isinstance(fields["sample_size"], (list, tuple)):
        if len(set(fields["sample_size"])) != 1:
            raise UserError(f"{origin} has sample_size={fields['sample_size']!r}; networks here are square")
        fields["sample_size"] = fields["sample_size"][0]
    build = _unet if kind == "UNet2DModel" else _dit
    return build(fields, origin)


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of config.json that its class does not have, and that diffusers ignores."""
    known = DEFAULTS.get(str(config.get("_class_name")), {})
    return [name for name in config if name not in known and not name.startswith("_")]


def _check_type(name: str, value: Any, default: Any, origin: object) -> None:
    if name in _LISTS:
        kind = _LISTS[name]
        right = isinstance(value, (list, tuple)) and value and all(isinstance(item, kind) for item in value)
        wanted = f"a list of {'names' if kind is str else 'whole numbers'}"
    elif name == "sample_size" and isinstance(value, (list, tuple)):
        right, wanted = all(_is_whole(item) for item in value) and len(value) > 0, "a whole number, 1 or more"
    elif value is None:
        right, wanted = default is None or name in _MAY_BE_NONE, "a value"
    elif isinstance(default, bool):
        right, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        right, wanted = isinstance(value, str), "a name"
    elif isinstance(default, float) or name in ("mid_block_scale_factor", "freq_shift", "downsample_padding"):
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        wanted = "a number, 0 or more"
    elif name in ("num_layers", "layers_per_block"):
        right, wanted = _is_whole(value) and value <= _LAYERS, f"a whole number from 1 to {_LAYERS}"
    elif isinstance(default, int) or name in _MAY_BE_NONE:
        right, wanted = _is_whole(value), "a whole number, 1 or more"
    else:
        right, wanted = True, ""
    if not right:
        raise UserError(f"{origin} has {name}={value!r}; it should be {wanted}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def _require(fields: Mapping[str, Any], origin: object, **expected: Any) -> None:
    for name, values in expected.items():
        known = values if isinstance(values, tuple) else (values,)
        if name in fields and fields[name] not in known:
            raise UserError(f"{origin} has {name}={fields[name]!r}; networks here have {known[0]!r}")


def _dit(fields: Mapping[str, Any], origin: object) -> tuple[dict[str, Any], str]:
    _require(
        fields,
        origin,
        norm_type="ada_norm_zero",
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_elementwise_affine=False,
        cross_attention_dim=None,
        num_vector_embeds=None,
        only_cross_attention=False,
        double_self_attention=False,
        caption_channels=None,
        dropout=(0.0, 0),
    )
    for name in ("in_channels", "sample_size", "patch_size", "num_embeds_ada_norm"):
        if fields[name] is None:
            raise UserError(f"{origin} has no {name}, which is needed to build the network: add it")
    heads, dim = fields["num_attention_heads"], fields["attention_head_dim"]
    if dim is None:
        raise UserError(f"{origin} has no attention_head_dim, which is needed to build the network: add it")
    channels, out_channels = fields["in_channels"], fields["out_channels"] or fields["in_channels"]
    if out_channels not in (channels, 2 * channels):
        raise UserError(f"{origin} has {channels} channels in and {out_channels} out")
    if fields["sample_size"] % fields["patch_size"] or heads * dim % 4:
        raise UserError(f"{origin} has patch_size or attention_head_dim that its sample_size and heads do not fit")
    if (fields["sample_size"] // fields["patch_size"]) ** 2 * heads * dim > _NUMBERS:
        raise UserError(f"{origin} has sample_size={fields['sample_size']}, too many patches for a network")
    return {
        "name": "dit",
        "image_size": fields["sample_size"],
        "image_channels": channels,
        "num_classes": fields["num_embeds_ada_norm"],
        "size": "S/2",
        "patch_size": fields["patch_size"],
        "hidden_size": heads * dim,
        "depth": fields["num_layers"],
        "num_heads": heads,
        "learn_sigma": out_channels == 2 * channels,
        "frequency_shift": 1,
        "norm_eps": fields["norm_eps"],
        "final_norm_eps": 1e-6,
        "own_conditioning": True,
    }, "diffusers_dit"


def _unet(fields: Mapping[str, Any], origin: object) -> tuple[dict[str, Any], str]:
    _require(
        fields,
        origin,
        act_fn=("silu", "swish"),
        center_input_sample=False,
        class_embed_type=None,
        time_embedding_type="positional",
        add_attention=True,
        mid_block_type="UNetMidBlock2D",
        mid_block_scale_factor=1,
        downsample_padding=(1, 0),
        downsample_type=("conv", "resnet"),
        upsample_type=("conv", "resnet"),
        resnet_time_scale_shift=("default", "scale_shift"),
        attn_norm_num_groups=None,
    )
    widths, size, groups = fields["block_out_channels"], fields["sample_size"], fields["norm_num_groups"]
    if fields["out_channels"] is None or len(widths) > 16:
        raise UserError(f"{origin} has no out_channels, or {len(widths)} levels")
    if size is None:
        raise UserError(f"{origin} has no sample_size, which is needed to build the network: add the images' side")
    attends, resampling = _levels(fields, origin)
    levels, base = len(widths), widths[0]
    if any(not _is_whole(width) or width % groups for width in widths):
        raise UserError(f"{origin} has block_out_channels={widths!r}, which do not divide into {groups} groups")
    if size % 2 ** (levels - 1):
        raise UserError(f"{origin} has sample_size={size}, which cannot be halved {levels - 1} times")
    if fields["time_embedding_dim"] not in (None, 4 * base):
        raise UserError(
            f"{origin} has time_embedding_dim={fields['time_embedding_dim']}; networks here have {4 * base}"
        )
    head = fields["attention_head_dim"]
    attending = {width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
    if head is not None and any(width % head for width in attending):
        raise UserError(f"{origin} has attention_head_dim={head}, into which its channels do not divide")
    plain = fields["resnet_time_scale_shift"] == "default"
    return {
        "name": "unet",
        "image_size": size,
        "image_channels": fields["in_channels"],
        "num_classes": fields["num_class_embeds"] or 0,
        "base_channels": base,
        "channel_multipliers": tuple(_whole(width / base) for width in widths),
        "num_res_blocks": fields["layers_per_block"],
        "attention_resolutions": tuple(size // 2**level for level in range(levels) if attends[level]),
        "head_channels": head,
        "scale_shift": not plain,
        "middle_attention_norm": plain,
        "resampling": resampling,
        "null_label": "zero",
        "dropout": fields["dropout"],
        "out_channels": fields["out_channels"],
        "norm_groups": groups,
        "norm_channels": 1,
        "norm_eps": fields["norm_eps"],
        "flip_sin_to_cos": fields["flip_sin_to_cos"],
        "frequency_shift": fields["freq_shift"],
        "downsample_padding": "symmetric" if fields["downsample_padding"] == 1 else "same",
    }, "diffusers_unet"


def _levels(fields: Mapping[str, Any], origin: object) -> tuple[list[bool], str]:
    """The levels that attend, and how the resolution changes between them."""
    named = {}
    for side in ("down", "up"):
        blocks = [name.removeprefix("UNetRes") for name in fields[f"{side}_block_types"]]  # their earlier names
        for block in blocks:
            if block not in _BLOCKS or _BLOCKS[block][0] != side:
                known = ", ".join(name for name, (at, *_) in _BLOCKS.items() if at == side)
                raise UserError(f"{origin} has the block {block} in the {side} path; networks here have {known}")
        if len(blocks) != len(fields["block_out_channels"]):
            raise UserError(
                f"{origin} has {len(blocks)} {side}_block_types and {len(fields['block_out_channels'])} "
                "block_out_channels"
            )
        named[side] = blocks
    attends = {side: [_BLOCKS[block][1] for block in blocks] for side, blocks in named.items()}
    if attends["down"] != attends["up"][::-1]:
        raise UserError(f"{origin} has attention at other levels down ({named['down']}) than up ({named['up']})")
    ways = {
        _BLOCKS[block][2] or fields[f"{side}sample_type"]
        for side, blocks in named.items()
        for block in blocks[:-1]  # the last changes no resolution
    }
    if len(ways) > 1:
        raise UserError(
            f"{origin} changes resolution by a convolution in some blocks and by a residual block in others; networks "
            "here do it in one way"
        )
    return attends["down"], "residual" if ways == {"resnet"} else "conv"


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def describe(network: nn.Module) -> dict[str, Any]:
    """The config.json with which diffusers builds a network.

    Raises:
      UserError: diffusers' class lacks something that the network has; the message names the fields.
    """
    if not isinstance(network, (UNet, DiT)):
        raise UserError(f"diffusers has no {type(network).__name__}: it has the networks unet and dit")
    config = _describe_unet(network) if isinstance(network, UNet) else _describe_dit(network)
    spec, _ = network_spec(config, origin="what diffusers can say of this network")
    there = MODELS.build(spec)
    # fields that do not change the network's function; a null class is a row there like any other
    free = {"parent", "name", "dtype", "remat", "scan_unroll", "null_label"}
    free |= {"num_classes"} if config.get("num_class_embeds") else set()
    different = [
        field
        for field in type(network).__dataclass_fields__
        if field not in free and _value(network, field) != _value(there, field)
    ]
    if different:
        said = ", ".join(f"{field}={getattr(network, field)!r}" for field in different)
        raise UserError(f"diffusers' {config['_class_name']} cannot have {said}: write another --format")
    return config


def _value(network: nn.Module, field: str) -> Any:
    """A field, where two values with one meaning are made equal."""
    value = getattr(network, field)
    if field == "out_channels":
        return value or network.image_channels
    if field == "final_norm_eps":
        return network.norm_eps if value is None else value
    if field == "attention_resolutions":
        return sorted(value)
    if field == "norm_channels" and isinstance(network, UNet):  # whether it reduces the number of groups anywhere
        widths = [round(network.base_channels * multiplier) for multiplier in network.channel_multipliers]
        return all(width >= value * network.norm_groups for width in widths)
    if field == "num_heads" and isinstance(network, UNet) and network.head_channels:
        return None
    return value


def _describe_unet(network: UNet) -> dict[str, Any]:
    widths = [round(network.base_channels * multiplier) for multiplier in network.channel_multipliers]
    attends = [network.has_attention(level) for level in range(len(widths))]
    residual = network.resampling == "residual"
    rows = network.num_classes + (network.null_label == "row") if network.num_classes else None

    def blocks(attention: str, plain: str, of_residual: str) -> list[str]:
        return [attention if attend else of_residual if residual else plain for attend in attends]

    return {
        **_UNET,
        "_class_name": "UNet2DModel",
        "sample_size": network.image_size,
        "in_channels": network.image_channels,
        "out_channels": network.out_channels or network.image_channels,
        "freq_shift": network.frequency_shift,
        "flip_sin_to_cos": network.flip_sin_to_cos,
        "down_block_types": blocks("AttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": blocks("AttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D")[::-1],
        "block_out_channels": widths,
        "layers_per_block": network.num_res_blocks,
        "downsample_padding": 1 if network.downsample_padding == "symmetric" else 0,
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "dropout": network.dropout,
        "attention_head_dim": network.head_channels,
        "norm_num_groups": network.norm_groups,
        "norm_eps": network.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "num_class_embeds": rows,
    }


def _describe_dit(network: DiT) -> dict[str, Any]:
    channels = network.image_channels
    return {
        **_DIT,
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": network.num_heads,
        "attention_head_dim": network.hidden_size // network.num_heads,
        "in_channels": channels,
        "out_channels": 2 * channels if network.learn_sigma else network.out_channels or channels,
        "num_layers": network.depth,
        "sample_size": network.image_size,
        "patch_size": network.patch_size,
        "num_embeds_ada_norm": network.num_classes or 1,
        "norm_eps": network.norm_eps,
    }
