"""config.json of diffusers' UNet2DConditionModel and ControlNetModel, as fields of the networks here, and back.

A missing field has diffusers' default. An option that the networks here lack is an error that names the field.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.domains import check_arguments, shown
from diffusion_jax.errors import UserError
from diffusion_jax.models import ConditionalUNet, ControlNet
from diffusion_jax.models.conditional_encoder import ConditionalEncoder

_SHARED = {
    "in_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "projection_class_embeddings_input_dim": None,
}
_UNET = {
    **_SHARED,
    "sample_size": None,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "dropout": 0.0,
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
}
_CONTROLNET = {
    **_SHARED,
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
}
# Fields with only this value here; None is allowed if it means the same.
_NEUTRAL_SHARED = {
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "num_attention_heads": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
}
_NEUTRAL_UNET = {
    **_NEUTRAL_SHARED,
    "center_input_sample": False,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
}
_NEUTRAL_CONTROLNET = {**_NEUTRAL_SHARED, "global_pool_conditions": False}
_UNREAD = {"addition_embed_type_num_heads": 64}  # used only by an addition_embed_type that is refused
_DEFAULT_SIZE = 64  # for networks whose config has no sample_size; they take any

_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MIDDLE = {"UNetMidBlock2DCrossAttn": "attention", "UNetMidBlock2D": "block", None: "none"}
_SCALE_SHIFT = {"default": False, "scale_shift": True}
_PADDING = {1: "symmetric", 0: "same"}
SDXL_SIZES, REFINER_SIZES = 6, 5
"""The numbers in the slot "sizes": for SDXL base, and for its refiner."""


def build_unet(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> ConditionalUNet:
    """The network of a UNet2DConditionModel's config.json.

    Raises:
      UserError: a field asks for something that the network here lacks; the message names it.
    """
    fields = _read(config, _UNET, _NEUTRAL_UNET)
    ups = _translated("up_block_types", fields, _UP)
    shared = _shared(fields)
    if ups != shared["attends"][::-1]:
        raise UserError(
            f"config.json: up_block_types={shown(fields['up_block_types'])} is not supported: a level must attend on "
            "the upward path where it does on the downward path"
        )
    deep = fields["reverse_transformer_layers_per_block"]
    inputs, outputs = _whole("in_channels", fields), _whole("out_channels", fields)
    channels = min(inputs, outputs)
    return _made(
        ConditionalUNet,
        **shared,
        image_size=_sample_size(fields["sample_size"]),
        image_channels=channels,
        extra_channels=inputs - channels,
        out_channels=None if outputs == channels else outputs,
        dropout=fields["dropout"],
        up_transformer_depth=deep[::-1] if isinstance(deep, tuple) else deep,
        guidance_channels=fields["time_cond_proj_dim"] or 0,
        dtype=dtype,
    )


def build_controlnet(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> ControlNet:
    """The network of a ControlNetModel's config.json.

    Raises:
      UserError: a field asks for something that the network here lacks; the message names it.
    """
    fields = _read(config, _CONTROLNET, _NEUTRAL_CONTROLNET)
    return _made(
        ControlNet,
        **_shared(fields),
        image_size=_DEFAULT_SIZE,
        image_channels=_whole("in_channels", fields),
        control_channels=fields["conditioning_channels"],
        embedding_channels=fields["conditioning_embedding_out_channels"],
        channel_order=fields["controlnet_conditioning_channel_order"],
        dtype=dtype,
    )


def describe_unet(network: ConditionalUNet) -> dict[str, Any]:
    """config.json of a network, with every field of diffusers' class."""
    deep = network.up_transformer_depth
    found = {
        "_class_name": "UNet2DConditionModel",
        **_NEUTRAL_UNET,
        **_UNREAD,
        **_describe_shared(network),
        "sample_size": network.image_size,
        "in_channels": network.image_channels + network.extra_channels,
        "out_channels": network.out_channels or network.image_channels,
        "up_block_types": [("CrossAttnUpBlock2D" if attends else "UpBlock2D") for attends in network.attends[::-1]],
        "dropout": network.dropout,
        "reverse_transformer_layers_per_block": deep[::-1] if isinstance(deep, tuple) else deep,
        "time_cond_proj_dim": network.guidance_channels or None,
    }
    return {name: _listed(value) for name, value in found.items()}


def describe_controlnet(network: ControlNet) -> dict[str, Any]:
    """config.json of a ControlNet, with every field of diffusers' class."""
    found = {
        "_class_name": "ControlNetModel",
        **_NEUTRAL_CONTROLNET,
        **_UNREAD,
        **_describe_shared(network),
        "in_channels": network.image_channels,
        "conditioning_channels": network.control_channels,
        "conditioning_embedding_out_channels": network.embedding_channels,
        "controlnet_conditioning_channel_order": network.channel_order,
    }
    return {name: _listed(value) for name, value in found.items()}


def _describe_shared(network: ConditionalEncoder) -> dict[str, Any]:
    if network.num_classes or network.num_times != 1:
        raise UserError("diffusers' UNet2DConditionModel has neither classes beside a text nor a second time")
    if network.pooled_channels and not network.size_channels:
        raise UserError("diffusers' UNet2DConditionModel adds pooled with sizes only: set size_channels")
    return {
        "flip_sin_to_cos": network.flip_sin_to_cos,
        "freq_shift": network.frequency_shift,
        "down_block_types": [("CrossAttnDownBlock2D" if attends else "DownBlock2D") for attends in network.attends],
        "mid_block_type": {ours: theirs for theirs, ours in _MIDDLE.items()}[network.middle],
        "only_cross_attention": network.only_cross_attention,
        "block_out_channels": network.channels,
        "layers_per_block": network.num_res_blocks,
        "downsample_padding": {ours: theirs for theirs, ours in _PADDING.items()}[network.downsample_padding],
        "norm_num_groups": network.norm_groups,
        "norm_eps": network.norm_eps,
        "cross_attention_dim": network.context_channels,
        "transformer_layers_per_block": network.transformer_depth,
        "attention_head_dim": network.num_heads,
        "use_linear_projection": network.linear_projection,
        "addition_embed_type": "text_time" if network.size_channels else None,
        "addition_time_embed_dim": network.size_channels or None,
        "projection_class_embeddings_input_dim": network.added_channels or None,
        "num_class_embeds": network.num_noise_levels or None,
        "upcast_attention": network.upcast_attention,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
    }


def _shared(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ConditionalEncoder`."""
    attends = _translated("down_block_types", fields, _DOWN)
    if not isinstance(fields["block_out_channels"], tuple) or len(fields["block_out_channels"]) != len(attends):
        raise UserError(
            f"config.json: block_out_channels={shown(fields['block_out_channels'])} must be one number for each of the "
            f"{len(attends)} down_block_types"
        )
    return {
        "channels": fields["block_out_channels"],
        "attends": attends,
        "num_res_blocks": fields["layers_per_block"],
        "num_heads": fields["attention_head_dim"],
        "transformer_depth": fields["transformer_layers_per_block"],
        "middle": _one("mid_block_type", fields, _MIDDLE),
        "context_channels": fields["cross_attention_dim"],
        "linear_projection": fields["use_linear_projection"],
        "only_cross_attention": fields["only_cross_attention"],
        "upcast_attention": fields["upcast_attention"],
        "num_noise_levels": fields["num_class_embeds"] or 0,
        "scale_shift": _one("resnet_time_scale_shift", fields, _SCALE_SHIFT),
        "norm_groups": fields["norm_num_groups"],
        "norm_eps": fields["norm_eps"],
        "flip_sin_to_cos": fields["flip_sin_to_cos"],
        "frequency_shift": fields["freq_shift"],
        "downsample_padding": _one("downsample_padding", fields, _PADDING),
        **_added(fields),
    }


def _added(fields: Mapping[str, Any]) -> dict[str, int]:
    """The widths of pooled and sizes. The config does not say how the width divides: the refiner is recognised by its
    single encoder, whose pooled vector is as wide as the context; the network also takes other numbers of sizes."""
    kind = fields["addition_embed_type"]
    if kind is None:
        for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if fields[name] is not None:
                raise UserError(f"config.json: {name}={shown(fields[name])} needs addition_embed_type='text_time'")
        return {}
    if kind != "text_time":
        raise UserError(f"config.json: addition_embed_type={shown(kind)} is not supported; known: None, 'text_time'")
    waves, width = (
        _whole(name, fields) for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    )
    refines = width - REFINER_SIZES * waves == fields["cross_attention_dim"]
    count = REFINER_SIZES if refines else SDXL_SIZES
    if width <= count * waves:
        raise UserError(
            f"config.json: projection_class_embeddings_input_dim={width} has no room for pooled beside {count} sizes "
            f"of addition_time_embed_dim={waves}"
        )
    return {"pooled_channels": width - count * waves, "size_channels": waves, "num_sizes": count}


def _read(config: Mapping[str, Any], known: Mapping[str, Any], neutral: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with their defaults, lists as tuples; UserError for unsupported values."""
    for name, value in config.items():
        silent = not value and not neutral.get(name, value)  # None and False mean the same
        if name in neutral and value != neutral[name] and not silent:
            raise UserError(f"config.json: {name}={shown(value)} is not supported; known: {shown(neutral[name])}")
        if name not in known and name not in neutral and name not in _UNREAD and not name.startswith("_") and value:
            raise UserError(f"config.json: the field {name}={shown(value)} is unknown here")
    return {name: _tupled(config.get(name, default)) for name, default in known.items()}


def _made(network: type[ConditionalEncoder], **fields: Any) -> Any:
    """The network; an error about one of its fields mentions config.json."""
    try:
        check_arguments(network.__name__, network, fields)
        return network(**fields)
    except UserError as error:
        raise UserError(f"config.json: {error}") from error


def _translated(name: str, fields: Mapping[str, Any], table: Mapping[Any, Any]) -> tuple[Any, ...]:
    values = fields[name]
    if not isinstance(values, tuple) or not values:
        raise UserError(f"config.json: {name}={shown(values)} must be a list of names")
    return tuple(_one(name, {name: value}, table) for value in values)


def _one(name: str, fields: Mapping[str, Any], table: Mapping[Any, Any]) -> Any:
    value = fields[name]
    found = [ours for theirs, ours in table.items() if theirs == value and isinstance(value, type(theirs))]
    if not found:
        known = ", ".join(map(repr, table))
        raise UserError(f"config.json: {name}={shown(value)} is not supported; known: {known}")
    return found[0]


def _whole(name: str, fields: Mapping[str, Any]) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config.json: {name}={shown(value)} must be a whole number of at least 1")
    return value


def _sample_size(value: Any) -> int:
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    if isinstance(value, tuple):
        raise UserError(f"config.json: sample_size={shown(value)}; the size of a network here is one number")
    return _DEFAULT_SIZE if value is None else value


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def _listed(value: Any) -> Any:
    return [_listed(part) for part in value] if isinstance(value, list | tuple) else value
