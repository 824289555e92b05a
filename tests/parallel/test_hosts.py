"""The rows of a batch that each host reads, on simulated meshes of several hosts."""

import types

import numpy as np
import pytest

from diffusion_jax import parallel
from diffusion_jax.parallel.layout import _shards_by_host


def mesh_of(hosts):
    """A mesh of devices that belong to the given hosts, in that order."""
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(process_index=host) for host in hosts]))


@pytest.mark.parametrize(
    ("hosts", "num_shards", "expected"),
    [
        ([0, 0, 1, 1], 4, {0: range(0, 2), 1: range(2, 4)}),
        ([1, 1, 0, 0], 4, {0: range(2, 4), 1: range(0, 2)}),
        # two devices share an example, so a host's part is one shard
        ([0, 0, 1, 1], 2, {0: range(0, 1), 1: range(1, 2)}),
        # an example is split between hosts, so both read it
        ([0, 1, 0, 1], 2, {0: range(0, 2), 1: range(0, 2)}),
        ([0, 0, 1, 1], 1, {0: range(0, 1), 1: range(0, 1)}),
        # JAX's ring through a TPU v5e 4x4 returns to the first host
        ([0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0], 16, None),
        ([0, 1, 1, 0], 4, None),
        ([0, 0, 0, 1], 4, None),
    ],
)
def test_shards_of_each_host(hosts, num_shards, expected):
    assert _shards_by_host(mesh_of(hosts), num_shards) == expected


@pytest.mark.parametrize("spec", ["jit", "pmap", {"name": "jit", "data": 1, "fsdp": 2, "tensor": 4}])
def test_one_host_reads_everything(spec):
    layout = parallel.LAYOUTS.build(spec)
    assert (layout.host_index, layout.host_count) == (0, 1)


def test_one_process_agrees_with_itself():
    assert parallel.any_process(True)
    assert not parallel.any_process(False)
    parallel.require_same("the config", "a")
    parallel.wait_for_all("end")
