"""A step evaluates a teacher with its own conditioners, with guidance, and at the student's guidance scale."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import training
from diffusion_jax.conditioning import Conditioning, GuidanceScale, Label
from diffusion_jax.errors import UserError
from diffusion_jax.models import Network, init_params
from diffusion_jax.objectives import OBJECTIVES, Objective
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import GUIDANCE, SAMPLERS
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Parameterization
from diffusion_jax.specs import ConditionSpec, DataSpec
from diffusion_jax.systems import Model
from diffusion_jax.tasks import Setting

SIZE = 8
X = jnp.asarray(np.random.default_rng(0).standard_normal((SIZE, 2, 2, 1)), jnp.float32)
LABEL = jnp.arange(SIZE, dtype=jnp.int32) % 3
PROCESS = Parameterization.build(schedule="rectified_flow", prediction="x0", time_input="t")


class Toy(Network, kw_only=True):
    """A network whose output is the label's row of a table, plus the guidance scale that it receives."""

    tells: bool = False

    @property
    def takes(self):
        return {**super().takes, **({"guidance": ConditionSpec(role="told")} if self.tells else {})}

    @nn.compact
    def __call__(self, x, time, conditions, dropout_keys=None):
        self.check_inputs(x, time, conditions)
        table = self.param("table", nn.initializers.normal(1.0), (self.num_classes + 1,))
        told = conditions["guidance"] if self.tells else 0.0
        return jnp.broadcast_to((table[conditions["label"]] + told)[:, None, None, None], x.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shows(Objective):
    """An objective that reports the answers of student, target and teacher at one point."""

    needs: ClassVar = frozenset({"teacher", "target"})

    def init_state(self):
        return jnp.zeros((3, SIZE))

    def loss_and_observed(self, denoise_fn, batch, key, context=None):
        t = jnp.full(SIZE, 0.5)
        seen = [one(X, t).x0[:, 0, 0, 0] for one in (denoise_fn, context.target, context.teacher)]
        return jnp.mean(seen[0] ** 2), ({"loss": jnp.mean(seen[0] ** 2)}, {"seen": jnp.stack(seen)})


def model(tells=False, dropout=0.0):
    parts = (Label(num_classes=3), *([GuidanceScale()] if tells else []))
    return Model(
        data=DataSpec(kind="pixels", shape=(2, 2, 1)),
        network=Toy(image_size=2, image_channels=1, num_classes=3, tells=tells),
        process=PROCESS,
        conditioning=Conditioning(parts=parts, dropout={("label",): dropout}),
    )


def seen(student, teacher, bounds, train=True):
    """(student, target, teacher) for every example, and the teacher's table."""
    trainable = training.Trainable(model=student, objective=Shows(), teacher=teacher, guidance=bounds)
    params = student.init_params(jax.random.key(0), init_params)
    theirs = teacher.init_params(jax.random.key(1), init_params)
    state = training.TrainState(
        step=jnp.int32(0), params=params, opt_state=(), ema={}, nonfinite_step=jnp.int32(-1), target=params,
        teacher=theirs,
    )  # fmt: skip
    call = trainable.loss if train else trainable.validation_loss
    _, (_, observed) = call(params, state, {"data": X, "label": LABEL}, BatchKey.create(jax.random.key(3), SIZE))
    return np.asarray(observed["seen"]), np.asarray(theirs["network"]["table"])


def test_a_teacher_is_guided_with_the_scale_that_its_student_is_told():
    student, plain = model(tells=True), model(tells=True)
    (found, target, taught), table = seen(student, model(), (2.0, 5.0))
    base = seen(plain, model(), training.UNGUIDED)[0][0]
    w = found - base + 1.0  # the student adds its scale minus 1
    assert w.min() > 2.0
    assert w.max() < 5.0
    assert np.ptp(w) > 0.5
    np.testing.assert_allclose(target, found, rtol=1e-6)
    np.testing.assert_allclose(taught, table[3] + w * (table[np.asarray(LABEL)] - table[3]), rtol=1e-5)
    assert seen(student, model(), (2.0, 5.0), train=False)[0].shape == (3, SIZE)


def test_a_teacher_that_is_told_a_scale_is_told_it():
    (_, _, taught), table = seen(model(tells=True), model(tells=True), (3.0, 3.0))
    np.testing.assert_allclose(taught, table[np.asarray(LABEL)] + 2.0, rtol=1e-6)


def test_a_teacher_is_told_nothing_where_its_student_is_told_nothing():
    (_, _, taught), table = seen(model(dropout=1.0), model(), training.UNGUIDED)
    np.testing.assert_allclose(taught, np.full(SIZE, table[3]), rtol=1e-6)
    (_, _, validated), _ = seen(model(dropout=1.0), model(), training.UNGUIDED, train=False)
    np.testing.assert_allclose(validated, table[np.asarray(LABEL)], rtol=1e-6)


def setting(**guidance):
    grid = GRIDS.build("uniform")(SCHEDULES.build("rectified_flow"), 3)
    rule = GUIDANCE.build({"name": "classifier_free", **guidance})
    return Setting(model=model(tells=True), sampler=SAMPLERS.build("ddim"), grid=grid, guidance=rule)


def test_the_scale_of_sampling_is_told_and_costs_one_evaluation():
    params = model(tells=True).init_params(jax.random.key(0), init_params)
    table = params["network"]["table"]
    frame = setting(scale=4.0)
    frame.check()
    assert frame.evaluations(3) == 3
    drawn = frame.guided(params, {"label": LABEL}, SIZE)(X, jnp.float32(0.5)).x0[:, 0, 0, 0]
    np.testing.assert_allclose(drawn, table[LABEL] + 3.0, rtol=1e-6)
    nothing = frame.guided(params, None, SIZE)(X, jnp.float32(0.5)).x0[:, 0, 0, 0]
    np.testing.assert_allclose(nothing, np.full(SIZE, table[3] + 3.0), rtol=1e-6)


@pytest.mark.parametrize("more", [{"interval": (0.1, 2.0)}, {"rescale": 0.5}])
def test_a_rule_that_is_more_than_a_scale_can_not_be_told(more):
    with pytest.raises(UserError, match="gets the guidance scale, but classifier_free is more than a scale"):
        setting(scale=4.0, **more).check()


def test_networks_that_alternate_in_one_step():
    """The fake score learns in every step and the network in every third; a step depends only on the state."""
    student = model()
    objective = OBJECTIVES.build({"name": "dmd", "num_steps": 2, "every": 3, "prediction": "x0"})
    trainable = training.Trainable(model=student, objective=objective, teacher=model(), guidance=(2.0, 2.0))
    plain = training.make_optimizer({"name": "adam"}, learning_rate=lambda _: 1e-2, clip_norm=1.0)
    optimizer = training.in_turns(plain, objective.network_every, training.OBJECTIVE)
    ema = training.EmaConfig()
    step = jax.jit(
        training.make_train_step(trainable, optimizer, ema=ema, learning_rate=lambda _: 1e-2, batch_size=SIZE, seed=0)
    )
    state = training.create_state(
        lambda: trainable.init_params(jax.random.key(0), init_params),
        optimizer,
        ema,
        teacher=model().init_params(jax.random.key(1), init_params),
    )
    tables = [state.params["network"]["table"]]
    np.testing.assert_array_equal(state.params["objective"]["fake"]["table"], tables[0])
    for index in range(4):
        fake, kept = state.params["objective"]["fake"]["table"], jax.device_get(state)
        state, metrics = step(state, {"data": X, "label": LABEL})
        tables.append(state.params["network"]["table"])
        assert np.any(tables[-1] != tables[-2]) == (index % 3 == 0)
        followed = np.any(state.params["objective"]["fake"]["table"] != fake)
        assert followed == (index > 0), "a copy of the network has nothing to learn before the network moves"
        assert (metrics["matching"] > 0) == (index % 3 == 0)
        again, _ = step(kept, {"data": X, "label": LABEL})
        jax.tree.map(np.testing.assert_array_equal, again, state)
