"""Sharding rules: the first match decides, and impossible rules are refused by name."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.parallel import FSDP_RULES, LAYOUTS, TENSOR_RULES, shardings

TREE = {
    "block": {"kernel": jnp.zeros((3, 3, 12, 16)), "bias": jnp.zeros((16,)), "scale": jnp.zeros((6,))},
    "qkv": {"kernel": jnp.zeros((2, 16, 48)), "bias": jnp.zeros((2, 48))},
    "attention_out": {"kernel": jnp.zeros((2, 16, 16))},
}


def specs(mesh, rules):
    return jax.tree.map(lambda s: s.spec, shardings(TREE, mesh, rules))


def test_fsdp_shards_the_largest_divisible_dimension_of_kernels():
    mesh = LAYOUTS.build({"name": "jit", "data": 1, "fsdp": 8}).mesh
    found = specs(mesh, FSDP_RULES)
    assert found["block"] == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "bias": PartitionSpec(),
        "scale": PartitionSpec(),
    }
    assert found["qkv"]["kernel"] == PartitionSpec(None, None, "fsdp")


def test_tensor_rules_split_columns_then_rows_of_stacked_layers():
    mesh = LAYOUTS.build({"name": "jit", "data": 1, "fsdp": 4, "tensor": 2}).mesh
    found = specs(mesh, TENSOR_RULES)
    assert found["qkv"] == {"kernel": PartitionSpec(None, "tensor", "fsdp"), "bias": PartitionSpec()}
    assert found["attention_out"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    for name in ("qkv", "attention_out"):
        kernel = jax.device_put(TREE[name]["kernel"], shardings(TREE, mesh, TENSOR_RULES)[name]["kernel"])
        assert kernel.addressable_shards[0].data.size * 8 == kernel.size, "every device holds an eighth"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((r"^nothing$", ()),), "no sharding rule matches parameter 'attention_out/kernel'"),
        (((r".*", ("model",)),), "names axis 'model'; the mesh has data, fsdp, tensor, context"),
        (((r"scale", ("fsdp",)), (r".*", ())), r"does not fit 'block/scale' of shape \(6,\)"),
        (((r".*", "smallest:fsdp"),), "is not 'largest:AXIS'"),
    ],
)
def test_impossible_rules_are_refused(rules, message):
    mesh = LAYOUTS.build({"name": "jit", "data": 2, "fsdp": 4}).mesh
    with pytest.raises(UserError, match=message):
        shardings(TREE, mesh, rules)


def test_impossible_meshes_are_refused():
    with pytest.raises(UserError, match=r"mesh data:3 x fsdp:1 x tensor:1 x context:1 does not fit 8 devices"):
        LAYOUTS.build({"name": "jit", "data": 3})
    with pytest.raises(UserError, match="unknown parallel strategy 'jitt'; did you mean 'jit'"):
        LAYOUTS.build("jitt")
