"""How activations are placed on a mesh: every device keeps its own examples and, for long sequences, its own tokens.

The rules of `rules.py` place parameters. Activations need their own constraints: without them the compiler may gather
the activations of the whole batch where it should gather the weights of one layer (seven times the bytes for DiT-XL/2
with fsdp on 16 devices). `JitLayout` sets its mesh while a step is traced; without a mesh (one device, `pmap`, a
network called by itself) nothing happens here.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array

BATCH_AXES = ("data", "fsdp")
"""The mesh axes that divide the examples of a batch."""
CONTEXT = "context"
"""The mesh axis that divides the tokens of one example."""
TENSOR = "tensor"
"""The mesh axis that divides the wide layers, and the heads of attention."""


@contextlib.contextmanager
def in_force(mesh: Mesh) -> Iterator[None]:
    """Trace under a mesh."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def for_cpu() -> bool:
    """Whether the program being traced is for CPUs, by the mesh in force, or else by JAX's default.

    Some layers have a form from which only XLA for CPU profits. Accelerators' compilers get the plain form, also when
    they run on a machine that has only CPUs (`experiments.plan`).
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) == "cpu"


def batch_sharded(x: Array) -> Array:
    """`x`, whose leading axis is the batch, divided by examples; tokens [batch, tokens, channels] also by tokens.

    The compiler may place the other axes as it likes, and all axes if the batch does not divide among the devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    batch, tokens = batch_spec(mesh, x.shape[0]), token_spec(mesh, x.shape)
    if batch is None and tokens is None:
        return x
    free = PartitionSpec.UNCONSTRAINED
    spec = [free if batch is None else batch, *(free,) * (x.ndim - 1)]
    if tokens is not None:
        spec[1] = tokens
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def batch_spec(mesh: AbstractMesh, size: int) -> tuple[str, ...] | None:
    """The axes of a mesh that divide a batch of this size; None if there are none, or if it does not divide."""
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    return axes if axes and size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None


def token_spec(mesh: AbstractMesh, shape: tuple[int, ...]) -> str | None:
    """The axis of a mesh that divides the tokens of activations [batch, tokens, channels], if one does."""
    length = mesh.shape.get(CONTEXT, 1)
    return CONTEXT if length > 1 and len(shape) == 3 and shape[1] % length == 0 else None


def divides_tensor(width: int) -> str | None:
    """The axis of the mesh in force that divides wide layers, if it divides one of this width."""
    length = jax.sharding.get_abstract_mesh().shape.get(TENSOR, 1)
    return TENSOR if length > 1 and width % length == 0 else None


def by_example(operation: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
    """`operation(x, kernel)` of a layer, where every device computes its own examples: a kernel sharded over fsdp is
    gathered.

    The kernel is gathered again for the backward pass, not kept. For a layer that takes one row per example (the
    modulation of a transformer's block, a third of DiT's parameters), less is sent if the rows are gathered and each
    device computes the columns that it holds; then that is done.

    Args:
      operation: a function of activations and weights; the leading axis of `x` and of the result is the batch.
      x: activations.
      kernel: the layer's weights, possibly sharded.
    """
    mesh = jax.sharding.get_abstract_mesh()
    length = mesh.shape.get("fsdp", 1)
    if length == 1 or batch_spec(mesh, x.shape[0]) is None:
        return batch_sharded(operation(batch_sharded(x), kernel))
    if x.ndim == kernel.ndim == 2 and kernel.shape[1] > kernel.shape[0] and kernel.shape[1] % length == 0:
        inputs, outputs = kernel.shape
        if x.shape[0] * (inputs + outputs) < inputs * outputs:
            rows = jax.lax.with_sharding_constraint(batch_sharded(x), PartitionSpec("data", None))
            columns = jax.lax.with_sharding_constraint(operation(rows, kernel), PartitionSpec("data", "fsdp"))
            return batch_sharded(columns)
    if mesh.shape.get(TENSOR, 1) > 1:  # the compiler then decides which columns or rows of the kernel each device has
        return batch_sharded(operation(batch_sharded(x), kernel))

    def with_gathered(x: Array, kernel: Array) -> Array:
        return batch_sharded(operation(batch_sharded(x), _gathered(kernel)))

    return jax.checkpoint(with_gathered, prevent_cse=False)(x, kernel)


@jax.custom_jvp
def _gathered(kernel: Array) -> Array:
    """The whole kernel on every device; its gradient is summed into the parts that the compiler wants."""
    return jax.lax.with_sharding_constraint(kernel, PartitionSpec(*[None] * kernel.ndim))


@_gathered.defjvp
def _gathered_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _gathered(*primals), tangents[0]


def attention_by_example(
    operation: Callable[..., Array],
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    segments: Array | None = None,
) -> Array:
    """`operation(query, key, value)` of attention, where every device computes its own examples, heads and queries.

    All are [batch, tokens, heads, channels]; a mask, [batch, tokens] of the keys, is the fourth argument, a bias of the
    logits, [heads or 1, queries, keys], the fifth, and the segments of tokens, [batch, tokens], the sixth, where they
    are a pair, of the queries and of the keys; each may be None. Where tokens are divided, a device gathers the keys
    and values of all tokens for its own queries, and sends back their gradients summed: memory grows with the length,
    and nothing else is sent. The operation is not seen by the compiler's partitioner, which cannot divide a kernel
    written by hand.
    """
    mesh = jax.sharding.get_abstract_mesh()
    given = {"mask": mask, "bias": bias, "segments": segments}
    extra = {name: value for name, value in given.items() if value is not None}
    if mesh.empty or mesh.size == 1:
        pair = None if segments is None else (segments, segments)
        return operation(query, key, value, *((mask, bias, pair) if extra else ()))
    context, tensor = (mesh.shape.get(axis, 1) for axis in (CONTEXT, TENSOR))
    divides = context > 1 and query.shape[1] % context == 0 and key.shape[1] % context == 0
    tokens = CONTEXT if divides else None
    heads = TENSOR if tensor > 1 and query.shape[2] % tensor == 0 else None
    # An axis that the spec does not name would be summed over in the backward pass, even with a single device.
    single = tuple(axis for axis, length in mesh.shape.items() if length == 1)

    def local(query: Array, key: Array, value: Array, extra: dict[str, Array]) -> Array:
        if tokens:
            of_keys = {name: extra[name] for name in ("mask", "segments") if name in extra}
            key, value, of_keys = jax.lax.all_gather((key, value, of_keys), tokens, axis=1, tiled=True)
        else:
            of_keys = extra
        pair = (extra["segments"], of_keys["segments"]) if "segments" in extra else None
        return operation(query, key, value, *((of_keys.get("mask"), extra.get("bias"), pair) if extra else ()))

    spec = PartitionSpec((*(batch_spec(mesh, query.shape[0]) or ()), *single), tokens, heads)
    of_bias = PartitionSpec(heads if bias is not None and bias.shape[0] > 1 else None, tokens)
    of_extra = {name: of_bias if name == "bias" else PartitionSpec(*spec[:2]) for name in extra}
    sharded = jax.shard_map(local, in_specs=(spec, spec, spec, of_extra), out_specs=spec, check_vma=False)
    return sharded(query, key, value, extra)
