"""The table of formats: the names of a network's weights elsewhere."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models import (
    ConditionalUNet,
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
from diffusion_jax.weights.published import unet as conditional_unet


def own(network: nn.Module) -> WeightMap:
    """This package's own names: the paths of parameters with slashes."""
    paths = flatten_dict(parameter_shapes(network))
    return WeightMap({path: same("/".join(path)) for path in paths})


def vdm(network: VDMUNet) -> WeightMap:
    """The score network in the VDM code's Flax checkpoints, flattened to names with slashes."""
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
    "diffusers_conditional_unet": (ConditionalUNet, conditional_unet.diffusers_map),
    "stable_diffusion": (ConditionalUNet, conditional_unet.original_map),
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
      UserError: the format is unknown, or for another kind of network.
    """
    if name not in FORMATS:
        raise UserError(unknown_name("format of weights", name, list(FORMATS)))
    kind, build = FORMATS[name]
    if not isinstance(network, kind):
        raise UserError(f"format {name} is for {kind.__name__}, but the network is a {type(network).__name__}")
    return build(network)


# Older names of tensors and their present names, for diffusers' attention.
_RENAMED = (
    (re.compile(r"\.(query|key|value)\.(?=weight$|bias$)"), lambda match: f".to_{match[1][0]}."),
    (re.compile(r"\.proj_attn\.(?=weight$|bias$)"), lambda match: ".to_out.0."),
)


def find_format(network: nn.Module, state: State) -> str:
    """The format that has the names of the tensors; see `fitted`."""
    return fitted(network, state)[0]


def fitted(network: nn.Module, state: State, *, form: str | None = None) -> tuple[str, dict[str, np.ndarray]]:
    """The format of tensors, and the network's tensors under the format's own names.

    All names may have one prefix ("model.", "backbone.") more or less than the format's; tensors without that prefix
    belong to something else and are left out. Older names are replaced by present ones.

    Args:
      network: the network here.
      state: tensors by name.
      form: the format, if it is known; otherwise the names determine it.

    Raises:
      UserError: `form` is not given and the names fit no format; the message describes the difference to the nearest
        one. Or two prefixes hold the network.
    """
    names = {}
    for name, (kind, build) in FORMATS.items():
        if isinstance(network, kind) and form in (None, name):
            try:
                names[name] = build(network).names()
            except UserError:
                if form is not None:
                    raise
    for tensors in (state, _renamed(state)):
        for name, wanted in names.items():
            if all(tensor in tensors for tensor in wanted):
                return name, dict(tensors)
        for name, wanted in names.items():
            found = _below_prefix(wanted, tensors)
            if found is not None:
                return name, found
    if form is not None:
        return form, dict(state)  # reading it reports what is missing
    raise UserError(_nearest(network, names, state))


def _renamed(state: State) -> dict[str, np.ndarray]:
    def now(name: str) -> str:
        for old, new in _RENAMED:
            name = old.sub(new, name)
        return name

    return {now(name): value for name, value in state.items()}


def _below_prefix(wanted: Sequence[str], state: State) -> dict[str, np.ndarray] | None:
    """The tensors under a prefix below which all wanted names exist; it may be the format's own prefix."""
    first = re.match(r"(?:[^./]+[./])*", wanted[0])[0]
    own = next((start for start in _starts(first) if all(name.startswith(start) for name in wanted)), "")
    for less in dict.fromkeys(("", own)):
        anchor = wanted[0].removeprefix(less)
        prefixes = [
            prefix
            for name in state
            if name.endswith(anchor)
            and (not (prefix := name.removesuffix(anchor)) or prefix.endswith((".", "/")))
            and all(prefix + other.removeprefix(less) in state for other in wanted)
        ]
        if len(prefixes) > 1:
            raise UserError(
                f"the file has {len(prefixes)} networks of this kind, under {', '.join(prefixes)}: say which with "
                f"--entry, as --entry={prefixes[0].strip('./')}"
            )
        if prefixes:
            cut = len(prefixes[0])
            return {less + name[cut:]: value for name, value in state.items() if name.startswith(prefixes[0])}
    return None


def _starts(prefix: str) -> list[str]:
    """A prefix and all shorter ones that end at a part of a name, the longest first."""
    return [prefix[: part.end()] for part in re.finditer(r"[./]", prefix)][::-1]


def _nearest(network: nn.Module, names: Mapping[str, Sequence[str]], state: State) -> str:
    """The error about tensors whose names fit no format."""
    absent = {name: [tensor for tensor in wanted if tensor not in state] for name, wanted in names.items()}
    nearest = min(absent, key=lambda name: len(absent[name]) / len(names[name]))
    start = (
        f"these weights have the names of no format of a {type(network).__name__} ({', '.join(names)}); "
        f"they are {', '.join(list(state)[:3])} ..."
    )
    if len(absent[nearest]) == len(names[nearest]):
        return f"{start} and no format has one of them; {nearest}, as an example, has {names[nearest][0]}"
    count, first = len(absent[nearest]), absent[nearest][0]
    return f"{start}; the nearest is {nearest}, which has {count} names that are missing here, the first {first}"


def load_params(network: nn.Module, state: State, *, form: str | None = None) -> PyTree:
    """The parameters of a network from tensors by name; the format is detected if it is not given.

    Raises:
      UserError: the tensors do not belong to this network.
    """
    if form is not None:
        weight_map(form, network)  # reports what is wrong with the name
    form, tensors = fitted(network, state, form=form)
    return weight_map(form, network).params(tensors, parameter_shapes(network))
