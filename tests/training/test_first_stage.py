"""A first stage learns in the train step, gives equal updates for split batches, and keeps its measured constants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax import training
from diffusion_jax.errors import UserError
from diffusion_jax.models import is_frozen
from diffusion_jax.models.autoencoders import CODECS, SCALE, SHIFT
from diffusion_jax.objectives import ReconstructionLoss
from diffusion_jax.specs import DataSpec

BATCH, SHAPE = 16, (8, 8, 2)
GAN = ReconstructionLoss(adversarial=0.2, adversarial_start=5, discriminator_depth=1, discriminator_channels=8)


def rows(step):
    """Pictures of two gradients of random strength, described by four numbers each."""
    ramp = np.linspace(-1, 1, 8, dtype=np.float32)
    strength = np.random.default_rng(step).uniform(-1, 1, (BATCH, 2, 2)).astype(np.float32)
    return {"data": ramp[:, None, None] * strength[:, None, None, 0] + ramp[:, None] * strength[:, None, None, 1]}


def made(name="kl", objective=None, accumulation=1, optimizer="adam"):
    trainable = training.FirstStage(
        data=DataSpec(kind="pixels", shape=SHAPE),
        codec=CODECS.example(name),
        objective=objective or ReconstructionLoss(),
    )
    rate = optax.constant_schedule(3e-3)
    transformation = training.make_optimizer({"name": optimizer}, learning_rate=rate, is_frozen=is_frozen)
    ema = training.EmaConfig(decays=(0.9,))
    step = training.make_train_step(
        trainable, transformation, ema=ema, learning_rate=rate, batch_size=BATCH, seed=0, accumulation=accumulation
    )

    def init():
        return training.create_state(lambda: trainable.init_params(jax.random.key(0)), transformation, ema)

    return trainable, jax.jit(step), init


@pytest.mark.parametrize(("name", "objective"), [("kl", GAN), ("vq", ReconstructionLoss(penalty_weight=1.0))])
def test_it_learns_and_keeps_its_constants(name, objective):
    trainable, step, init = made(name, objective)
    validate = jax.jit(training.make_validation_step(trainable, seed=0), static_argnums=4)
    state = init()
    before = float(validate(state.params, state, rows(-1 % 2**31), 0, BATCH)["loss"])
    for i in range(80):
        state, metrics = step(state, rows(i))
    after = validate(state.params, state, rows(-1 % 2**31), 0, BATCH)
    assert float(after["loss"]) < 0.6 * before
    assert "hinge" not in after, "validation has no discriminator"
    assert int(state.nonfinite_step) == -1
    assert all(np.isfinite(value) for value in metrics.values())
    codec = state.params["codec"]
    np.testing.assert_array_equal(codec[SHIFT], jnp.zeros(4))
    np.testing.assert_array_equal(codec[SCALE], jnp.ones(4))
    assert set(state.params) == {"codec", *(["discriminator"] if objective.adversarial else [])}
    assert set(state.evaluation_params()) == set(state.params)


def test_microbatches_give_the_same_update():
    """A batch split in two gives the same update, because latent noise belongs to the example."""
    (_, whole, init), (_, parts, _) = (made(optimizer="sgd", accumulation=n) for n in (1, 2))
    (one, first), (two, second) = whole(init(), rows(0)), parts(init(), rows(0))
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one.params, two.params)


def test_pictures_that_do_not_fit_are_refused():
    fields = {"codec": CODECS.example("kl"), "objective": GAN}
    with pytest.raises(UserError, match="the first stage takes 2 channels, but the data has 3"):
        training.FirstStage(data=DataSpec(kind="pixels", shape=(8, 8, 3)), **fields)
    deep = dataclasses.replace(GAN, discriminator_depth=3)
    with pytest.raises(UserError, match="needs 24x24 pixels, but the data has 8x8"):
        training.FirstStage(data=DataSpec(kind="pixels", shape=SHAPE), codec=fields["codec"], objective=deep)
