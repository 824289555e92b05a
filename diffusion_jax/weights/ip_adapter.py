"""Reads and writes files of IP-Adapters (Ye et al. 2023, arXiv:2308.06721): base and plus.

    image_proj.*                               the projection of a picture to tokens
    ip_adapter.{1,3,5,...}.to_k_ip.weight      keys and values of every attention to the text: first the transformers
    ip_adapter.{1,3,5,...}.to_v_ip.weight      of the downward path, then of the upward path, then the middle's

.safetensors files have these names; .bin files have them in two tables.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditional_unet import ConditionalUNet
from diffusion_jax.models.image_prompt import (
    ATTENTION,
    PROJECTION,
    ImageProjection,
    Resampler,
    attention_shapes,
    projection_shapes,
)
from diffusion_jax.weights.names import Entry, State, WeightMap, dense, norm, prefixed, same, stacked, transposed
from diffusion_jax.weights.names import Path as TreePath
from diffusion_jax.weights.reading import read_tree, write_state

_TABLES = ("image_proj", "ip_adapter")
_HEAD = 64
Entries = dict[TreePath, Entry | tuple[Entry, ...]]


class IpAdapterFile(NamedTuple):
    """An IP-Adapter read from a file.

    Attributes:
      projection: the module that turns pictures into tokens.
      features: channels of its input from the encoder.
      own: its parameters, see `models/image_prompt.py`.
    """

    projection: nn.Module
    features: int
    own: dict[str, PyTree]


def read_ip_adapter(path: Path | str, network: Any) -> IpAdapterFile:
    """Read the adapter in a file for a U-Net.

    Raises:
      UserError: the network does not attend to a text, or the file is damaged, of another kind or for another network;
        the message says what differs.
    """
    stages, width = require_unet(network)
    state = _state(Path(path).expanduser())
    try:
        projection, features = _projection(state)
        _require_base(state, network)
        shapes = {
            PROJECTION: projection_shapes(projection, features),
            ATTENTION: attention_shapes(stages, width),
        }
        own = ip_adapter_map(projection, network).params(state, shapes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return IpAdapterFile(projection, features, own)


def write_ip_adapter(path: Path | str, adapter: IpAdapterFile, network: Any) -> None:
    """Write an adapter under the published names."""
    require_unet(network)
    write_state(path, ip_adapter_map(adapter.projection, network).state(adapter.own), {"format": "pt"})


def require_unet(network: Any) -> tuple[list[Any], int]:
    """The transformers of a network, and the width of its text.

    Raises:
      UserError: it is no text-conditioned U-Net.
    """
    if not isinstance(network, ConditionalUNet):
        raise UserError(
            f"an IP-Adapter needs a text-conditioned U-Net (Stable Diffusion 1, 2 and XL), but the network is a "
            f"{type(network).__name__}"
        )
    return network.transformers(), network.context_channels


def ip_adapter_map(projection: nn.Module, network: ConditionalUNet) -> WeightMap:
    """The names of all parameters."""
    resampler = projection.reads_patches
    entries: Entries = prefixed(PROJECTION, _of_resampler(projection) if resampler else _of_vector())
    number = -1
    for stage in network.transformers():
        blocks = []
        for _ in range(stage.depth):
            number += 2  # after the self-attention before each
            there = f"ip_adapter.{number}"
            blocks.append({(n,): transposed(f"{there}.to_{n[0]}_ip.weight") for n in ("key", "value")})
        entries |= stacked(f"{ATTENTION}/{stage.attention_name}", blocks)
    return WeightMap(entries)


def _of_vector() -> dict[TreePath, Entry]:
    return {
        **prefixed("proj", dense("image_proj.proj")),
        **prefixed("norm", norm("image_proj.norm")),
    }


def _of_resampler(projection: Resampler) -> dict[TreePath, Entry]:
    entries = {
        ("latents",): same("image_proj.latents").then(lambda x: x[0], lambda x: x[None]),
        **prefixed("proj_in", dense("image_proj.proj_in")),
        **prefixed("proj_out", dense("image_proj.proj_out")),
        **prefixed("norm_out", norm("image_proj.norm_out")),
    }
    names = {"query": "0.to_q", "key_value": "0.to_kv", "out": "0.to_out", "mlp_in": "1.1", "mlp_out": "1.3"}
    norms = {"norm_states": "0.norm1", "norm_queries": "0.norm2", "norm_mlp": "1.0"}
    for layer in range(projection.depth):
        there = f"image_proj.layers.{layer}"
        for ours, theirs in names.items():
            entries |= prefixed(f"layer_{layer}/{ours}", dense(f"{there}.{theirs}", bias=False))
        for ours, theirs in norms.items():
            entries |= prefixed(f"layer_{layer}/{ours}", norm(f"{there}.{theirs}"))
    return entries


def _state(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file; those of two tables get one name each."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the file of the IP-Adapter in it")
    if not path.is_file():
        raise UserError(f"there is no IP-Adapter {path}: no such file")
    tree = read_tree(path)
    if isinstance(tree, Mapping) and set(tree) == set(_TABLES):
        tables = {table: tree[table] for table in _TABLES}
        if all(isinstance(table, Mapping) for table in tables.values()):
            tree = {f"{table}.{name}": value for table, inner in tables.items() for name, value in inner.items()}
    names = list(tree) if isinstance(tree, Mapping) else []
    if not all(isinstance(value, np.ndarray) for value in tree.values()) if names else True:
        raise UserError(f"{path} holds no tensors of an IP-Adapter")
    if not any(name.startswith("ip_adapter.") for name in names):
        shown = ", ".join(map(str, names[:4]))
        raise UserError(
            f"{path} is not a file of an IP-Adapter: it has no ip_adapter.1.to_k_ip.weight, but {shown} ..."
        )
    return dict(tree)


def _projection(state: State) -> tuple[nn.Module, int]:
    """The module for `image_proj`, and the channels that it reads."""
    if "image_proj.latents" in state:
        layers = {name.split(".")[2] for name in state if name.startswith("image_proj.layers.")}
        queries, states, output, latents, units = (
            _matrix(state, f"image_proj.{name}", ndim)
            for name, ndim in (("layers.0.0.to_q.weight", 2), ("proj_in.weight", 2), ("proj_out.weight", 2),
                               ("latents", 3), ("layers.0.1.1.weight", 2))
        )  # fmt: skip
        if queries[0] % _HEAD:
            raise UserError(
                f"image_proj.layers.0.0.to_q.weight has {queries[0]} rows, which is not a multiple of the head size "
                f"{_HEAD}"
            )
        module = Resampler(
            tokens=latents[1], width=output[0], hidden=latents[2], depth=len(layers), heads=queries[0] // _HEAD,
            hidden_units=units[0],
        )  # fmt: skip
        return module, states[1]
    if "image_proj.proj.weight" not in state:
        found = [name for name in state if name.startswith("image_proj.")]
        raise UserError(
            f"its projection is neither that of an IP-Adapter (image_proj.proj.weight) nor of a plus one "
            f"(image_proj.latents), which are known here; it has {', '.join(found[:3]) or 'none'}"
        )
    (rows, columns), (width,) = _matrix(state, "image_proj.proj.weight", 2), _matrix(state, "image_proj.norm.weight", 1)
    if not width or rows % width or not rows:
        raise UserError(f"image_proj.proj.weight has {rows} rows, which is not a multiple of {width} channels")
    return ImageProjection(tokens=rows // width, width=width), columns


def _matrix(state: State, name: str, ndim: int) -> tuple[int, ...]:
    if name not in state or np.ndim(state[name]) != ndim:
        raise UserError(f"{name} is missing or has other axes than {ndim}: the file is damaged")
    return np.shape(state[name])


def _require_base(state: State, network: ConditionalUNet) -> None:
    """Raise UserError if the number or the widths of the attentions are those of another network."""
    stages = network.transformers()
    ours = [(stage.features, network.context_channels) for stage in stages for _ in range(stage.depth)]
    numbers = sorted({int(n) for n in (name.split(".")[1] for name in state if ".to_k_ip" in name) if n.isdigit()})
    theirs = [tuple(np.shape(state[f"ip_adapter.{n}.to_k_ip.weight"])) for n in numbers
              if f"ip_adapter.{n}.to_k_ip.weight" in state]  # fmt: skip
    if theirs and theirs[0][-1:] != ours[0][-1:]:
        raise UserError(
            f"it is for another base: its tokens have {theirs[0][-1]} channels, but the network's text has "
            f"{ours[0][-1]}"
        )
    if len(theirs) > len(ours) or (len(theirs) == len(ours) and theirs != ours):
        different = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        which = "" if different is None else f"; the attention {numbers[different]} is {theirs[different]}, here "
        which += "" if different is None else f"{ours[different]}"
        raise UserError(
            f"it is for another base: it has {len(theirs)} attentions to the text, but the network has "
            f"{len(ours)}{which}"
        )
