"""OpenCLIP's names for its text encoder, used in single files of Stable Diffusion 2 and XL.

Blocks in a file that the encoder here lacks are skipped: Stable Diffusion 2 reads the states before the last block.
"""

from collections.abc import Collection

import numpy as np

from diffusion_jax.models.encoders.clip import ClipText
from diffusion_jax.weights.names import Entry, Path, WeightMap, dense, norm, prefixed, same, stacked


def openclip_map(network: ClipText, names: Collection[str] = ()) -> WeightMap:
    """The map of OpenCLIP's names.

    Args:
      network: the encoder.
      names: the tensors in a file, not used here.
    """
    entries: dict[Path, Entry | tuple[Entry, ...]] = {
        ("token",): same("token_embedding.weight"),
        ("position",): same("positional_embedding"),
        **prefixed("norm", norm("ln_final")),
        **stacked("blocks", (_block(f"transformer.resblocks.{i}") for i in range(network.depth))),
    }
    ignored = ["logit_scale", "attn_mask"]
    if network.projection:
        entries["projection", "kernel"] = same("text_projection")
    else:
        ignored.append("text_projection")
    beyond = "|".join(str(i) for i in range(network.depth))
    ignored.append(rf"transformer\.resblocks\.(?!({beyond})\.).*")
    return WeightMap(entries, ignored=tuple(ignored))


def _block(there: str) -> dict[Path, Entry]:
    fused = f"{there}.attn.in_proj_"
    return {
        **prefixed("norm_1", norm(f"{there}.ln_1")),
        ("qkv", "kernel"): same(f"{fused}weight").then(np.transpose, np.transpose),
        ("qkv", "bias"): same(f"{fused}bias"),
        **prefixed("attention_out", dense(f"{there}.attn.out_proj")),
        **prefixed("norm_2", norm(f"{there}.ln_2")),
        **prefixed("mlp_in", dense(f"{there}.mlp.c_fc")),
        **prefixed("mlp_out", dense(f"{there}.mlp.c_proj")),
    }
