"""Students that skip along a guided teacher's flow: losses in closed form in float64, and exact cases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES, Context
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import SCHEDULES, Prediction
from diffusion_jax.training.teaching import guided_by
from tests.samplers.closed_form import Gaussian

FLOW = SCHEDULES.build("rectified_flow")
SIZE = 6
CONDITIONAL, UNCONDITIONAL = Gaussian(mean=0.6, std=0.5), Gaussian(mean=-0.1, std=0.5)
pytestmark = pytest.mark.usefixtures("x64")


def keys(size=SIZE):
    return BatchKey.create(jax.random.key(1), size)


def data(size=SIZE):
    return 0.3 + 0.5 * np.random.default_rng(0).standard_normal((size, 2))


def build(name, **options):
    return OBJECTIVES.build({"name": name, "schedule": "rectified_flow", "prediction": "velocity", **options})


def exact(gaussian, x, t):
    """(x0, noise) of a Gaussian on the straight path, in NumPy."""
    alpha, sigma = 1.0 - t, t
    scaled = (x - alpha * gaussian.mean) / ((alpha * gaussian.std) ** 2 + sigma**2)
    return gaussian.mean + alpha * gaussian.std**2 * scaled, sigma * scaled


def by_hand(objective, x0, w, answer):
    """The loss in NumPy with the objective's times and noise, where f is `answer(gaussian, x, t)`."""
    key = keys()
    noise = np.asarray(key.fold_in("noise").normal((2,), np.float64))
    t, r = (np.asarray(one)[:, None] for one in objective.times(key.fold_in("time")))
    xt = (1 - t) * x0 + t * noise
    guided = [u + w * (c - u) for c, u in zip(exact(CONDITIONAL, xt, t), exact(UNCONDITIONAL, xt, t), strict=True)]
    xr = (1 - r) * guided[0] + r * guided[1]
    student, average = Gaussian(mean=0.5, std=0.4), Gaussian(mean=0.4, std=0.6)
    target = np.where(r > 0, answer(average, xr, r), xr)
    d = answer(student, xt, t) - target
    return np.mean(np.sqrt(d**2 + objective.huber**2) - objective.huber)


def loss_of(objective, x0, w):
    teacher = guided_by(CONDITIONAL.denoiser(FLOW), UNCONDITIONAL.denoiser(FLOW), jnp.full(SIZE, w))
    student, average = Gaussian(mean=0.5, std=0.4).denoiser(FLOW), Gaussian(mean=0.4, std=0.6).denoiser(FLOW)
    context = Context(target=lambda x, t, *u: average(x, t), teacher=teacher)
    return objective.loss(lambda x, t, *u: student(x, t), {"data": jnp.asarray(x0)}, keys(), context)


@pytest.mark.parametrize("w", [1.0, 4.0])
def test_lcm_against_a_closed_form(w):
    """Target, scalings and distance equal a closed form, with guidance in the target."""
    objective = build("lcm", solver_steps=5)

    def answer(gaussian, x, t):
        s = 10.0 * np.maximum(1000.0 * t - 1.0, 0.0)
        return 0.25 / (s**2 + 0.25) * x + s / np.sqrt(s**2 + 0.25) * exact(gaussian, x, t)[0]

    found, metrics = loss_of(objective, data(), w)
    np.testing.assert_allclose(found, by_hand(objective, data(), w, answer), rtol=1e-9)
    assert metrics["mse"] > 0


def test_tcd_against_a_closed_form():
    objective = build("tcd", solver_steps=5)
    _, r = objective.times(keys().fold_in("time"))
    u = np.asarray(r * keys().fold_in("end").uniform())[:, None]

    def answer(gaussian, x, t):
        x0, noise = exact(gaussian, x, t)
        return (1 - u) * x0 + u * noise

    np.testing.assert_allclose(loss_of(objective, data(), 3.0)[0], by_hand(objective, data(), 3.0, answer), rtol=1e-9)


def test_scalings_of_lcm():
    """f is the identity up to the chain's first step, bit for bit, and x0 alone at high noise."""
    objective = build("lcm")
    x = jnp.array([[0.3, -1.7], [2.0, 0.1]])
    f = objective.for_sampling(lambda x, t: Prediction(x0=jnp.cos(x), noise=x))
    np.testing.assert_array_equal(f(x, jnp.array([0.0, 0.001])).x0, x)
    np.testing.assert_allclose(f(x, jnp.array([1.0, 0.5])).x0, jnp.cos(x), atol=1e-3)
    skip, out = objective.asking.scalings(jnp.float64(0.002))
    np.testing.assert_allclose([skip, out], [0.25 / 100.25, 10.0 / math.sqrt(100.25)], rtol=1e-9)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_what_is_exact_is_consistent_but_for_the_teachers_step(name):
    """The exact flow map has only the error of one DDIM step, whose loss falls as the square of the step size."""
    flow_map, teacher = CONDITIONAL.flow_map(FLOW), CONDITIONAL.denoiser(FLOW)

    def student(objective):
        def denoise(x, t, *u):
            end = flow_map(x, t, *u)
            if u:
                return end
            skip, out = (c[:, None] for c in objective.asking.scalings(t))
            return Prediction(x0=(end.x0 - skip * x) / jnp.where(out == 0, 1.0, out), noise=end.noise)

        return denoise

    found = []
    for steps in (20, 40):
        objective = build(name, solver_steps=steps)
        f = student(objective)
        _, metrics = objective.loss(f, {"data": jnp.asarray(data(64))}, keys(64), Context(target=f, teacher=teacher))
        found.append(math.sqrt(metrics["mse"]))
    assert found[0] < 0.05
    assert 2.8 < found[0] / found[1] < 5.6


def test_guided_by_scale_1_is_the_conditional_one():
    x, t = jnp.asarray(data()), jnp.full(SIZE, 0.4)
    plain, away = CONDITIONAL.denoiser(FLOW), UNCONDITIONAL.denoiser(FLOW)
    np.testing.assert_allclose(guided_by(plain, away, jnp.ones(SIZE))(x, t).x0, plain(x, t).x0, rtol=1e-12)
    twice = guided_by(plain, away, jnp.float64(2.0))(x, t)
    np.testing.assert_allclose(twice.x0, 2 * plain(x, t).x0 - away(x, t).x0, rtol=1e-9)
    np.testing.assert_allclose(0.6 * twice.x0 + 0.4 * twice.noise, x, rtol=1e-9)


def test_a_student_that_is_its_teacher_has_no_loss():
    """The guided teacher itself has no imitation loss, and its exact flow map has no loss with two times."""
    away = Gaussian(mean=0.0, std=0.5)
    guided = Gaussian(mean=away.mean + 3.0 * (CONDITIONAL.mean - away.mean), std=0.5)  # equal deviations: Gaussian
    teacher = guided_by(CONDITIONAL.denoiser(FLOW), away.denoiser(FLOW), jnp.full(SIZE, 3.0))
    flow_map, plain = guided.flow_map(FLOW), guided.denoiser(FLOW)

    def student(x, t, *s):
        return flow_map(x, t, *s) if s else plain(x, t)

    context, batch = Context(teacher=teacher, target=student), {"data": jnp.asarray(data())}
    for name in ("guidance_distillation", "meanflow_distillation", "shortcut_distillation"):
        loss = OBJECTIVES.build(name).loss(student, batch, keys(), context)[0]
        assert loss < 1e-12, name
    other = Gaussian(mean=0.5, std=0.5).denoiser(FLOW)
    assert OBJECTIVES.build("guidance_distillation").loss(other, batch, keys(), context)[0] > 0.1


def test_steps_and_distances_that_are_none():
    assert build("lcm", solver_steps=7).most_steps == 7
    assert OBJECTIVES.build("flow_matching").most_steps is None
    with pytest.raises(UserError, match="solver_steps"):
        build("lcm", solver_steps=0)
    with pytest.raises(UserError, match="huber"):
        build("tcd", huber=0.0)
