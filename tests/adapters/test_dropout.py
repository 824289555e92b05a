"""LoRA dropout masks part of the input of A, only in training, with a key per example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.adapters import Lora, apply, with_dropout
from diffusion_jax.conditioning import Conditioning, Label
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, parameter_shapes
from diffusion_jax.models.layers import Dense
from diffusion_jax.schedulers import Parameterization
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Model

KEYS = jax.random.split(jax.random.key(3), 4)
X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 6)), jnp.float32)
SHARE = 0.25


def random(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) * 0.3, leaf.dtype), tree)


@pytest.fixture(scope="module")
def dense():
    """A dense layer, its kernel, and an adapter of that kernel."""
    layer = Dense(3, use_bias=False)
    base = {"network": {"dense": random({"kernel": jnp.zeros((6, 3))}, 1)}}
    own = Lora(rank=2, targets=("network/dense/kernel",)).init(jax.random.key(0), base)["network/dense/kernel"]
    return layer, base, {"network/dense/kernel": {**own, "up": random(own["up"], 2)}}


def output(layer, groups, x):
    return layer.apply({"params": groups["network"]["dense"]}, x)


def test_by_hand(dense):
    """A receives 0 or x / (1 - p), the layer itself the full x; the mask depends only on the example's key."""
    layer, base, own = dense
    plain = apply(base, [own])
    dropped = with_dropout(plain, SHARE, KEYS, base)
    found, kernel = output(layer, dropped, X), dropped["network"]["dense"]["kernel"]
    given = np.asarray(kernel.dropped(X))
    kept = given != 0
    np.testing.assert_allclose(given[kept], np.asarray(X)[kept] / (1 - SHARE), rtol=1e-6)
    assert 0.1 < 1 - kept.mean() < 0.4
    leaves = own["network/dense/kernel"]
    term = leaves["down"][0] @ leaves["up"][0]
    wanted = np.asarray(X) @ np.asarray(base["network"]["dense"]["kernel"]) + given @ np.asarray(term)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    part = with_dropout(plain, SHARE, KEYS[2:], base)
    np.testing.assert_allclose(output(layer, part, X[2:]), found[2:], rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, output(layer, plain, X))


def test_on_average_it_is_the_adapter(dense):
    layer, base, own = dense
    plain, x, count = apply(base, [own]), X[:1], 4000
    keys = jax.random.split(jax.random.key(1), count)
    many = output(layer, with_dropout(plain, SHARE, keys, base), jnp.repeat(x, count, axis=0))
    np.testing.assert_allclose(many.mean(axis=0), output(layer, plain, x)[0], atol=0.05)


def test_a_mask_is_of_its_layer_of_a_scan_and_training_alone_has_it():
    network = MODELS.build(
        {"name": "dit", "hidden_size": 8, "depth": 2, "num_heads": 2, "patch_size": 2},
        image_size=4,
        image_channels=1,
        num_classes=2,
    )
    base = {"network": random(parameter_shapes(network), 5)}
    adapter = Lora(rank=2, dropout=SHARE, targets=("network/blocks/(qkv|mlp_in)/kernel",))
    model = Model(
        data=DataSpec(kind="pixels", shape=(4, 4, 1)),
        network=network,
        process=Parameterization.build(schedule="rectified_flow", prediction="velocity", time_input="t"),
        conditioning=Conditioning(parts=(Label(num_classes=2),)),
        adapters=(adapter,),
    )
    own = adapter.init(jax.random.key(0), base)
    own = {path: {**leaves, "up": random(leaves["up"], 6)} for path, leaves in own.items()}
    params = {**base, "adapters/lora": own}
    inside = model.adapted(params, "network", KEYS)["network"]["blocks"]
    data = jax.random.key_data(inside["qkv"]["kernel"].keys)
    assert data.shape[:2] == (2, 4)
    assert len({row.tobytes() for row in np.asarray(data).reshape(8, -1)}) == 8
    assert not np.array_equal(data, jax.random.key_data(inside["mlp_in"]["kernel"].keys))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 4, 4, 1)), jnp.float32)

    @jax.jit
    def predicted(params, keys, x):
        conditions = model.conditions(params, {"label": jnp.array([0, 1, 0, 1])[: len(x)]}, len(x), keys)
        return model.denoiser(params, conditions, keys)(x, jnp.float32(0.5)).x0

    without, first = predicted(params, None, x), predicted(params, KEYS, x)
    plain = dataclasses.replace(model, adapters=(dataclasses.replace(adapter, dropout=0.0),))
    conditions = plain.conditions(params, {"label": jnp.array([0, 1, 0, 1])}, 4)
    np.testing.assert_allclose(without, plain.denoiser(params, conditions)(x, jnp.float32(0.5)).x0, rtol=1e-5)
    assert float(jnp.abs(first - without).max()) > 1e-4
    np.testing.assert_allclose(predicted(params, KEYS[:2], x[:2]), first[:2], rtol=1e-4, atol=1e-5)


def test_where_there_is_no_dropout_it_is_refused(dense):
    layer, base, own = dense
    with pytest.raises(UserError, match="set dropout=0 or magnitude=False"):
        Lora(dropout=0.1, magnitude=True)
    with pytest.raises(UserError, match="set dropout=0 or convolutions=False"):
        Lora(dropout=0.1, convolutions=True)
    dropped = with_dropout(apply(base, [own]), SHARE, KEYS, base)
    with pytest.raises(UserError, match=r"receives \[2, 5, 6\], and there are 4 examples"):
        output(layer, dropped, X[:2])
    with pytest.raises(UserError, match="reads its kernel as one array, which has no dropout"):
        jnp.asarray(dropped["network"]["dense"]["kernel"])
    twice = apply(apply(base, [own]), [own])
    with pytest.raises(UserError, match="has two adapters, and one of them has dropout"):
        with_dropout(twice, SHARE, KEYS, apply(base, [own]))
