"""Conversions between all prediction kinds on every schedule, and EDM's preconditioning."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import PREDICTIONS, SCHEDULES, Parameterization, Prediction, corrupt
from tests.samplers.closed_form import LogSNRLine

KINDS = list(PREDICTIONS)
PAIRS = list(itertools.product(KINDS, KINDS))


def cycle_errors(schedule, t, first, second):
    """The errors of target(first) -> (x0, noise) -> target(second) -> (x0, noise), for unit Gaussian x0 and noise."""
    first, second = PREDICTIONS.example(first), PREDICTIONS.example(second)
    rng = np.random.default_rng(0)
    truth = Prediction(x0=jnp.asarray(rng.normal(size=(t.size, 3))), noise=jnp.asarray(rng.normal(size=(t.size, 3))))
    t = jnp.asarray(t)
    xt = corrupt(schedule, truth.x0, truth.noise, t)
    once = Prediction.from_target(first, schedule, truth.value(first, schedule, t), xt, t)
    twice = Prediction.from_target(second, schedule, once.value(second, schedule, t), xt, t)
    errors = jax.tree.map(lambda found, true: np.abs(np.asarray(found - true)).max(axis=1), twice, truth)
    return errors.x0, errors.noise


def inside(t, *kinds):
    """The times, without t = 0 for a consistency function, which is the identity there and ignores the network."""
    return t[1:] if "consistency" in kinds else t


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_cycles_over_log_snr_20(first, second, x64):
    """Errors are below 1e-12, or what dividing by alpha or sigma leaves of float64 beyond log-SNR +-14: 10 ulp of xt.

    The errors are those of data and noise. In units of xt, as alpha error(x0) and sigma error(noise), all are below
    1e-12.
    """
    schedule, t = LogSNRLine(), inside(np.linspace(0, 1, 81), first, second)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    allowed = np.maximum(1e-12, 3e-15 / np.minimum(alpha, sigma))
    x0_error, noise_error = cycle_errors(schedule, t, first, second)
    assert np.all(x0_error <= allowed)
    assert np.all(noise_error <= allowed)
    assert np.all(alpha * x0_error <= 1e-12)
    assert np.all(sigma * noise_error <= 1e-12)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_cycles_on_every_schedule(schedule, first, second, x64):
    x0_error, noise_error = cycle_errors(SCHEDULES.example(schedule), np.linspace(0.01, 0.99, 25), first, second)
    assert np.all(x0_error <= 5e-12)
    assert np.all(noise_error <= 5e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_tolerance(kind):
    """In float32 errors stay below 1e-4 where alpha and sigma are at least 1e-2."""
    x0_error, noise_error = cycle_errors(
        LogSNRLine(first=9.0, last=-9.0), inside(np.linspace(0, 1, 25), kind), kind, "v"
    )
    assert np.all(x0_error <= 1e-4)
    assert np.all(noise_error <= 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_on_the_host_are_those_on_the_device(kind, x64):
    t = np.linspace(0.1, 0.9, 5)
    kind = PREDICTIONS.example(kind)
    for schedule in map(SCHEDULES.example, SCHEDULES):
        np.testing.assert_allclose(
            np.stack(kind.coefficients(schedule, t)), jnp.stack(kind.coefficients(schedule, jnp.asarray(t))), atol=1e-10
        )


def test_the_kinds_are_what_they_are_called(x64):
    schedule, t = SCHEDULES.build("ddpm_linear"), jnp.asarray(0.3003)
    truth = Prediction(x0=jnp.array([[0.7]]), noise=jnp.array([[-1.1]]))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)

    def value(kind):
        return float(truth.value(PREDICTIONS.build(kind), schedule, t)[0, 0])

    def path(t):
        return corrupt(schedule, truth.x0, truth.noise, t)[0, 0]

    np.testing.assert_allclose(value("epsilon"), -1.1)
    np.testing.assert_allclose(value("x0"), 0.7)
    np.testing.assert_allclose(value("v"), alpha * -1.1 - sigma * 0.7)
    np.testing.assert_allclose(value("score"), 1.1 / sigma)
    np.testing.assert_allclose(value("velocity"), jax.grad(path)(t), rtol=1e-10)


@pytest.mark.parametrize(
    ("sigma", "c_skip", "c_out", "c_in", "c_noise"),
    [
        (0.002, 0.9999840003, 0.0019999840, 1.9999840, -1.5536520246),
        (0.5, 0.5, 0.3535533906, 1.4142135624, -0.1732867951),
        (80.0, 3.9060974e-05, 0.4999902347, 0.0124997559, 1.0955066587),
    ],
)
def test_edm_preconditioning(sigma, c_skip, c_out, c_in, c_noise, x64):
    """D = c_skip x + c_out F(c_in x; c_noise), measured with networks that return 0 and 1."""
    parameterization = Parameterization.build(schedule="edm", prediction="edm", time_input="quarter_log_sigma")
    t = parameterization.schedule.time_of_log_snr(-2 * np.log(sigma))
    seen = {}

    def network(output):
        def call(x, time):
            seen.update(x=x, time=time)
            return jnp.full_like(x, output)

        return parameterization.denoiser(call)

    xt = jnp.ones((2, 1))
    np.testing.assert_allclose(network(0.0)(xt, t).x0, c_skip, rtol=1e-7)
    np.testing.assert_allclose(network(1.0)(0 * xt, t).x0, c_out, rtol=1e-8)
    network(0.0)(xt, t)
    np.testing.assert_allclose(seen["x"], c_in, rtol=1e-7)
    np.testing.assert_allclose(seen["time"], np.full(2, c_noise), rtol=1e-9)


def test_edm_kind_is_karras_formula_on_any_schedule(x64):
    """F = (x0 - c_skip xt / alpha) / c_out with the noise level sigma / alpha."""
    for schedule in map(SCHEDULES.example, SCHEDULES):
        t = np.linspace(0.1, 0.9, 7)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        level, sd = sigma / alpha, 0.5
        c_skip, c_out = sd**2 / (level**2 + sd**2), level * sd / np.sqrt(level**2 + sd**2)
        a, b = PREDICTIONS.build("edm").coefficients(schedule, t)
        np.testing.assert_allclose(a, (1 - c_skip) / c_out, rtol=1e-9)
        np.testing.assert_allclose(b, -c_skip * level / c_out, rtol=1e-9)
        np.testing.assert_allclose((a * sd) ** 2 + b**2, 1, rtol=1e-10)  # the target has unit variance


def test_from_x0_keeps_xt():
    schedule, t = SCHEDULES.build("ddpm_linear"), jnp.array([0.2, 0.9])
    xt = jnp.array([[1.0, -2.0], [0.5, 0.1]])
    prediction = Prediction.from_x0(schedule, jnp.clip(2 * xt, -1, 1), xt, t)
    np.testing.assert_allclose(corrupt(schedule, prediction.x0, prediction.noise, t), xt, atol=1e-6)


def test_wrong_shapes_are_refused():
    schedule = SCHEDULES.build("edm")
    with pytest.raises(UserError, match="one shape"):
        Prediction.from_target(PREDICTIONS.build("x0"), schedule, jnp.zeros((2, 3)), jnp.zeros((2, 1)), jnp.zeros(2))
    with pytest.raises(UserError, match="one shape"):
        corrupt(schedule, jnp.zeros((2, 3)), jnp.zeros((2, 1)), jnp.zeros(2))
