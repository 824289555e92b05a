"""Sharding by regular expressions on parameter names.

A rule is (pattern, spec); the first pattern found in the "/"-joined path of a leaf decides. A spec is a tuple of mesh
axis names (or None) for the leading dimensions, for the trailing ones when it begins with `...`, or the string
"largest:AXIS", which shards the largest dimension that AXIS divides. Optimizer moments and EMA copies carry the
parameter's path as a suffix of their own, so the same rules shard them in the same way.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError

Spec = str | tuple[Any, ...]
Rules = Sequence[tuple[str, Spec]]

REPLICATED_RULES: Rules = ((r".*", ()),)
# Matrices, kernels and embeddings are sharded; biases and norms are too small to be worth a gather.
FSDP_RULES: Rules = ((r"(kernel|embedding)$", "largest:fsdp"), (r".*", ()))

# A transformer's wide layers are split by columns, then by rows (Shoeybi et al. 2019, sec. 3); over fsdp vice versa.
# Each device computes the query, key and value of some heads. These columns are not contiguous, so they are stored by
# rows and exchanged where they are used (`models/layers.py`, QKV).
TENSOR_RULES: Rules = (
    (r"qkv/kernel$", (..., "tensor", "fsdp")),
    (r"mlp_in/kernel$", (..., "fsdp", "tensor")),
    (r"mlp_in/bias$", (..., "tensor")),
    (r"(_attention/out|attention_out|mlp_out)/kernel$", (..., "tensor", "fsdp")),
    *FSDP_RULES,
)


def path_name(path: tuple[Any, ...]) -> str:
    """The "/"-joined name of a leaf, for example "params/down_0/conv_1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _partition(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
    if spec is None:
        raise UserError(f"no sharding rule matches parameter {name!r}; end the rules with ('.*', ())")
    if isinstance(spec, str):
        kind, _, axis = spec.partition(":")
        if kind != "largest" or axis not in mesh.shape:
            raise UserError(f"sharding rule {spec!r} is not 'largest:AXIS' with AXIS one of {', '.join(mesh.shape)}")
        divisible = [d for d, length in enumerate(shape) if length % mesh.shape[axis] == 0 and length > 0]
        if not divisible or mesh.shape[axis] == 1:
            return PartitionSpec()
        chosen = max(divisible, key=lambda d: shape[d])
        return PartitionSpec(*(axis if d == chosen else None for d in range(chosen + 1)))
    if spec[:1] == (...,):
        spec = (None,) * (len(shape) - len(spec) + 1) + spec[1:]
    for dimension, axis in enumerate(spec):
        if axis is not None and axis not in mesh.shape:
            raise UserError(f"sharding rule for {name!r} names axis {axis!r}; the mesh has {', '.join(mesh.shape)}")
        if axis is not None and (dimension >= len(shape) or shape[dimension] % mesh.shape[axis]):
            raise UserError(f"sharding rule {spec!r} does not fit {name!r} of shape {shape} on mesh {dict(mesh.shape)}")
    return PartitionSpec(*spec)


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """The NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs) by the first rule that matches."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _partition(path_name(path), leaf.shape, mesh, rules)), tree
    )
