"""A train step from Python equals that of a run, and works on the models that are sampled."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffusion_jax as dj
from diffusion_jax.errors import UserError
from diffusion_jax.models import init_params
from diffusion_jax.objectives import Objective
from diffusion_jax.training import EmaConfig, create_state, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absolute(Objective):
    """The absolute error of x0 at t = 1/2."""

    def loss(self, denoise_fn, batch, key, context=None):
        x0 = batch["data"]
        noise = key.fold_in("noise").normal(x0.shape[1:])
        loss = jnp.mean(jnp.abs(denoise_fn(0.5 * x0 + 0.5 * noise, jnp.float32(0.5)).x0 - x0))
        return loss, {"loss": loss}


@pytest.fixture
def model(make_trainable):
    return make_trainable("mlp", features=8, depth=1).model


@pytest.mark.slow
def test_the_step_is_that_of_a_run(model, batch):
    """The parameters after two steps equal those of a run's step bit for bit, and averages are kept."""
    ema = EmaConfig(decays=(0.5,))
    step = dj.train_step(model, "flow_matching", optax.adam(1e-2), batch_size=16, seed=4, ema=ema)
    state = step.init()
    plain = make_train_step(step.trainable, optax.adam(1e-2), ema=ema, batch_size=16, seed=4)
    copied = jax.tree.map(jnp.copy, state.params)
    other = create_state(lambda: copied, optax.adam(1e-2), ema)
    for number in range(2):
        state, metrics = step(state, batch(number))
        other, expected = jax.jit(plain)(other, batch(number))
    assert {"loss", "gradient_norm"} <= set(metrics)
    np.testing.assert_array_equal(metrics["loss"], expected["loss"])
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    first, last = (jax.tree.leaves(tree)[0] for tree in (state.evaluation_params(), state.params))
    assert (first != last).any()
    drawn = dj.sample(model, state.evaluation_params(), labels=[0, 2], num_inference_steps=2)
    assert drawn.shape == (2, 4, 4, 1)


def test_a_loss_of_ones_own_learns(model, batch):
    step = dj.train_step(model, Absolute(), optax.adam(3e-2), batch_size=16)
    state = step.init(model.init_params(jax.random.key(0), init_params))
    losses = []
    for _ in range(30):
        state, metrics = step(state, {**batch(), "data": np.full((16, 4, 4, 1), 0.7, np.float32)})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_frozen_groups_stay(model, batch):
    with pytest.raises(UserError, match=r"no group of network is trained: the patterns are codec"):
        dj.train_step(model, "flow_matching", optax.sgd(1.0), batch_size=16, trained=("codec",)).init()
    with pytest.raises(UserError, match="the parameters lack the group network"):
        dj.train_step(model, "flow_matching", optax.sgd(1.0), batch_size=16).init({})


class OfTokens(Absolute):
    process_kind: ClassVar[str] = "tokens"


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("flow_machting", {}, "did you mean 'flow_matching'"),
        ("mdlm", {}, "objective mdlm is for the process tokens, but the model has gaussian: use "),
        (OfTokens(), {}, "objective OfTokens is for the process tokens"),
        ("lcm", {}, "needs a frozen teacher: train it by a config"),
        ("flow_matching", {"batch_size": 0}, "batch_size must be at least 1, it is 0"),
        ("flow_matching", {"time_sampler": "unifrom"}, "did you mean 'uniform'"),
    ],
)
def test_what_does_not_fit_is_named(model, objective, options, message):
    with pytest.raises(UserError, match=message) as error:
        dj.train_step(model, objective, optax.sgd(1.0), **{"batch_size": 16, **options})
    assert len(str(error.value).splitlines()) == 1


def test_a_batch_that_does_not_fit_is_named(model, batch):
    step = dj.train_step(model, "flow_matching", optax.sgd(1.0), batch_size=16)
    state = step.init()
    with pytest.raises(UserError, match="the batch has no 'data', it has label"):
        step(state, {"label": np.zeros(16, np.int32)})
    with pytest.raises(UserError, match=r"must be \[16, 4, 4, 1\], it is \[3, 4, 4, 1\]"):
        step(state, {"data": np.zeros((3, 4, 4, 1), np.float32)})
    with pytest.raises(UserError, match="Label reads 'label', the batch has data"):
        step(state, {"data": np.zeros((16, 4, 4, 1), np.float32)})
