"""Properties that every distribution of training times must have, and the formulas of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import SCHEDULES, TIME_SAMPLERS

EDM = SCHEDULES.build("edm")


def draw(spec, schedule=EDM, size=4096, seed=0):
    key = BatchKey.create(jax.random.key(seed), size)
    return np.asarray(TIME_SAMPLERS.build(spec)(key, schedule))


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("name", list(TIME_SAMPLERS))
def test_quantile(name, schedule):
    """Quantiles are non-decreasing, finite, and valid times of the schedule."""
    schedule, sampler = SCHEDULES.example(schedule), TIME_SAMPLERS.example(name)
    t = sampler.quantile(jnp.linspace(2.0**-24, 1 - 2.0**-24, 1001), schedule)
    assert np.all(np.diff(t) >= 0)
    assert np.all(np.isfinite(schedule.sigma(t)))
    assert np.all(schedule.sigma(t) > 0)


@pytest.mark.parametrize("name", list(TIME_SAMPLERS))
def test_draws_depend_on_the_global_position_only(name):
    whole = BatchKey.create(jax.random.key(3), 8)
    for uniforms in ("independent", "antithetic", "stratified", "low_discrepancy"):
        sampler = TIME_SAMPLERS.build({"name": name, "uniforms": uniforms})
        half = BatchKey(jax.random.key(3), jnp.arange(4, 8), 8)
        np.testing.assert_array_equal(sampler(half, EDM), sampler(whole, EDM)[4:])


@pytest.mark.parametrize("name", list(TIME_SAMPLERS))
def test_even_uniforms_give_the_same_distribution_with_less_spread(name):
    spread = {}
    for uniforms in ("independent", "antithetic", "stratified", "low_discrepancy"):
        sampler = TIME_SAMPLERS.build({"name": name, "uniforms": uniforms})
        draws = jax.vmap(lambda seed, s=sampler: s(BatchKey.create(jax.random.key(seed), 64), EDM))(jnp.arange(128))
        spread[uniforms] = np.std(np.mean(draws, axis=1))
        if uniforms == "independent":
            reference = np.quantile(draws, [0.2, 0.5, 0.8])
        np.testing.assert_allclose(np.quantile(draws, [0.2, 0.5, 0.8]), reference, atol=0.03)
    assert spread["stratified"] < spread["independent"] / 3
    assert spread["low_discrepancy"] < spread["independent"] / 3
    assert spread["antithetic"] < spread["independent"]


def test_uniform():
    t = draw({"name": "uniform", "t_min": 0.25, "t_max": 0.5})
    assert 0.25 <= t.min() < 0.26
    assert 0.49 < t.max() <= 0.5
    assert draw("uniform").min() >= 1e-5


def test_discrete_uniform_visits_every_step_and_no_other_time():
    t = draw({"name": "discrete_uniform", "num_steps": 10})
    np.testing.assert_allclose(np.unique(t), np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(np.bincount(np.round(t * 10).astype(int))[1:], 409.6, rtol=0.2)


def test_log_normal_is_edm_s():
    sigma = EDM.sigma(draw({"name": "log_normal", "uniforms": "low_discrepancy"}))
    np.testing.assert_allclose(np.median(sigma), np.exp(-1.2), rtol=0.01)
    np.testing.assert_allclose(np.log(sigma).std(), 1.2, rtol=0.01)


def test_log_normal_means_the_same_noise_levels_on_every_schedule():
    u = jnp.linspace(0.01, 0.99, 9)
    sampler = TIME_SAMPLERS.build("log_normal")
    for schedule in map(SCHEDULES.example, SCHEDULES):
        log_snr = schedule.log_snr(sampler.quantile(u, schedule))
        np.testing.assert_allclose(log_snr, EDM.log_snr(sampler.quantile(u, EDM)), atol=2e-2)


def test_logit_normal():
    t = draw({"name": "logit_normal", "mean": 0.5, "std": 0.8, "uniforms": "low_discrepancy"})
    logits = np.log(t) - np.log1p(-t)
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.5, 0.8], atol=0.01)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "uniform", "t_min": 0.9, "t_max": 0.1},
        {"name": "discrete_uniform", "num_steps": 0},
        {"name": "log_normal", "std": 0.0},
        {"name": "logit_normal", "std": -1.0},
        {"name": "mode", "scale": 2.0},
        {"name": "loss_second_moment", "history": 0},
        {"name": "uniform", "uniforms": "even"},
    ],
)
def test_bad_options_are_refused(spec):
    with pytest.raises(UserError):
        TIME_SAMPLERS.build(spec)


def test_mode_and_cosmap():
    """mode: f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u), SD3 eq. 20; cosmap: density 2 / (pi - 2 pi t + 2 pi t^2)."""
    u = np.linspace(0.01, 0.99, 25)
    mode = TIME_SAMPLERS.build({"name": "mode", "scale": 0.8})
    sd3 = 1 - u - 0.8 * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    np.testing.assert_allclose(mode.quantile(jnp.asarray(1 - u), EDM), sd3, atol=1e-6)
    t = np.asarray(TIME_SAMPLERS.build("cosmap").quantile(jnp.asarray(u), EDM))
    np.testing.assert_allclose(1 / np.gradient(t, u)[2:-2], (2 / (np.pi * (1 - 2 * t + 2 * t**2)))[2:-2], rtol=1e-2)


def test_importance_is_uniform_until_every_step_has_its_history_and_then_follows_the_losses():
    sampler = TIME_SAMPLERS.build({"name": "loss_second_moment", "num_steps": 3, "history": 2, "uniform_share": 0.1})
    state, key = sampler.init_state(), BatchKey.create(jax.random.key(0), 3000)
    update = jax.jit(sampler.update)
    state = update(state, jnp.array([1, 2, 3, 1, 2]) / 3, jnp.array([1.0, 2.0, 3.0, 1.0, 2.0]))
    np.testing.assert_allclose(sampler.probabilities(state), 1 / 3, rtol=1e-6)
    state = update(state, jnp.array([1.0, 1 / 3]), jnp.array([3.0, 7.0]))  # forgets the oldest loss of step 1
    roots = np.array([np.sqrt((7**2 + 1) / 2), 2, 3])
    p = 0.9 * roots / roots.sum() + 0.1 / 3
    np.testing.assert_allclose(sampler.probabilities(state), p, rtol=1e-6)
    t, factor = sampler.draw(key, EDM, state)
    steps = np.round(np.asarray(t) * 3).astype(int) - 1
    np.testing.assert_allclose(np.bincount(steps) / 3000, p, atol=0.03)
    np.testing.assert_allclose(factor, 1 / (3 * p[steps]), rtol=1e-5)
    value = np.array([5.0, 1.0, 2.0])
    np.testing.assert_allclose(np.mean(np.asarray(factor) * value[steps]), value.mean(), rtol=0.05)  # unbiased


def test_importance_keeps_every_loss_of_a_batch_in_order():
    sampler = TIME_SAMPLERS.build({"name": "loss_second_moment", "num_steps": 1, "history": 2})
    state = sampler.update(sampler.init_state(), jnp.ones(5), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert sorted(np.asarray(state.losses)[0]) == [4.0, 5.0]
    assert state.counts[0] == 5
