"""TPU slices that are not present: the figures of their chips, and devices that the real TPU compiler compiles for.

    topology_devices("v5e:4x4")    16 devices, to build a mesh from and to compile for; needs libtpu, no TPU

The figures of a chip come from Google Cloud's documentation (cloud.google.com/tpu/docs: v4, v5e, v5p, v6e, tpu7x). It
states both directions of the links together. For v4 it states only a pod's all-reduce, divided here by its chips, which
for v5e gives its links in one direction. v5e's share of the data centre's network is the pod's, divided likewise.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The published figures of one chip.

    Attributes:
      flops: bfloat16 operations per second, at most.
      memory: bytes of main memory (HBM).
      bandwidth: bytes per second to and from main memory.
      interconnect: bytes per second that it can send to its neighbours, all links together.
      network: the chip's share of its host's data centre network in bytes per second; None if nothing is published.
      dimensions: dimensions of the grid or torus of its slices.
      devices: devices that JAX sees for one chip.
      sizes: slices, from small to large, that a plan may propose.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    network: float | None
    dimensions: int
    sizes: tuple[str, ...]
    devices: int = 1


_SQUARE = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

CHIPS = {
    "v4": Chip(
        flops=275e12,
        memory=32e9,
        bandwidth=1200e9,
        interconnect=1.1e15 / 4096,
        network=None,
        dimensions=3,
        sizes=_CUBE,
        devices=2,
    ),
    "v5e": Chip(
        flops=197e12,
        memory=16e9,
        bandwidth=819e9,
        interconnect=200e9,
        network=6.4e12 / 8 / 256,
        dimensions=2,
        sizes=_SQUARE,
    ),
    "v5p": Chip(
        flops=459e12,
        memory=95e9,
        bandwidth=2765e9,
        interconnect=600e9,
        network=50e9 / 8,
        dimensions=3,
        sizes=_CUBE,
    ),
    "v6e": Chip(
        flops=918e12,
        memory=32e9,
        bandwidth=1638e9,
        interconnect=400e9,
        network=100e9 / 8,
        dimensions=2,
        sizes=_SQUARE,
    ),
    "tpu7x": Chip(
        flops=2307e12,
        memory=192e9,
        bandwidth=7380e9,
        interconnect=600e9,
        network=100e9 / 8,
        dimensions=3,
        sizes=_CUBE,
        devices=2,
    ),
}


def parse_topology(name: str) -> tuple[Chip, int]:
    """The chip of "v5e:4x4", and how many of them; "v5e:4x4*2" is two such slices.

    Raises:
      UserError: there is no such chip, or its slices have no such shape.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UserError(unknown_name("TPU of a topology such as v5e:4x4", kind, list(CHIPS)))
    chip = CHIPS[kind]
    shape, _, slices = shape.partition("*")
    sides = shape.split("x")
    if len(sides) != chip.dimensions or not all(re.fullmatch(r"[1-9]\d*", n) for n in (*sides, slices or "1")):
        raise UserError(
            f"a topology of {kind} is like {kind}:{chip.sizes[2]}, or {kind}:{chip.sizes[2]}*2 for two slices; "
            f"not {name!r}"
        )
    return chip, math.prod(map(int, sides)) * int(slices or 1)


def number_of_slices(name: str) -> int:
    """2 for "v5e:4x4*2", 1 for "v5e:4x4"."""
    return int(name.partition("*")[2] or 1)


def larger_topologies(name: str) -> list[str]:
    """The usual slices of the same chip that have more chips, the smallest first."""
    chip, count = parse_topology(name)
    kind = name.partition(":")[0]
    if "*" in name:
        return []
    return [f"{kind}:{size}" for size in chip.sizes if math.prod(map(int, size.split("x"))) > count]


def topology_devices(name: str) -> tuple[jax.Device, ...]:
    """Devices of a slice to compile for.

    Raises:
      UserError: an unknown topology, or the TPU compiler is not installed.
    """
    parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is missing: pip install -e '.[tpu]' (no TPU is needed)")
    os.environ |= {  # only the compiler is used: no metadata server, and no chips that one process would lock
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    from jax.experimental import topologies  # loads libtpu, which reads the environment

    try:
        one, _, slices = name.partition("*")
        several = {"num_slices": int(slices)} if slices else {}
        return tuple(topologies.get_topology_desc(topology_name=one, platform="tpu", **several).devices)
    except Exception as error:  # libtpu raises several types for a shape that it does not know
        raise UserError(
            f"the TPU compiler does not know the topology {name!r}: {str(error).splitlines()[0]}"
        ) from error


def needed_memory(compiled: Any) -> dict[str, int]:
    """Bytes on one device while a compiled program runs: `arguments`, `temporaries`, `code`, and `peak` in total."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Temporaries are sometimes not reported, the peak of what lives at once sometimes leaves out gaps between them.
    most = max(held + memory.temp_size_in_bytes, memory.peak_memory_in_bytes)
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": most + memory.generated_code_size_in_bytes,
    }
