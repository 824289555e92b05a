"""Trained ControlNets and IP-Adapters in the form that other programs read: a folder, and a file."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.adapters import Steering
from diffusion_jax.files import expanded, whole_directory
from diffusion_jax.weights.folders import STEMS
from diffusion_jax.weights.ip_adapter import IpAdapterFile, write_ip_adapter
from diffusion_jax.weights.published.controlnet import diffusers_map
from diffusion_jax.weights.published.unet_config import describe_controlnet
from diffusion_jax.weights.reading import write_state


def save_steering(adapter: Steering, own: PyTree, network: Any, target: Path | str) -> None:
    """Write an adapter of a network, whole or not at all.

    A ControlNet becomes a folder that `from_pretrained(..., controlnet=...)` reads, an IP-Adapter a file that
    `load_ip_adapter` reads beside its image encoder.

    Raises:
      UserError: the folder exists already, or there is no published form for this network.
    """
    module, own = adapter.module(network), jax.tree.map(np.asarray, own)
    if not adapter.is_folder:
        write_ip_adapter(expanded(target), IpAdapterFile(module, adapter.features, own), network)
        return
    with whole_directory(expanded(target)) as folder:
        config = json.dumps(describe_controlnet(module), indent=2) + "\n"
        (folder / "config.json").write_bytes(config.encode())
        write_state(folder / f"{STEMS[0]}.safetensors", diffusers_map(module).state(own), {"format": "pt"})
