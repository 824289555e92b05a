"""Meshes, sharding rules and the two ways to run one step on many devices. Nothing here knows of diffusion."""

from diffusion_jax.parallel.hosts import agree_to_stop, initialize_hosts, is_primary
from diffusion_jax.parallel.layout import LAYOUTS, JitLayout, Layout, PmapLayout
from diffusion_jax.parallel.rules import FSDP_RULES, REPLICATED_RULES, TENSOR_RULES, shardings

__all__ = [
    "FSDP_RULES",
    "LAYOUTS",
    "REPLICATED_RULES",
    "TENSOR_RULES",
    "JitLayout",
    "Layout",
    "PmapLayout",
    "agree_to_stop",
    "initialize_hosts",
    "is_primary",
    "shardings",
]
