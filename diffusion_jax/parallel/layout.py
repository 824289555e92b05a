"""Two ways to run the same step on many devices, one config field apart.

A layout places the training state and the batches, and compiles `step(state, batch, axis_name) -> (state, metrics)`:

- `jit`: one program over a mesh with axes data, fsdp and tensor; the compiler partitions it. The state is sharded by
  rules.
- `pmap`: the plain data-parallel way; every device holds the whole state under a leading device axis, and the step
  averages what it must over the axis name that it is given.

Outside the step the state is seen in its *canonical* form, without a device axis: that is what is saved, restored,
evaluated and sampled from, so a run may go on under the other layout.
"""

import abc
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.rules import FSDP_RULES, REPLICATED_RULES, TENSOR_RULES, Rules, shardings
from diffusion_jax.registry import Registry

LAYOUTS: Registry["Layout"] = Registry("parallel strategy")

Step = Callable[..., tuple[Any, dict[str, jax.Array]]]


class Layout(abc.ABC):
    """Placement of state and batches on devices, and compilation of the step."""

    mesh: Mesh
    batch_axes: tuple[str, ...]

    @property
    def num_batch_shards(self) -> int:
        """Over how many devices the examples of a batch are spread."""
        return math.prod(self.mesh.shape[axis] for axis in self.batch_axes)

    def check_batch(self, batch_size: int, accumulation: int = 1) -> None:
        """Raise UserError unless every device gets the same number of examples in every microbatch."""
        if batch_size % (self.num_batch_shards * accumulation):
            micro = f" x {accumulation} microbatches" if accumulation > 1 else ""
            raise UserError(
                f"batch size {batch_size} is not divisible by {self.num_batch_shards} devices{micro}; "
                f"use a multiple of {self.num_batch_shards * accumulation}"
            )

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of arrays whose leading axis is the batch, for canonical (jit) computations."""
        return NamedSharding(self.mesh, PartitionSpec(self.batch_axes))

    def global_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's rows of a batch as its part of global arrays sharded over the batch axes."""
        place = functools.partial(jax.make_array_from_process_local_data, self.batch_sharding)
        return {name: place(value) for name, value in batch.items()}

    @abc.abstractmethod
    def canonical_shardings(self, abstract_state: Any) -> Any:
        """The sharding of every leaf of the canonical state."""

    @abc.abstractmethod
    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's rows of a batch, in the form that the compiled step takes."""

    @abc.abstractmethod
    def from_canonical(self, state: Any) -> Any:
        """The canonical state in the form that the compiled step takes."""

    @abc.abstractmethod
    def to_canonical(self, state: Any) -> Any:
        """The step's state without a device axis."""

    @abc.abstractmethod
    def compile(self, step: Step, abstract_state: Any) -> Step:
        """Compile the step; its state argument is donated."""

    def init(self, init_fn: Callable[[], Any]) -> Any:
        """The step's state made by `init_fn`, created in place on every device that holds a part of it."""
        made = jax.jit(init_fn, out_shardings=self.canonical_shardings(jax.eval_shape(init_fn)))()
        return self.from_canonical(made)

    def fetch(self, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        """Scalars of the step on the host; waits for the step to be done."""
        return {name: float(value.addressable_shards[0].data.reshape(())) for name, value in metrics.items()}


def _mesh(shape: Mapping[str, int]) -> Mesh:
    """A mesh over all devices; one axis length may be -1, "the rest"."""
    available = jax.device_count()
    known = math.prod(length for length in shape.values() if length != -1)
    free = [axis for axis, length in shape.items() if length == -1]
    if len(free) > 1 or available % known or (not free and known != available):
        wanted = " x ".join(f"{axis}:{length}" for axis, length in shape.items())
        raise UserError(
            f"mesh {wanted} does not fit {available} devices; the axes must multiply to that (-1: the rest)"
        )
    lengths = [available // known if length == -1 else length for length in shape.values()]
    return jax.make_mesh(tuple(lengths), tuple(shape), axis_types=(AxisType.Auto,) * len(lengths))


@LAYOUTS.register("jit")
class JitLayout(Layout):
    """Sharded jit over a mesh of axes data, fsdp and tensor; parameters are sharded by rules.

    Args:
      data: devices that hold copies of the parameters and different examples; -1 for all the rest.
      fsdp: devices over which parameters, optimizer and EMA are sharded; they hold different examples too.
      tensor: devices over which the wide layers of one example are split.
      rules: sharding rules (see `rules.py`); by default those for the axes that are longer than 1.
    """

    batch_axes = ("data", "fsdp")

    def __init__(self, data: int = -1, fsdp: int = 1, tensor: int = 1, rules: Rules | None = None):
        self.mesh = _mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
        default = TENSOR_RULES if tensor > 1 else FSDP_RULES if self.mesh.shape["fsdp"] > 1 else REPLICATED_RULES
        self.rules = rules or default

    def canonical_shardings(self, abstract_state: Any) -> Any:
        return shardings(abstract_state, self.mesh, self.rules)

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return self.global_batch(batch)

    def from_canonical(self, state: Any) -> Any:
        return state

    def to_canonical(self, state: Any) -> Any:
        return state

    def compile(self, step: Step, abstract_state: Any) -> Step:
        placed = self.canonical_shardings(abstract_state)
        return jax.jit(
            functools.partial(step, axis_name=None),
            in_shardings=(placed, self.batch_sharding),
            out_shardings=(placed, self.replicated),
            donate_argnums=0,
        )


@LAYOUTS.register("pmap")
class PmapLayout(Layout):
    """Plain data parallelism: the whole state on every device under a leading device axis."""

    batch_axes = ("devices",)

    def __init__(self) -> None:
        self.mesh = _mesh({"devices": -1})
        self._add_axis = jax.jit(
            lambda state: jax.tree.map(lambda x: jnp.broadcast_to(x[None], (jax.device_count(), *x.shape)), state),
            out_shardings=self.batch_sharding,
        )
        self._drop_axis = jax.jit(lambda state: jax.tree.map(lambda x: x[0], state), out_shardings=self.replicated)

    def canonical_shardings(self, abstract_state: Any) -> Any:
        return shardings(abstract_state, self.mesh, REPLICATED_RULES)

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        local = jax.local_device_count()
        split = {name: value.reshape(local, value.shape[0] // local, *value.shape[1:]) for name, value in batch.items()}
        return self.global_batch(split)

    def from_canonical(self, state: Any) -> Any:
        return self._add_axis(state)

    def to_canonical(self, state: Any) -> Any:
        return self._drop_axis(state)

    def compile(self, step: Step, abstract_state: Any) -> Step:
        return jax.pmap(functools.partial(step, axis_name="devices"), axis_name="devices", donate_argnums=0)
