"""Names of the U-Nets in the code of EDM (DDPM++, NCSN++ and ADM) and of EDM2."""

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.models import EDM2UNet, SongUNet, UNet
from diffusion_jax.weights.names import (
    WeightMap,
    conv,
    convolution_kernel,
    dense,
    fused_qkv,
    norm,
    prefixed,
    qkv_order,
    reordered,
    same,
    transposed,
)
from diffusion_jax.weights.unet_maps import Entries, attention_name, num_heads_at, song_stages, time_mlp, unet_stages


def _filter(taps: tuple[float, ...]) -> np.ndarray:
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2
    return kernel[None, None]


def _edm_block(there: str, channels: int, *, shortcut: bool, heads: int) -> tuple[Entries, Entries]:
    block = {
        **prefixed("norm_0", norm(f"{there}.norm0")),
        **prefixed("conv_0", conv(f"{there}.conv0")),
        **prefixed("time", dense(f"{there}.affine")),
        **prefixed("norm_1", norm(f"{there}.norm1")),
        **prefixed("conv_1", conv(f"{there}.conv1")),
        **(prefixed("shortcut", dense(f"{there}.skip", ndim=4)) if shortcut else {}),
    }
    if not heads:
        return block, {}
    return block, {
        **prefixed("norm", norm(f"{there}.norm2")),
        **prefixed("qkv", fused_qkv(f"{there}.qkv", channels, heads, "hc3", ndim=4)),
        **prefixed("out", dense(f"{there}.proj", ndim=4)),
    }


def _edm_name(stage: str, level: int, image_size: int) -> str:
    """The name of a block, which in EDM contains its resolution."""
    side, kind = stage.split("_")[0], stage.split("_")[-1]
    half = "enc" if side == "down" else "dec"
    ending = {"downsample": "down", "upsample": "up"}.get(kind, f"in{kind}" if side == "middle" else f"block{kind}")
    size = image_size >> level
    return f"{half}.{size}x{size}_{ending}"


def edm_song(network: SongUNet) -> WeightMap:
    """EDM's SongUNet, inside its preconditioning (prefix "model.")."""
    size = network.image_size
    entries = {
        **prefixed("dense_0", dense("model.map_layer0")),
        **prefixed("dense_1", dense("model.map_layer1")),
        **prefixed("conv_in", conv(f"model.enc.{size}x{size}_conv")),
    }
    if network.embedding == "fourier":
        entries["time", "frozen_frequencies"] = same("model.map_noise.freqs")
    if network.num_classes:
        entries |= prefixed("label", dense("model.map_label"))
    if network.augment_channels:
        entries |= prefixed("augment", dense("model.map_augment", bias=False))
    constants = {}
    for stage, level, channels, shortcut, attend in song_stages(network):
        there = f"model.{_edm_name(stage, level, size)}"
        block, attention = _edm_block(there, channels, shortcut=shortcut, heads=1 if attend else 0)
        entries |= prefixed(stage, block)
        if attend:
            entries |= prefixed(f"{stage}_attention", attention)
        if stage.endswith("sample"):
            constants |= {f"{there}.{part}.resample_filter": _filter(network.taps) for part in ("conv0", "skip")}
        aux = f"model.{'enc' if stage.startswith('down') else 'dec'}.{size >> level}x{size >> level}_aux"
        if stage.endswith("downsample") and network.encoder == "skip":
            entries |= prefixed(f"down_{level}_image", dense(f"{aux}_skip", ndim=4))
            constants[f"{aux}_down.resample_filter"] = _filter(network.taps)
        if stage.endswith("downsample") and network.encoder == "residual":
            entries[f"down_{level}_image", "Conv_0", "kernel"] = convolution_kernel(f"{aux}_residual.weight")
            entries[f"down_{level}_image", "bias"] = same(f"{aux}_residual.bias")
            constants[f"{aux}_residual.resample_filter"] = _filter(network.taps)
        if stage == f"up_{level}_{network.num_res_blocks}" and (network.decoder == "skip" or level == 0):
            entries |= prefixed(f"up_{level}_image_norm", norm(f"{aux}_norm"))
            entries |= prefixed(f"up_{level}_image", conv(f"{aux}_conv"))
        if stage.endswith("upsample") and network.decoder == "skip":
            constants[f"{aux}_up.resample_filter"] = _filter(network.taps)
    return WeightMap(entries, constants=constants)


def edm_adm(network: UNet) -> WeightMap:
    """EDM's DhariwalUNet, inside its preconditioning (prefix "model.")."""
    if network.resampling != "residual" or not network.scale_shift:
        raise UserError("EDM's ADM changes resolution in residual blocks and scales and shifts: use the model adm")
    size = network.image_size
    entries = {
        **time_mlp("model.map_layer0", "model.map_layer1"),
        **prefixed("conv_in", conv(f"model.enc.{size}x{size}_conv")),
        **prefixed("norm_out", norm("model.out_norm")),
        **prefixed("conv_out", conv("model.out_conv")),
    }
    if network.num_classes:
        entries["label", "embedding"] = transposed("model.map_label.weight")
    if network.augment_channels:
        entries |= prefixed("augment", dense("model.map_augment", bias=False))
    constants = {}
    for stage, kind, level, channels, shortcut, attend in unet_stages(network):
        # The name of a block that changes resolution contains the new resolution.
        to = level + {"downsample": 1, "upsample": -1}.get(stage.split("_")[-1], 0)
        there = f"model.{_edm_name(stage, to, size)}"
        heads = num_heads_at(network, channels) if attend else 0
        block, attention = _edm_block(there, channels, shortcut=shortcut, heads=heads)
        entries |= prefixed(stage, block)
        if attend:
            entries |= prefixed(attention_name(stage), attention)
        if kind == "resample":
            constants |= {f"{there}.{part}.resample_filter": _filter((1, 1)) for part in ("conv0", "skip")}
    return WeightMap(entries, constants=constants)


def edm2(network: EDM2UNet) -> WeightMap:
    """EDM2's U-Net, inside its preconditioning (prefix "unet."); the head for the uncertainty is skipped."""
    size = network.image_size
    width = [network.base_channels * multiplier for multiplier in network.channel_multipliers]
    attends = [size // 2**level in network.attention_resolutions for level in range(len(width))]
    entries: Entries = {
        ("time_waves", "frozen_frequencies"): same("unet.emb_fourier.freqs"),
        ("time_waves", "frozen_phases"): same("unet.emb_fourier.phases"),
        ("time", "kernel"): transposed("unet.emb_noise.weight"),
        ("conv_in", "kernel"): convolution_kernel(f"unet.enc.{size}x{size}_conv.weight"),
        ("conv_out", "kernel"): convolution_kernel("unet.out_conv.weight"),
        ("out_gain",): same("unet.out_gain"),
    }
    if network.num_classes:
        entries["label", "kernel"] = transposed("unet.emb_label.weight")

    def add(stage: str, level: int, *, shortcut: bool, attend: bool) -> None:
        there = f"unet.{_edm_name(stage, level, size)}"
        entries[stage, "gain"] = same(f"{there}.emb_gain")
        entries[stage, "conv_0", "kernel"] = convolution_kernel(f"{there}.conv_res0.weight")
        entries[stage, "time", "kernel"] = transposed(f"{there}.emb_linear.weight")
        entries[stage, "conv_1", "kernel"] = convolution_kernel(f"{there}.conv_res1.weight")
        if shortcut:
            entries[stage, "skip", "kernel"] = convolution_kernel(f"{there}.conv_skip.weight")
        if attend:
            order = qkv_order(width[level], width[level] // network.head_channels, "hc3")
            qkv = convolution_kernel(f"{there}.attn_qkv.weight")
            entries[stage, "qkv", "kernel"] = reordered(qkv, order)
            entries[stage, "out", "kernel"] = convolution_kernel(f"{there}.attn_proj.weight")

    channels = width[0]
    kept = [channels]
    for level, features in enumerate(width):
        if level:
            add(f"down_{level}_downsample", level, shortcut=False, attend=False)
            kept.append(channels)
        for block in range(network.num_res_blocks):
            add(f"down_{level}_{block}", level, shortcut=channels != features, attend=attends[level])
            channels = features
            kept.append(channels)
    last = len(width) - 1
    add("middle_0", last, shortcut=False, attend=True)
    add("middle_1", last, shortcut=False, attend=False)
    for level in reversed(range(len(width))):
        if level < last:
            add(f"up_{level}_upsample", level, shortcut=False, attend=False)
        for block in range(network.num_res_blocks + 1):
            add(f"up_{level}_{block}", level, shortcut=channels + kept.pop() != width[level], attend=attends[level])
            channels = width[level]
    return WeightMap(entries, ignored=(r"logvar_(fourier|linear)\..*",))
