"""A step gives the objective more than the batch: target, teacher, and the objective's own parameters and state."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import models, training
from diffusion_jax.objectives import OBJECTIVES, Objective
from diffusion_jax.schedulers import SCHEDULES, corrupt

SIZE, STEPS = 16, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything(Objective):
    """Uses the whole context: the error to target and teacher, a learned scale, the order of examples."""

    needs: ClassVar = frozenset({"target", "teacher"})

    def init_params(self, key):
        return {"log_scale": jnp.zeros(())}

    def init_state(self):
        return {"seen": jnp.zeros(SIZE), "steps": jnp.int32(0)}

    def update_state(self, state, observed):
        return {"seen": observed["mean"], "steps": state["steps"] + 1}

    def target_decay_at(self, step):
        return jnp.where(step == 0, 0.5, 0.9)

    def loss_and_observed(self, denoise_fn, batch, key, context=None):
        self.require(context)
        x0 = batch["data"]
        t = key.uniform()
        xt = corrupt(SCHEDULES.build("rectified_flow"), x0, key.normal(x0.shape[1:]), t)
        found = denoise_fn(xt, t).x0
        error = sum(jnp.mean((found - other(xt, t).x0) ** 2) for other in (context.target, context.teacher))
        scale = context.params["log_scale"]
        loss = jnp.exp(-scale) * (error + jnp.mean((found - x0) ** 2)) + scale
        return loss, ({"loss": loss, "error": error}, {"mean": x0.mean((1, 2, 3))})


@pytest.fixture
def trained(make_trainable, make_step, batch):
    def run(*, accumulation=1, pmap=False):
        teacher = make_trainable("dit").model
        trainable = dataclasses.replace(make_trainable("unet"), objective=Everything(), teacher=teacher)
        step, _ = make_step(trainable, accumulation=accumulation)
        optimizer = training.make_optimizer({"name": "sgd"}, learning_rate=lambda _: 1e-2, clip_norm=1.0)
        state = training.create_state(
            lambda: trainable.init_params(jax.random.key(0), models.init_params),
            optimizer,
            training.EmaConfig(decays=(0.9,)),
            with_target=True,
            teacher=teacher.init_params(jax.random.key(1), models.init_params),
            objective_state=trainable.objective.init_state(),
        )
        layout = training_layout(pmap)
        compiled = layout.compile(step, jax.eval_shape(lambda: state))
        first, running = jax.device_get(state), layout.from_canonical(state)
        for index in range(STEPS):
            running, metrics = compiled(running, layout.place_batch(batch(index)))
        return first, jax.device_get(layout.to_canonical(running)), layout.fetch(metrics)

    return run


def training_layout(pmap):
    from diffusion_jax.parallel import LAYOUTS

    return LAYOUTS.build("pmap" if pmap else "jit")


def test_all_of_it_reaches_the_objective(trained, batch):
    first, last, metrics = trained()
    assert first.params["objective"]["log_scale"] == 0
    assert last.params["objective"]["log_scale"] != 0, "the objective's parameters are trained"
    jax.tree.map(np.testing.assert_array_equal, last.teacher, first.teacher)
    assert last.objective_state["steps"] == STEPS
    np.testing.assert_allclose(last.objective_state["seen"], batch(STEPS - 1)["data"].mean((1, 2, 3)), rtol=1e-5)
    assert metrics["error"] > 0
    moved, followed = (
        np.abs(np.concatenate([np.ravel(b - a) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)])).sum()
        for pair in ((first.params, last.params), (first.target, last.target))
    )
    assert 0 < followed < moved, "the target follows the parameters"


def test_any_layout_and_accumulation_is_the_same_step(trained):
    reference = trained()[1]
    assert "objective" in reference.ema["decay_0.9"]
    for other in (trained(accumulation=2), trained(pmap=True)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), other[1], reference)


def test_a_network_of_shortcuts_is_never_asked_for_the_least_length(make_trainable):
    """The shortest step is evaluated as the velocity, which flow matching trains; longer steps are passed on."""
    trainable = make_trainable("dit", num_times=2)
    trainable = dataclasses.replace(trainable, objective=OBJECTIVES.build({"name": "shortcut", "base_steps": 8}))
    params = jax.tree.map(lambda leaf: leaf + 0.1, trainable.model.init_params(jax.random.key(0), models.init_params))
    denoise = trainable.denoiser(params, trainable.model.conditioning.null({}, 2))
    x, t = jax.random.normal(jax.random.key(1), (2, 4, 4, 1)), jnp.float32(0.5)
    velocity, least, twice = (denoise(x, t, *s).x0 for s in ((), (t - 1 / 8,), (t - 2 / 8,)))
    np.testing.assert_array_equal(least, velocity)
    assert np.abs(twice - velocity).max() > 1e-5
