"""A batch of pictures divided over the devices of this process."""

import dataclasses
from collections.abc import MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from diffusion_jax.pipelines.drawing import Given
from diffusion_jax.rng import BatchKey

_BATCH = "batch"


def batch_mesh(params: PyTree, rows: int) -> Mesh | None:
    """The devices that share `rows` pictures; None for a single device, or if the parameters are placed already."""
    devices = jax.local_devices()
    count = min(len(devices), rows)
    placed = any(getattr(leaf, "committed", False) for leaf in jax.tree.leaves(params))
    return None if count == 1 or placed else Mesh(np.array(devices[:count]), (_BATCH,))


def over(mesh: Mesh, rows: int, start: Any, given: Given, key: BatchKey) -> tuple[Any, Given, BatchKey]:
    """The state, the inputs and the key, with the axis of `rows` padded with its last row and divided over the mesh."""
    more = -rows % mesh.size

    def divided(leaf: Any, axis: int = 0) -> Any:
        leaf = jnp.asarray(leaf)
        widths = [(0, more if number == axis else 0) for number in range(leaf.ndim)]
        leaf = jnp.pad(leaf, widths, mode="edge")
        spec = PartitionSpec(*(None,) * axis, _BATCH)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    numbers = {"numbers": given.numbers}  # by step, not by row
    rest = {name: value for name, value in vars(given).items() if name not in numbers}
    given = Given(**jax.tree.map(divided, rest), **numbers)
    changed: dict[str, Any] = {"index": divided(key.index), "size": rows + more}
    if hasattr(key, "noise"):
        changed["noise"] = divided(key.noise, 1)
    return divided(start), given, dataclasses.replace(key, **changed)


def replicated(mesh: Mesh, name: str, params: PyTree, kept: MutableMapping[Any, Any]) -> PyTree:
    """The parameters on every device of the mesh; they are copied once, and `kept`."""
    if (name, mesh) not in kept:
        kept[name, mesh] = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    return kept[name, mesh]
