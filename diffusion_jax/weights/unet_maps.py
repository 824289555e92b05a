"""Names of U-Nets elsewhere: OpenAI's code (ADM, iDDPM, consistency models, LDM), diffusers, score SDE."""

from diffusion_jax.models import NoisyClassifier, SongUNet, UNet
from diffusion_jax.weights.names import (
    Entry,
    Path,
    WeightMap,
    conv,
    convolution_kernel,
    dense,
    fused_qkv,
    joined,
    norm,
    prefixed,
    same,
    separate_qkv,
    transposed,
)

Entries = dict[Path, Entry]


def unet_stages(network: UNet) -> list[tuple[str, str, int, int, bool, bool]]:
    """The stages of a UNet in the order of computation.

    Each is (name here, kind, level, channels out, whether there is a shortcut layer, whether attention follows); kind
    is "block", or "resample" for a change of resolution.
    """
    width = [round(network.base_channels * multiplier) for multiplier in network.channel_multipliers]
    attends = [network.has_attention(level) for level in range(len(width))]
    stages, channels = [], width[0]
    kept = [channels]
    for level, features in enumerate(width):
        for block in range(network.num_res_blocks):
            stages.append((f"down_{level}_{block}", "block", level, features, channels != features, attends[level]))
            channels = features
            kept.append(channels)
        if level < len(width) - 1:
            stages.append((f"down_{level}_downsample", "resample", level, channels, False, False))
            kept.append(channels)
    last = len(width) - 1
    stages.append(("middle_0", "block", last, channels, False, True))
    stages.append(("middle_1", "block", last, channels, False, False))
    for level in reversed(range(len(width))):
        for block in range(network.num_res_blocks + 1):
            attend = attends[level] and (network.up_attention == "every" or block == network.num_res_blocks)
            shortcut = channels + kept.pop() != width[level]
            stages.append((f"up_{level}_{block}", "block", level, width[level], shortcut, attend))
            channels = width[level]
        if level > 0:
            stages.append((f"up_{level}_upsample", "resample", level, channels, False, False))
    return stages


def attention_name(stage: str) -> str:
    return "middle_attention" if stage == "middle_0" else f"{stage}_attention"


def num_heads_at(network: UNet, channels: int) -> int:
    return channels // network.head_channels if network.head_channels else network.num_heads


def time_mlp(first: str, second: str) -> Entries:
    return {**prefixed("time/dense_0", dense(first)), **prefixed("time/dense_1", dense(second))}


def _openai_block(name: str, *, shortcut: bool) -> Entries:
    return {
        **prefixed("norm_0", norm(f"{name}.in_layers.0")),
        **prefixed("conv_0", conv(f"{name}.in_layers.2")),
        **prefixed("time", dense(f"{name}.emb_layers.1")),
        **prefixed("norm_1", norm(f"{name}.out_layers.0")),
        **prefixed("conv_1", conv(f"{name}.out_layers.3")),
        **(prefixed("shortcut", dense(f"{name}.skip_connection", ndim=4)) if shortcut else {}),
    }


def _openai_transformer(name: str, depth: int) -> Entries:
    entries = {
        **prefixed("norm", norm(f"{name}.norm")),
        **prefixed("in", dense(f"{name}.proj_in", ndim=4)),
        **prefixed("out", dense(f"{name}.proj_out", ndim=4)),
    }
    for layer in range(depth):
        there, here = f"{name}.transformer_blocks.{layer}", f"block_{layer}"
        for kind, attention in (("self", "attn1"), ("cross", "attn2")):
            for ours, letter in (("query", "q"), ("key", "k"), ("value", "v")):
                entries |= prefixed(f"{here}/{kind}/{ours}", dense(f"{there}.{attention}.to_{letter}", bias=False))
            entries |= prefixed(f"{here}/{kind}/out", dense(f"{there}.{attention}.to_out.0"))
        for index in range(3):
            entries |= prefixed(f"{here}/norm_{index}", norm(f"{there}.norm{index + 1}"))
        entries |= prefixed(f"{here}/mlp_in", dense(f"{there}.ff.net.0.proj"))
        entries |= prefixed(f"{here}/mlp_out", dense(f"{there}.ff.net.2"))
    return entries


def openai_unet(
    network: UNet, *, qkv: str = "h3c", prefix: str = "", label: str = "label_emb", ignored: tuple[str, ...] = ()
) -> WeightMap:
    """Guided diffusion's UNetModel, and those of improved diffusion, consistency models and latent diffusion.

    Args:
      network: the network here.
      qkv: the order of axes in the fused attention layers: "h3c", or "3hc" with use_new_attention_order.
      prefix: prefix of every name.
      label: name of the table of labels.
      ignored: patterns of further names in the file.
    """
    p = prefix
    entries = {
        **prefixed("conv_in", conv(f"{p}input_blocks.0.0")),
        **time_mlp(f"{p}time_embed.0", f"{p}time_embed.2"),
        **prefixed("norm_out", norm(f"{p}out.0")),
        **prefixed("conv_out", conv(f"{p}out.2")),
    }
    if network.num_classes:
        entries["label", "embedding"] = same(f"{label}.weight")
    at = {"down": 0, "up": -1}
    inner = 0
    for stage, kind, _, channels, shortcut, attend in unet_stages(network):
        side = stage.split("_")[0]
        if side == "middle":
            there, after = f"{p}middle_block.{2 * int(stage[-1])}", f"{p}middle_block.1"
        elif kind == "block" or side == "down":
            at[side] += 1
            inner = 0
            block = f"{p}{'input' if side == 'down' else 'output'}_blocks.{at[side]}"
            there, after = f"{block}.0", f"{block}.1"
        else:
            there = f"{p}output_blocks.{at['up']}.{inner}"  # after the last block of the level
        if kind == "block" or network.resampling == "residual":
            entries |= prefixed(stage, _openai_block(there, shortcut=shortcut))
        elif network.resampling == "conv":
            entries |= prefixed(stage, conv(f"{there}.{'op' if side == 'down' else 'conv'}"))
        inner = 1
        if attend:
            inner = 2
            if network.context_channels:
                found = _openai_transformer(after, network.transformer_depth)
            else:
                found = {
                    **prefixed("norm", norm(f"{after}.norm")),
                    **prefixed(
                        "qkv", fused_qkv(f"{after}.qkv", channels, num_heads_at(network, channels), qkv, ndim=3)
                    ),
                    **prefixed("out", dense(f"{after}.proj_out", ndim=3)),
                }
            entries |= prefixed(attention_name(stage), found)
    return WeightMap(entries, ignored=ignored)


def openai_classifier(network: NoisyClassifier) -> WeightMap:
    """Guided diffusion's EncoderUNetModel with attention pooling."""
    entries = {
        **prefixed("conv_in", conv("input_blocks.0.0")),
        **time_mlp("time_embed.0", "time_embed.2"),
        **prefixed("norm_out", norm("out.0")),
        ("pool", "position"): transposed("out.2.positional_embedding"),
        **prefixed("pool/out", dense("out.2.c_proj", ndim=3)),
    }
    width = [round(network.base_channels * multiplier) for multiplier in network.multipliers]

    def attention(there: str, channels: int) -> Entries:
        heads = channels // network.head_channels
        return {
            **prefixed("norm", norm(f"{there}.norm")),
            **prefixed("qkv", fused_qkv(f"{there}.qkv", channels, heads, "h3c", ndim=3)),
            **prefixed("out", dense(f"{there}.proj_out", ndim=3)),
        }

    heads = width[-1] // network.head_channels
    entries |= prefixed("pool/qkv", fused_qkv("out.2.qkv_proj", width[-1], heads, "3hc", ndim=3))
    number, channels = 0, width[0]
    for level, features in enumerate(width):
        for index in range(network.num_res_blocks):
            number += 1
            stage, there = f"down_{level}_{index}", f"input_blocks.{number}"
            entries |= prefixed(stage, _openai_block(f"{there}.0", shortcut=channels != features))
            if network.image_size // 2**level in network.attention_resolutions:
                entries |= prefixed(f"{stage}_attention", attention(f"{there}.1", features))
            channels = features
        if level < len(width) - 1:
            number += 1
            stage = f"down_{level}_downsample"
            entries |= prefixed(stage, _openai_block(f"input_blocks.{number}.0", shortcut=False))
    for index in range(2):
        entries |= prefixed(f"middle_{index}", _openai_block(f"middle_block.{2 * index}", shortcut=False))
    entries |= prefixed("middle_attention", attention("middle_block.1", channels))
    return WeightMap(entries)


def ldm_unet(network: UNet) -> WeightMap:
    """A whole checkpoint of latent diffusion: its U-Net and the table of labels; the autoencoder is skipped."""
    return openai_unet(
        network,
        prefix="model.diffusion_model.",
        label="cond_stage_model.embedding",
        ignored=(
            r"first_stage_model\..*",
            r"model_ema\..*",
            r"(alphas|sqrt|log|posterior|betas|logvar|scale_factor|lvlb).*",
            *(() if network.label_context else (r"cond_stage_model\..*",)),
        ),
    )


def diffusers_unet(network: UNet) -> WeightMap:
    """diffusers' UNet2DModel."""
    levels = len(network.channel_multipliers)

    def block(there: str, *, shortcut: bool) -> Entries:
        return {
            **prefixed("norm_0", norm(f"{there}.norm1")),
            **prefixed("conv_0", conv(f"{there}.conv1")),
            **prefixed("time", dense(f"{there}.time_emb_proj")),
            **prefixed("norm_1", norm(f"{there}.norm2")),
            **prefixed("conv_1", conv(f"{there}.conv2")),
            **(prefixed("shortcut", dense(f"{there}.conv_shortcut", ndim=4)) if shortcut else {}),
        }

    entries = {
        **prefixed("conv_in", conv("conv_in")),
        **time_mlp("time_embedding.linear_1", "time_embedding.linear_2"),
        **prefixed("norm_out", norm("conv_norm_out")),
        **prefixed("conv_out", conv("conv_out")),
    }
    if network.num_classes:
        entries["label", "embedding"] = same("class_embedding.weight")
    for stage, kind, level, _, shortcut, attend in unet_stages(network):
        side, index = stage.split("_")[0], stage.split("_")[-1]
        here = {"down": f"down_blocks.{level}", "up": f"up_blocks.{levels - 1 - level}", "middle": "mid_block"}[side]
        if kind == "block":
            entries |= prefixed(stage, block(f"{here}.resnets.{index}", shortcut=shortcut))
        elif network.resampling == "residual":
            entries |= prefixed(stage, block(f"{here}.{side}samplers.0", shortcut=False))
        elif network.resampling == "conv":
            entries |= prefixed(stage, conv(f"{here}.{side}samplers.0.conv"))
        if attend:
            there = f"{here}.attentions.{index}"
            has_norm = network.middle_attention_norm or side != "middle"
            entries |= prefixed(
                attention_name(stage),
                {
                    **(prefixed("norm", norm(f"{there}.group_norm")) if has_norm else {}),
                    **prefixed("qkv", separate_qkv([f"{there}.to_{letter}" for letter in "qkv"])),
                    **prefixed("out", dense(f"{there}.to_out.0")),
                },
            )
    return WeightMap(entries)


def _nin(name: str) -> Entries:
    """score SDE's 1x1 layer, whose matrix is [in, out] there too."""
    return {("kernel",): same(f"{name}.W"), ("bias",): same(f"{name}.b")}


def _nin_attention(name: str) -> Entries:
    layers = [_nin(f"{name}.NIN_{index}") for index in range(3)]
    return {
        **prefixed("norm", norm(f"{name}.GroupNorm_0")),
        **prefixed("qkv", {path: joined([layer[path] for layer in layers]) for path in layers[0]}),
        **prefixed("out", _nin(f"{name}.NIN_3")),
    }


def score_sde_ddpm(network: UNet) -> WeightMap:
    """score_sde_pytorch's `ddpm`, where modules are numbered in the order of computation."""
    entries: Entries = time_mlp("all_modules.0", "all_modules.1")
    number = 2

    def take() -> str:
        nonlocal number
        number += 1
        return f"all_modules.{number - 1}"

    entries |= prefixed("conv_in", conv(take()))
    for stage, kind, _, _, shortcut, attend in unet_stages(network):
        there = take()
        if kind == "block":
            entries |= prefixed(
                stage,
                {
                    **prefixed("norm_0", norm(f"{there}.GroupNorm_0")),
                    **prefixed("conv_0", conv(f"{there}.Conv_0")),
                    **prefixed("time", dense(f"{there}.Dense_0")),
                    **prefixed("norm_1", norm(f"{there}.GroupNorm_1")),
                    **prefixed("conv_1", conv(f"{there}.Conv_1")),
                    **(prefixed("shortcut", _nin(f"{there}.NIN_0")) if shortcut else {}),
                },
            )
        else:
            entries |= prefixed(stage, conv(f"{there}.Conv_0"))
        if attend:
            entries |= prefixed(attention_name(stage), _nin_attention(take()))
    entries |= prefixed("norm_out", norm(take()))
    entries |= prefixed("conv_out", conv(take()))
    return WeightMap(entries, ignored=("sigmas",))


def song_stages(network: SongUNet) -> list[tuple[str, int, int, bool, bool]]:
    """The stages of a SongUNet in order: (name here, level, channels out, shortcut layer, attention)."""
    width = [network.base_channels * multiplier for multiplier in network.channel_multipliers]
    attends = [network.image_size // 2**level in network.attention_resolutions for level in range(len(width))]
    stages, channels = [], network.base_channels
    kept = [channels]
    for level, features in enumerate(width):
        if level:
            stages.append((f"down_{level}_downsample", level, channels, True, False))
            kept.append(channels)
        for block in range(network.num_res_blocks):
            stages.append((f"down_{level}_{block}", level, features, channels != features, attends[level]))
            channels = features
            kept.append(channels)
    last = len(width) - 1
    stages += [("middle_0", last, channels, False, True), ("middle_1", last, channels, False, False)]
    for level in reversed(range(len(width))):
        if level < last:
            stages.append((f"up_{level}_upsample", level, channels, True, False))
        for block in range(network.num_res_blocks + 1):
            attend = attends[level] and block == network.num_res_blocks
            shortcut = channels + kept.pop() != width[level]
            stages.append((f"up_{level}_{block}", level, width[level], shortcut, attend))
            channels = width[level]
    return stages


def score_sde_ncsnpp(network: SongUNet) -> WeightMap:
    """score_sde_pytorch's `ncsnpp` with BigGAN blocks, which is also DDPM++; modules are numbered in order."""
    number = 0

    def take() -> str:
        nonlocal number
        number += 1
        return f"all_modules.{number - 1}"

    entries: Entries = {}
    if network.embedding == "fourier":
        entries["time", "frozen_frequencies"] = same(f"{take()}.W")
    entries |= prefixed("dense_0", dense(take()))
    entries |= prefixed("dense_1", dense(take()))
    entries |= prefixed("conv_in", conv(take()))
    for stage, level, _, shortcut, attend in song_stages(network):
        there = take()
        entries |= prefixed(
            stage,
            {
                **prefixed("norm_0", norm(f"{there}.GroupNorm_0")),
                **prefixed("conv_0", conv(f"{there}.Conv_0")),
                **prefixed("time", dense(f"{there}.Dense_0")),
                **prefixed("norm_1", norm(f"{there}.GroupNorm_1")),
                **prefixed("conv_1", conv(f"{there}.Conv_1")),
                **(prefixed("shortcut", dense(f"{there}.Conv_2", ndim=4)) if shortcut else {}),
            },
        )
        if stage.endswith("downsample") and network.encoder == "skip":
            entries |= prefixed(f"down_{level}_image", dense(f"{take()}.Conv_0", ndim=4))
        if stage.endswith("downsample") and network.encoder == "residual":
            there = f"{take()}.Conv2d_0"
            entries[f"down_{level}_image", "Conv_0", "kernel"] = convolution_kernel(f"{there}.weight")
            entries[f"down_{level}_image", "bias"] = same(f"{there}.bias")
        if attend:
            entries |= prefixed(f"{stage}_attention", _nin_attention(take()))
        if stage == f"up_{level}_{network.num_res_blocks}" and (network.decoder == "skip" or level == 0):
            entries |= prefixed(f"up_{level}_image_norm", norm(take()))
            entries |= prefixed(f"up_{level}_image", conv(take()))
    return WeightMap(entries, ignored=("sigmas",))
