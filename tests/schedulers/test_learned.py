"""VDM's learned schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import MonotoneGamma


@pytest.fixture(params=[False, True])
def learned(request):
    rule = MonotoneGamma(fixed_ends=request.param)
    params = rule.init(jax.random.key(0))
    noisy = {name: value + 0.5 * jax.random.normal(jax.random.key(1), value.shape) for name, value in params.items()}
    return rule, params, noisy


def test_parameters_and_ends(learned):
    rule, params, noisy = learned
    assert sum(value.size for value in params.values()) == 3074
    np.testing.assert_allclose(rule.gamma(params, np.array([0.0, 1.0])), [-13.3, 5.0], atol=1e-5)
    if rule.fixed_ends:
        np.testing.assert_allclose(rule.gamma(noisy, np.array([0.0, 1.0])), [-13.3, 5.0], atol=1e-12)


def test_a_schedule_whatever_the_parameters(learned, x64):
    rule, _, noisy = learned
    schedule, t = rule.bind(noisy), np.linspace(0, 1, 101)
    assert np.all(np.diff(schedule.log_snr(t)) < 0)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, rtol=1e-12)
    np.testing.assert_allclose(schedule.time_of_log_snr(schedule.log_snr(t)), t, atol=1e-12)
    np.testing.assert_allclose(jax.jit(schedule.log_snr)(jnp.asarray(t)), schedule.log_snr(t), rtol=1e-9)
    np.testing.assert_allclose(jax.jit(schedule.time_of_log_snr)(schedule.log_snr(jnp.asarray(t))), t, atol=1e-9)


def test_gradients_reach_every_parameter(learned):
    rule, params, _ = learned
    gradient = jax.grad(lambda p: jnp.sum(rule.bind(p).sigma(jnp.linspace(0.1, 0.9, 5))))(params)
    assert all(
        np.any(np.asarray(value) != 0) for name, value in gradient.items() if not (rule.fixed_ends and name == "b1")
    )


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="gamma_min < gamma_max"):
        MonotoneGamma(gamma_min=1.0, gamma_max=0.0)
