"""Meshes, sharding rules and the two ways to run one step on many devices. This room knows nothing of diffusion."""

from diffusion_jax.parallel.hosts import any_process, initialize_hosts, is_primary, require_same, wait_for_all
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
    "any_process",
    "initialize_hosts",
    "is_primary",
    "require_same",
    "shardings",
    "wait_for_all",
]
