"""The table of formats: what the weights of a network are called elsewhere."""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models import (
    DDiT,
    DiT,
    EDM2UNet,
    JiT,
    NoisyClassifier,
    SongUNet,
    UNet,
    UViT,
    VDMUNet,
    ViT,
    parameter_shapes,
)
from diffusion_jax.registry import unknown_name
from diffusion_jax.weights import edm_maps, transformer_maps, unet_maps
from diffusion_jax.weights.names import State, WeightMap, same


def own(network: nn.Module) -> WeightMap:
    """This package's own names: the paths of parameters with strokes."""
    paths = flatten_dict(parameter_shapes(network))
    return WeightMap({path: same("/".join(path)) for path in paths})


def vdm(network: VDMUNet) -> WeightMap:
    """The score network of the VDM code's Flax checkpoints, flattened to names with strokes."""
    blocks = {"time": "cond_proj", "conv_0": "conv1", "conv_1": "conv2", "shortcut": "nin_shortcut"}
    attention = {"query": "q", "key": "k", "value": "v", "out": "proj_out", "norm": "GroupNorm_0"}
    norms = {"norm_0": "GroupNorm_0", "norm_1": "GroupNorm_1", "norm_out": "GroupNorm_0"}
    top = {"dense_0": "dense0", "dense_1": "dense1"}

    def there(path: tuple[str, ...]) -> str:
        first, *rest = path
        if len(path) == 2:
            return "/".join(({**top, "norm_out": norms["norm_out"]}.get(first, first), *rest))
        side, number = first.split("_")[:2]
        if side == "middle":
            block = "mid.attn_1" if first.endswith("attention") else f"mid.block_{int(number) + 1}"
        else:
            block = f"{side}.{'attn' if first.endswith('attention') else 'block'}_{number}"
        names = attention if first.endswith("attention") else {**blocks, **norms}
        return "/".join((block, names[rest[0]], rest[1]))

    return WeightMap({path: same(there(path)) for path in flatten_dict(parameter_shapes(network))})


# name -> (class of networks, the map)
FORMATS: Mapping[str, tuple[type[nn.Module], Callable[..., WeightMap]]] = {
    "diffusion_jax": (nn.Module, own),
    "dit": (DiT, transformer_maps.dit),
    "diffusers_dit": (DiT, transformer_maps.diffusers_dit),
    "uvit": (UViT, transformer_maps.uvit),
    "jit": (JiT, transformer_maps.jit),
    "min_snr_vit": (ViT, transformer_maps.min_snr_vit),
    "mdlm": (DDiT, transformer_maps.ddit),
    "guided_diffusion": (UNet, unet_maps.openai_unet),
    "guided_diffusion_classifier": (NoisyClassifier, unet_maps.openai_classifier),
    "guided_diffusion_new_order": (UNet, functools.partial(unet_maps.openai_unet, qkv="3hc")),
    "latent_diffusion": (UNet, unet_maps.ldm_unet),
    "diffusers_unet": (UNet, unet_maps.diffusers_unet),
    "score_sde_ddpm": (UNet, unet_maps.score_sde_ddpm),
    "score_sde": (SongUNet, unet_maps.score_sde_ncsnpp),
    "edm": (SongUNet, edm_maps.edm_song),
    "edm_adm": (UNet, edm_maps.edm_adm),
    "edm2": (EDM2UNet, edm_maps.edm2),
    "vdm": (VDMUNet, vdm),
}


def weight_map(name: str, network: nn.Module) -> WeightMap:
    """The map of a format for a network.

    Raises:
      UserError: an unknown format, or one of another kind of network.
    """
    if name not in FORMATS:
        raise UserError(unknown_name("format of weights", name, list(FORMATS)))
    kind, build = FORMATS[name]
    if not isinstance(network, kind):
        raise UserError(f"format {name} is of {kind.__name__}, and the network is a {type(network).__name__}")
    return build(network)


def find_format(network: nn.Module, state: State) -> str:
    """The format whose names are those of the tensors.

    Raises:
      UserError: none is; the message says how the nearest one differs.
    """
    differences = {}
    for name, (kind, build) in FORMATS.items():
        if not isinstance(network, kind):
            continue
        try:
            names = set(build(network).names())
        except UserError:
            continue
        missing = len(names - set(state))
        if not missing:
            return name
        differences[name] = missing / len(names)
    nearest = min(differences, key=differences.__getitem__)
    build = FORMATS[nearest][1]
    absent = sorted(set(build(network).names()) - set(state))
    raise UserError(
        f"these weights have the names of no format of a {type(network).__name__} ({', '.join(differences)}); "
        f"the nearest is {nearest}, of which {len(absent)} names are missing, the first {absent[0]}"
    )


def load_params(network: nn.Module, state: State, *, form: str | None = None) -> PyTree:
    """The parameters of a network from tensors by name; the format is recognised where none is given.

    Raises:
      UserError: the tensors are not of this network.
    """
    return weight_map(form or find_format(network, state), network).params(state, parameter_shapes(network))
