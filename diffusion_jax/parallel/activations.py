"""How activations lie on a mesh: every device keeps its own examples.

The rules of `rules.py` divide parameters. What is computed from them must be told apart: left alone, the compiler may
gather the activations of the whole batch where it should gather the weights of one layer (DiT-XL/2, 16 devices, fsdp:
seven times the bytes). `JitLayout` puts its mesh in force while a step is traced; without one (one device, `pmap`, a
network called by itself) nothing happens here.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

BATCH_AXES = ("data", "fsdp")
"""Mesh axes that divide the examples of a batch."""


@contextlib.contextmanager
def in_force(mesh: Mesh) -> Iterator[None]:
    """Trace under a mesh."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def batch_sharded(x: Array) -> Array:
    """`x`, whose leading axis is the batch, divided by examples; the compiler may place the other axes as it likes.

    A batch that does not divide among the devices is left to the compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    if not axes or x.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return x
    spec = PartitionSpec(axes, *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


def by_example(operation: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
    """`operation(x, kernel)` of a layer, every device for its own examples: a sharded kernel is gathered, not they.

    Args:
      operation: of activations and weights; the leading axis of `x` and of the result is the batch.
      x: activations.
      kernel: the layer's weights, perhaps sharded.
    """
    return batch_sharded(operation(batch_sharded(x), kernel))
