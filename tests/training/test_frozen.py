"""Frozen groups of parameters do not change, cost nothing, and are in no checkpoint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax import models, parallel, training
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import Identity
from diffusion_jax.systems import fingerprint, split_groups, under, within

STEPS = 3
TRAINED = ("network", "conditioning/.*")


@dataclasses.dataclass(frozen=True)
class Scaled(Identity):
    """A first stage with one parameter: z = scale x."""

    def init_params(self, key):
        return {"scale": jnp.full((1,), 3.0)}

    def encode(self, params, x, keys=None):
        return params["scale"] * x

    def decode(self, params, z):
        return z / params["scale"]


@pytest.fixture
def scaled(make_trainable):
    trainable = make_trainable("unet")
    return dataclasses.replace(trainable, model=dataclasses.replace(trainable.model, codec=Scaled()))


def first_state(trainable, trained, optimizer):
    return training.create_state(
        lambda: trainable.init_params(jax.random.key(0), models.init_params),
        optimizer,
        training.EmaConfig(decays=(0.9,)),
        trained=trained,
    )


def run(trainable, batch, trained, layout=None, *, times=1.0):
    """Take three steps of SGD; returns the states before and after them."""
    layout, optimizer = layout or parallel.LAYOUTS.build("jit"), optax.sgd(1e-2)
    step = training.make_train_step(
        trainable,
        optimizer,
        ema=training.EmaConfig(decays=(0.9,)),
        learning_rate=optax.constant_schedule(1e-2),
        batch_size=16,
        seed=0,
    )

    def init():
        return first_state(trainable, trained, optimizer)

    state, before = layout.init(init), jax.device_get(init())
    compiled = layout.compile(step, jax.eval_shape(init))
    for number in range(STEPS):
        rows = batch(number)
        state, _ = compiled(state, layout.place_batch({**rows, "data": times * rows["data"]}))
    return before, jax.device_get(layout.to_canonical(state))


def test_a_frozen_group_stays_and_trains_the_rest_as_a_constant_would(scaled, batch):
    before, after = run(scaled, batch, TRAINED)
    assert set(after.params) == {"network"}
    assert set(after.frozen) == {"codec"}
    assert set(after.ema["decay_0.9"]) == {"network"}
    np.testing.assert_array_equal(after.frozen["codec"]["scale"], before.frozen["codec"]["scale"])
    plain = dataclasses.replace(scaled, model=dataclasses.replace(scaled.model, codec=Identity()))
    _, constant = run(plain, batch, (".*",), times=3.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.params, constant.params)


def test_a_trained_group_moves(scaled, batch):
    _, after = run(scaled, batch, (".*",))
    assert after.frozen is None
    assert np.abs(after.params["codec"]["scale"] - 3.0).max() > 1e-6


@pytest.mark.parametrize("spec", [{"name": "pmap"}, {"name": "jit", "data": 2, "fsdp": 4}], ids=lambda s: s["name"])
def test_the_same_under_any_layout(scaled, batch, spec):
    _, expected = run(scaled, batch, TRAINED)
    _, found = run(scaled, batch, TRAINED, parallel.LAYOUTS.build(spec))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, expected)


def test_a_frozen_group_is_sharded_as_a_trained_one(make_trainable):
    layout = parallel.LAYOUTS.build({"name": "jit", "data": 1, "fsdp": 8})
    trainable, optimizer = make_trainable("unet"), optax.adam(1e-3)
    state = layout.init(lambda: first_state(trainable, ("nothing",), optimizer))
    frozen = [leaf for leaf in jax.tree.leaves(state.frozen) if leaf.ndim > 1 and max(leaf.shape) % 8 == 0]
    assert frozen
    assert all(leaf.addressable_shards[0].data.size * 8 == leaf.size for leaf in frozen)


def test_a_checkpoint_holds_no_frozen_group(scaled, tmp_path):
    state = first_state(scaled, TRAINED, optax.adam(1e-3))
    checkpointer = training.Checkpointer(tmp_path)
    checkpointer.save(1, state.saved, {}, {})
    checkpointer.wait()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state.saved)
    read, record = checkpointer.restore(1, wanted)
    checkpointer.close()
    assert not any("codec" in name for name in record["fingerprints"])
    again = training.TrainState(**read, frozen=state.frozen)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    np.testing.assert_array_equal(again.evaluation_params()["codec"]["scale"], 3.0)


def test_groups_by_pattern():
    params = {"network": 1, "codec": 2, **under("conditioning", {"text": 3, "label": 4})}
    assert within("conditioning", params) == {"text": 3, "label": 4}
    trained, frozen = split_groups(params, ("network", "conditioning/l.*"))
    assert set(trained) == {"network", "conditioning/label"}
    assert set(frozen) == {"codec", "conditioning/text"}
    assert split_groups(params, ("net",))[0] == {}, "a pattern is of the whole name"
    with pytest.raises(UserError, match="is invalid"):
        split_groups(params, ("[",))


def test_a_fingerprint_is_of_names_shapes_and_bits():
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"a": tree["a"], "c": tree["b"]},
        {"a": tree["a"].reshape(3, 2), "b": tree["b"]},
        {"a": -tree["a"], "b": tree["b"]},
        {"a": tree["a"].astype(np.int32), "b": tree["b"]},
    ]
    assert fingerprint(tree) == fingerprint({"b": jnp.ones(2), "a": jnp.zeros((2, 3))})
    assert len({fingerprint(t) for t in (tree, *others)}) == 5
