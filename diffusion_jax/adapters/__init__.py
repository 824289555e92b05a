"""Adapters: small trees of parameters that change a frozen network or its conditions, without changing its code."""

from diffusion_jax.adapters.adapter import (
    ADAPTERS,
    Adapter,
    Own,
    Weights,
    apply,
    count,
    merge,
    unmerge,
    weighted,
    with_dropout,
)
from diffusion_jax.adapters.forms import SCALE
from diffusion_jax.adapters.merging import MERGINGS, Merging, merge_models
from diffusion_jax.adapters.rows import TextualInversion
from diffusion_jax.adapters.steering import STEERINGS, ControlNetAdapter, IpAdapter, Steering
from diffusion_jax.adapters.weights import Loha, Lokr, Lora

__all__ = [
    "ADAPTERS",
    "MERGINGS",
    "SCALE",
    "STEERINGS",
    "Adapter",
    "ControlNetAdapter",
    "IpAdapter",
    "Loha",
    "Lokr",
    "Lora",
    "Merging",
    "Own",
    "Steering",
    "TextualInversion",
    "Weights",
    "apply",
    "count",
    "merge",
    "merge_models",
    "unmerge",
    "weighted",
    "with_dropout",
]
