"""The network that a diffusers folder's config.json describes, as a spec of `MODELS`."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import UserError


def network_spec(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The spec, with image_size, image_channels and num_classes, and the format of its weights.

    Raises:
      UserError: a class or an option that the networks here do not have.
    """
    kind = config.get("_class_name")
    builders = {"DiTTransformer2DModel": _dit, "Transformer2DModel": _dit, "UNet2DModel": _unet}
    if kind not in builders:
        raise UserError(f"config.json describes a {kind}; known: {', '.join(builders)}")
    return builders[kind](config)


def _require(config: Mapping[str, Any], **expected: Any) -> None:
    for name, values in expected.items():
        known = values if isinstance(values, tuple) else (values,)
        if name in config and config[name] not in known:
            raise UserError(f"config.json has {name}={config[name]!r}; networks here have {known[0]!r}")


def _dit(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    _require(config, norm_type="ada_norm_zero", activation_fn="gelu-approximate", attention_bias=True)
    heads, dim = config["num_attention_heads"], config["attention_head_dim"]
    channels, out_channels = config["in_channels"], config.get("out_channels") or config["in_channels"]
    if out_channels not in (channels, 2 * channels):
        raise UserError(f"config.json has {channels} channels in and {out_channels} out")
    return {
        "name": "dit",
        "image_size": config["sample_size"],
        "image_channels": channels,
        "num_classes": config["num_embeds_ada_norm"],
        "size": f"S/{config['patch_size']}",
        "hidden_size": heads * dim,
        "depth": config["num_layers"],
        "num_heads": heads,
        "learn_sigma": out_channels == 2 * channels,
        "frequency_shift": 1,
        "norm_eps": config["norm_eps"],
        "final_norm_eps": 1e-6,
        "own_conditioning": True,
    }, "diffusers_dit"


def _unet(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    _require(
        config,
        act_fn="silu",
        center_input_sample=False,
        class_embed_type=None,
        time_embedding_type="positional",
        add_attention=True,
        mid_block_scale_factor=1,
        downsample_type=("conv", "resnet"),
        attn_norm_num_groups=None,
    )
    widths, size = config["block_out_channels"], config["sample_size"]
    levels = len(widths)
    down, up = config["down_block_types"], config["up_block_types"]
    attends = ["Attn" in name for name in down]
    if attends != ["Attn" in name for name in reversed(up)]:
        raise UserError(f"config.json has attention at other levels down ({down}) than up ({up})")
    residual = any(name.startswith("Resnet") for name in down) or config.get("downsample_type") == "resnet"
    head_channels = config.get("attention_head_dim")
    return {
        "name": "unet",
        "image_size": size,
        "image_channels": config["in_channels"],
        "num_classes": config.get("num_class_embeds") or 0,
        "base_channels": widths[0],
        "channel_multipliers": tuple(_whole(width / widths[0]) for width in widths),
        "num_res_blocks": config["layers_per_block"],
        "attention_resolutions": tuple(size // 2**level for level in range(levels) if attends[level]),
        "head_channels": head_channels,
        "scale_shift": config.get("resnet_time_scale_shift", "default") == "scale_shift",
        "middle_attention_norm": config.get("resnet_time_scale_shift", "default") == "default",
        "resampling": "residual" if residual else "conv",
        "null_label": "zero",
        "dropout": config.get("dropout", 0.0),
        "out_channels": config["out_channels"],
        "norm_groups": config["norm_num_groups"],
        "norm_eps": config["norm_eps"],
        "flip_sin_to_cos": config["flip_sin_to_cos"],
        "frequency_shift": config["freq_shift"],
        "downsample_padding": "symmetric" if config["downsample_padding"] == 1 else "same",
    }, "diffusers_unet"


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
