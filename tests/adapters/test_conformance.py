"""Algebraic identities of every registered adapter, on networks with scanned layers, fused layers and convolutions."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.adapters import ADAPTERS, SCALE, Lora, apply, count, merge, unmerge, weighted
from diffusion_jax.conditioning import Conditioning, Label
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, init_params, parameter_shapes
from diffusion_jax.models.layers import QKV, Conv, Dense, LabelEmbedding
from diffusion_jax.models.network import example_inputs
from diffusion_jax.schedulers import Parameterization
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Model, describe, rebuild

DIT = MODELS.build(
    {"name": "dit", "hidden_size": 8, "depth": 2, "num_heads": 2, "patch_size": 2},
    image_size=4,
    image_channels=1,
    num_classes=2,
)


class Block(nn.Module):
    """A block for a scan, with one fused and one plain layer."""

    @nn.compact
    def __call__(self, x):
        query, key, value = QKV(features=6, name="qkv")(x)
        return x + Dense(6, name="out")(nn.tanh(query) * key + value), None


class Small(nn.Module):
    """A network with convolutions, an embedding table and a scan of blocks."""

    @nn.compact
    def __call__(self, x, label):
        x = Conv(6, (3, 3), name="conv")(x)
        x += LabelEmbedding(num_classes=2, features=6, name="label")(label)[:, None, None]
        x = x.reshape(x.shape[0], -1, 6)
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = blocks(name="blocks")(x)
        return Dense(2, name="last")(x)


SMALL = Small()
X = jnp.asarray(np.random.default_rng(4).standard_normal((2, 4, 4, 1)), jnp.float32)
LABEL = jnp.array([0, 2])
KERNELS = ("network/.*/kernel",)
FORGETS = {"textual_inversion": "replaced"}  # adapters that cannot be removed again
OF_KERNELS = [name for name in ADAPTERS if name not in FORGETS]


def random(tree, seed, size=0.3):
    """Replace all values by random ones of the same shapes, except constants."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        constant = str(getattr(path[-1], "key", path[-1])).startswith("frozen_")
        return leaf if constant else jnp.asarray(size * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def base_of(init):
    return {"network": random(jax.eval_shape(init), 1)}


BASES = {
    "dit": (DIT, base_of(lambda: init_params(DIT, jax.random.key(0)))),
    "small": (SMALL, base_of(lambda: SMALL.init(jax.random.key(0), X, LABEL)["params"])),
}


def adapter_for(name, network):
    adapter = ADAPTERS.example(name)
    if name == "textual_inversion":
        return dataclasses.replace(adapter, targets=(".*/embedding",))
    return dataclasses.replace(adapter, targets=KERNELS, convolutions=True)


def made(name, network):
    module, base = BASES[network]
    fresh = begun(adapter_for(name, network), network)
    return module, base, fresh, random(fresh, 3)


@functools.cache
def begun(adapter, network):
    return jax.jit(lambda base: adapter.init(jax.random.key(2), base))(BASES[network][1])


@functools.partial(jax.jit, static_argnums=0)
def output(module, params):
    if module is SMALL:
        return module.apply({"params": params["network"]}, X, LABEL)
    _, time, conditions = example_inputs(module, 2)
    return module.apply({"params": params["network"]}, X, time + 0.3, {**conditions, "label": LABEL})


every = pytest.mark.parametrize(("name", "network"), [("lora", "dit"), *((name, "small") for name in ADAPTERS)])
of_kernels = pytest.mark.parametrize(("name", "network"), [("lora", "dit"), *((name, "small") for name in OF_KERNELS)])


@pytest.mark.parametrize("name", list(MODELS))
def test_every_network_takes_adapters_of_all_its_kernels(name):
    """A network with LoRA on all kernels gives outputs of the same shapes (checked by tracing only)."""
    module = MODELS.example(name)
    base = {"network": parameter_shapes(module)}
    adapter = Lora(rank=2, targets=("network/(.*/)?kernel",), convolutions=True)
    own = jax.eval_shape(lambda base: adapter.init(jax.random.key(0), base), base)
    inputs = jax.eval_shape(lambda: example_inputs(module, 1))

    def plain(base, inputs):
        return module.apply({"params": base["network"]}, *inputs)

    found = jax.eval_shape(lambda base, own, inputs: plain(apply(base, [own]), inputs), base, own, inputs)
    assert found == jax.eval_shape(plain, base, inputs)


def test_the_bases_are_wholly_covered():
    for network, (_, base) in BASES.items():
        own = begun(adapter_for("lora", network), network)
        kernels = {
            "/".join(str(part.key) for part in path)
            for path, _ in jax.tree_util.tree_leaves_with_path(base)
            if path[-1].key == "kernel"
        }
        assert set(own) == kernels
        assert kernels


@every
def test_fresh_it_is_the_base_bit_for_bit(name, network):
    module, base, fresh, _ = made(name, network)
    jax.tree.map(np.testing.assert_array_equal, merge(base, [fresh]), base)
    np.testing.assert_array_equal(output(module, apply(base, [fresh])), output(module, base))


@every
def test_at_weight_0_it_is_the_base_bit_for_bit(name, network):
    _, base, _, own = made(name, network)
    jax.tree.map(np.testing.assert_array_equal, merge(base, [weighted(own, 0.0)]), base)
    changed = merge(base, [own])
    for path in own:
        leaf, old = changed["network"], base["network"]
        for part in path.split("/")[1:]:
            leaf, old = leaf[part], old[part]
        assert float(jnp.abs(leaf - old).max()) > 1e-3, path


@every
def test_merged_is_applied(name, network):
    module, base, _, own = made(name, network)
    applied, merged = output(module, apply(base, [own])), output(module, merge(base, [own]))
    np.testing.assert_allclose(applied, merged, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(merged - output(module, base)).max()) > 1e-3


@of_kernels
def test_two_are_the_sum_of_what_they_add_and_can_be_taken_out(name, network):
    _, base, fresh, one = made(name, network)
    other = random(fresh, 5)
    both, first, second = (merge(base, owns) for owns in ([one, other], [one], [other]))
    added = jax.tree.map(lambda a, b, w: a + b - w, first, second, base)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), both, added)
    back = unmerge(both, [one, other])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), back, base)


@every
def test_another_weight_compiles_nothing(name, network):
    _, base, _, own = made(name, network)
    traced = []

    @jax.jit
    def merged(base, own):
        traced.append(1)
        return merge(base, [own])

    half, whole = merged(base, weighted(own, 0.5)), merged(base, own)
    assert len(traced) == 1
    if name in OF_KERNELS:
        for old, middle, new in zip(*map(jax.tree.leaves, (base, half, whole)), strict=True):
            np.testing.assert_allclose(middle, (old + new) / 2, atol=1e-5)


@every
def test_gradients_reach_all_that_is_its_own(name, network):
    module, base, _, own = made(name, network)
    learned = {
        path: {name: leaf for name, leaf in leaves.items() if not name.startswith("frozen_")}
        for path, leaves in own.items()
    }

    def loss(learned):
        whole = {path: {**own[path], **leaves} for path, leaves in learned.items()}
        return jnp.square(output(module, apply(base, [whole]))).sum()

    for path, leaves in jax.jit(jax.grad(loss))(learned).items():
        for leaf, value in leaves.items():
            assert float(jnp.abs(value).max()) > 0, f"{path} {leaf}"


def test_a_model_with_an_adapter_is_the_model_until_it_is_trained():
    network = MODELS.build({"name": "mlp", "features": 8, "depth": 1}, image_size=4, image_channels=1, num_classes=2)
    flow = Parameterization.build(schedule="rectified_flow", prediction="velocity", time_input="t")
    data = DataSpec(kind="pixels", shape=(4, 4, 1))
    plain = Model(data=data, network=network, process=flow, conditioning=Conditioning(parts=(Label(num_classes=2),)))
    model = dataclasses.replace(plain, adapters=(Lora(rank=2, targets=("network/in/kernel",)),))
    params = model.init_params(jax.random.key(0), init_params)
    assert set(params) == {"network", "adapters/lora"}
    params["network"] = random(params["network"], 9)
    conditions = model.conditions(params, {"label": jnp.array([0, 1])}, 2)

    def predicted(model, params):
        return model.denoiser(params, conditions)(jnp.ones((2, 4, 4, 1)), jnp.float32(0.5)).x0

    np.testing.assert_array_equal(predicted(model, params), predicted(plain, params))
    trained = {**params, "adapters/lora": random(params["adapters/lora"], 10)}
    assert float(jnp.abs(predicted(model, trained) - predicted(plain, params)).max()) > 1e-3
    assert rebuild(describe(model)) == model
    with pytest.raises(UserError, match="two adapters are called lora"):
        dataclasses.replace(plain, adapters=(Lora(), Lora(rank=2)))


def test_counts_and_scales():
    own = begun(Lora(rank=3, alpha=6.0, targets=("network/blocks/qkv/kernel",)), "dit")
    assert count(own) == 2 * 3 * (8 * 3 + 3 * 8)  # two layers; query, key and value, each of rank 3
    np.testing.assert_array_equal(own["network/blocks/qkv/kernel"][SCALE], np.full((2, 3), 2.0, np.float32))
    fused = ("network/blocks/qkv/kernel",)
    stabilized = begun(Lora(rank=4, alpha=6.0, rank_stabilized=True, targets=fused), "dit")
    np.testing.assert_array_equal(stabilized["network/blocks/qkv/kernel"][SCALE], np.full((2, 3), 3.0, np.float32))


def test_by_hand_of_a_fused_scanned_layer():
    _, base = BASES["dit"]
    path = "network/blocks/qkv/kernel"
    own = random(Lora(rank=2, alpha=3.0, targets=(path,)).init(jax.random.key(0), base), 6)
    found = np.asarray(merge(base, [own])["network"]["blocks"]["qkv"]["kernel"])
    leaves = {name: np.asarray(leaf, np.float64) for name, leaf in own[path].items()}
    wanted = np.array(base["network"]["blocks"]["qkv"]["kernel"], np.float64)
    for layer in range(2):
        for part in range(3):
            term = 1.5 * leaves["down"][layer, part] @ leaves["up"][layer, part]
            wanted[layer, :, 8 * part : 8 * part + 8] += term
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_dora_has_the_norms_that_it_learns():
    _, base = BASES["small"]
    adapter = Lora(rank=2, magnitude=True, targets=KERNELS, convolutions=True)
    fresh = begun(adapter, "small")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), merge(base, [fresh]), base)
    own = random(fresh, 7)
    changed = merge(base, [own])["network"]
    for path, leaves in own.items():
        leaf = changed
        for part in path.split("/")[1:]:
            leaf = leaf[part]
        layers = leaf.ndim % 2
        norms = np.sqrt(np.square(np.asarray(leaf)).sum(axis=tuple(range(layers, leaf.ndim - 1))))
        np.testing.assert_allclose(norms, np.abs(leaves["magnitude"]), rtol=1e-4)
    with pytest.raises(UserError, match="cannot restore what it replaced"):
        unmerge(merge(base, [own]), [own])
    jax.tree.map(np.testing.assert_array_equal, merge(base, [weighted(own, 0.0)]), base)


def test_weights_by_layer_and_by_pattern():
    _, base = BASES["dit"]
    path = "network/blocks/qkv/kernel"
    own = random(Lora(rank=2, targets=(path, "network/blocks/mlp_in/kernel")).init(jax.random.key(0), base), 8)
    found = merge(base, [weighted(own, {"blocks/qkv": [0.0, 1.0]})])["network"]
    whole = merge(base, [own])["network"]
    kernel, old = found["blocks"]["qkv"]["kernel"], base["network"]["blocks"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel[0], old[0])
    np.testing.assert_array_equal(kernel[1], whole["blocks"]["qkv"]["kernel"][1])
    with pytest.raises(UserError, match="it changes no parameter that matches nowhere"):
        weighted(own, {"nowhere": 0.5})
    with pytest.raises(UserError, match=r"3 weights for .*, which has 2 layers"):
        weighted(own, {"blocks/qkv": [1.0, 2.0, 3.0]})


def test_what_finds_nothing_or_does_not_fit_is_named():
    _, base = BASES["small"]
    with pytest.raises(UserError, match=r"no parameter matches 'network/nothing/.*', which an adapter should change"):
        Lora(targets=("network/nothing/.*",)).init(jax.random.key(0), base)
    with pytest.raises(UserError, match="is a convolution: set convolutions=True"):
        Lora(targets=KERNELS).init(jax.random.key(0), base)
    with pytest.raises(UserError, match="is not a kernel of a dense layer"):
        Lora(targets=("network/.*/bias",)).init(jax.random.key(0), base)
    own = Lora(targets=KERNELS, convolutions=True).init(jax.random.key(0), base)
    with pytest.raises(UserError, match="there is no such parameter"):
        apply({"network": {"other": jnp.zeros((2, 2))}}, [own])
