"""What every distribution of training times must satisfy, and what each is."""

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
    """Non-decreasing, finite, and at times that the schedule knows."""
    schedule, sampler = SCHEDULES.example(schedule), TIME_SAMPLERS.example(name)
    t = sampler.quantile(jnp.linspace(2.0**-24, 1 - 2.0**-24, 1001), schedule)
    assert np.all(np.diff(t) >= 0)
    assert np.all(np.isfinite(schedule.sigma(t)))
    assert np.all(schedule.sigma(t) > 0)


@pytest.mark.parametrize("name", list(TIME_SAMPLERS))
def test_draws_depend_on_the_global_position_only(name):
    whole = BatchKey.create(jax.random.key(3), 8)
    for low_discrepancy in (False, True):
        sampler = TIME_SAMPLERS.build({"name": name, "low_discrepancy": low_discrepancy})
        half = BatchKey(jax.random.key(3), jnp.arange(4, 8), 8)
        np.testing.assert_array_equal(sampler(half, EDM), sampler(whole, EDM)[4:])


@pytest.mark.parametrize("name", list(TIME_SAMPLERS))
def test_low_discrepancy_has_the_same_distribution_with_less_spread(name):
    plain, even = draw(name), draw({"name": name, "low_discrepancy": True})
    np.testing.assert_allclose(np.quantile(plain, [0.2, 0.5, 0.8]), np.quantile(even, [0.2, 0.5, 0.8]), atol=0.03)
    spread = {
        low: np.std([draw({"name": name, "low_discrepancy": low}, size=64, seed=seed).mean() for seed in range(20)])
        for low in (False, True)
    }
    assert spread[True] < spread[False] / 3


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
    sigma = EDM.sigma(draw({"name": "log_normal", "low_discrepancy": True}))
    np.testing.assert_allclose(np.median(sigma), np.exp(-1.2), rtol=0.01)
    np.testing.assert_allclose(np.log(sigma).std(), 1.2, rtol=0.01)


def test_log_normal_means_the_same_noise_levels_on_every_schedule():
    u = jnp.linspace(0.01, 0.99, 9)
    sampler = TIME_SAMPLERS.build("log_normal")
    for schedule in map(SCHEDULES.example, SCHEDULES):
        log_snr = schedule.log_snr(sampler.quantile(u, schedule))
        np.testing.assert_allclose(log_snr, EDM.log_snr(sampler.quantile(u, EDM)), atol=2e-2)


def test_logit_normal():
    t = draw({"name": "logit_normal", "mean": 0.5, "std": 0.8, "low_discrepancy": True})
    logits = np.log(t) - np.log1p(-t)
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.5, 0.8], atol=0.01)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "uniform", "t_min": 0.9, "t_max": 0.1},
        {"name": "discrete_uniform", "num_steps": 0},
        {"name": "log_normal", "std": 0.0},
        {"name": "logit_normal", "std": -1.0},
    ],
)
def test_bad_options_are_refused(spec):
    with pytest.raises(UserError):
        TIME_SAMPLERS.build(spec)
