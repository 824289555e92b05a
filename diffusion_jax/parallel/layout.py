"""Two ways to run the same step on many devices, one config field apart.

A layout places the training state and the batches, and compiles `step(state, batch, axis_name) -> (state, metrics)`:

- `jit`: one program over a mesh with axes data, fsdp, tensor and context; the compiler partitions it. The state is
  sharded by rules.
- `pmap`: plain data parallelism; every device holds the whole state under a leading device axis, and the step averages
  over the axis name that it receives.

Every host reads its own contiguous rows of a batch: share `host_index` of `host_count` equal shares. The meshes are
ordered so that this is possible, and the rows have the same place in the global batch as on one host.

Outside the step the state has its *canonical* form, without a device axis. That form is saved, restored, evaluated and
sampled from, so a run may resume under the other layout.
"""

import abc
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.activations import BATCH_AXES, CONTEXT, in_force
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
        """The number of devices that share the examples of a batch."""
        return math.prod(self.mesh.shape[axis] for axis in self.batch_axes)

    def check_batch(self, batch_size: int, accumulation: int = 1) -> None:
        """Raise UserError unless every device gets the same number of examples in every microbatch."""
        if batch_size % (self.num_batch_shards * accumulation):
            micro = f" x {accumulation} microbatches" if accumulation > 1 else ""
            raise UserError(
                f"batch size {batch_size} is not divisible by {self.num_batch_shards} devices{micro}; "
                f"use a multiple of {self.num_batch_shards * accumulation}"
            )

    @functools.cached_property
    def _host_share(self) -> tuple[int, int]:
        owned = _shards_by_host(self.mesh, self.num_batch_shards)
        mine = owned.get(jax.process_index(), range(self.num_batch_shards))
        return mine.start // len(mine), self.num_batch_shards // len(mine)

    @property
    def host_index(self) -> int:
        """The share of every batch that this host reads; hosts that split examples between them read the same share."""
        return self._host_share[0]

    @property
    def host_count(self) -> int:
        """The number of shares into which the hosts divide a batch."""
        return self._host_share[1]

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of values that every device holds whole."""
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

    def placed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A canonical computation, ready to be compiled with its activations on this mesh (see `activations.py`)."""

        @functools.wraps(function)
        def traced(*arguments: Any) -> Any:
            with in_force(self.mesh):
                return function(*arguments)

        return traced

    def init(self, init_fn: Callable[[], Any]) -> Any:
        """The step's state made by `init_fn`, where every device creates its own part in place."""
        made = jax.jit(init_fn, out_shardings=self.canonical_shardings(jax.eval_shape(init_fn)))()
        return self.from_canonical(made)

    def fetch(self, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        """Scalars of the step on the host; waits until the step is done."""
        return {name: float(value.addressable_shards[0].data.reshape(())) for name, value in metrics.items()}


def _mesh(shape: Mapping[str, int], batch_axes: Sequence[str], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, or the given ones; one axis length may be -1, "the rest".

    JAX orders devices along the links between them, which may pass one host several times. In that case they are
    ordered host by host instead, so that every host's shards of a batch, whose axes come first, are contiguous.

    Several slices, connected only by a data centre's network, divide the first axis: the only traffic between them is
    that of this axis, the gradients.
    """
    devices = list(jax.devices() if devices is None else devices)
    known = math.prod(length for length in shape.values() if length != -1)
    free = [axis for axis, length in shape.items() if length == -1]
    wanted = " x ".join(f"{axis}:{length}" for axis, length in shape.items())
    if len(free) > 1 or known < 1 or len(devices) % known or (not free and known != len(devices)):
        raise UserError(
            f"mesh {wanted} does not fit {len(devices)} devices; the axes must multiply to that (-1: the rest)"
        )
    lengths = tuple(len(devices) // known if length == -1 else length for length in shape.values())
    types = (AxisType.Auto,) * len(lengths)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        first = next(iter(shape))
        if lengths[0] % slices:
            raise UserError(
                f"mesh {wanted}: axis {first} is the one between {slices} slices and must be a multiple of {slices}; "
                f"set parallel.{first}={slices} and let another axis take the rest (-1)"
            )
        within, between = (lengths[0] // slices, *lengths[1:]), (slices, *(1 for _ in lengths[1:]))
        ordered = mesh_utils.create_hybrid_device_mesh(within, between, devices)
        mesh = Mesh(ordered, tuple(shape), axis_types=types)
    else:
        mesh = jax.make_mesh(lengths, tuple(shape), axis_types=types, devices=devices)
    num_shards = math.prod(mesh.shape[axis] for axis in batch_axes)
    if _shards_by_host(mesh, num_shards) is None:
        by_host = sorted(devices, key=lambda d: (getattr(d, "slice_index", 0), d.process_index, d.id))
        mesh = Mesh(np.array(by_host).reshape(lengths), tuple(shape), axis_types=types)
        if _shards_by_host(mesh, num_shards) is None:
            hosts = len({device.process_index for device in devices})
            raise UserError(f"mesh {wanted} does not divide the batch evenly among {hosts} hosts")
    return mesh


def _shards_by_host(mesh: Mesh, num_shards: int) -> dict[int, range] | None:
    """The shards of a batch that each host's devices hold; None unless these are equal and contiguous shares."""
    owned: dict[int, set[int]] = {}
    for shard, devices in enumerate(mesh.devices.reshape(num_shards, -1)):
        for device in devices:
            owned.setdefault(device.process_index, set()).add(shard)
    size = len(next(iter(owned.values())))
    ranges = {host: range(min(shards), min(shards) + size) for host, shards in owned.items()}
    even = all(set(ranges[host]) == shards and min(shards) % size == 0 for host, shards in owned.items())
    return ranges if even else None


@LAYOUTS.register("jit")
class JitLayout(Layout):
    """Sharded jit over a mesh of axes data, fsdp, tensor and context; parameters are sharded by rules.

    Args:
      data: devices that hold copies of the parameters and different examples; -1 for all the rest.
      fsdp: devices over which parameters, optimizer and EMA are sharded; they hold different examples too.
      tensor: devices over which the wide layers of one example are split.
      context: devices over which the tokens of one example are split, if the number divides, for long sequences.
      rules: sharding rules (see `rules.py`); by default those for the axes that are longer than 1.
      devices: devices to use; by default all. Devices of a topology that is not present can be compiled for.
    """

    batch_axes = BATCH_AXES

    def __init__(
        self,
        data: int = -1,
        fsdp: int = 1,
        tensor: int = 1,
        context: int = 1,
        rules: Rules | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        lengths = {"data": data, "fsdp": fsdp, "tensor": tensor, CONTEXT: context}
        self.mesh = _mesh(lengths, self.batch_axes, devices)
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
            self.placed(functools.partial(step, axis_name=None)),
            in_shardings=(placed, self.batch_sharding),
            out_shardings=(placed, self.replicated),
            donate_argnums=0,
        )


@LAYOUTS.register("pmap")
class PmapLayout(Layout):
    """Plain data parallelism: the whole state on every device under a leading device axis."""

    batch_axes = ("devices",)

    def __init__(self) -> None:
        self.mesh = _mesh({"devices": -1}, self.batch_axes)
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
        return jax.pmap(
            functools.partial(step, axis_name="devices"),
            axis_name="devices",
            devices=tuple(self.mesh.devices.flat),
            donate_argnums=0,
        )
