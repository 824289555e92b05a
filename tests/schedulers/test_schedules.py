"""Properties that every registered noise schedule must have, and published constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import SCHEDULES
from tests.samplers.closed_form import LogSNRLine

ALL = [*SCHEDULES, LogSNRLine()]
INSIDE = np.linspace(0.0005, 0.9995, 199)
METHODS = ("alpha", "sigma", "log_snr", "alpha_derivative", "sigma_derivative")


@pytest.fixture(params=ALL, ids=str)
def schedule(request):
    return SCHEDULES.example(request.param) if isinstance(request.param, str) else request.param


def test_monotone(schedule):
    t = np.linspace(0, 1, 1001)
    assert np.all(np.diff(schedule.alpha(t)) <= 0)
    assert np.all(np.diff(schedule.sigma(t)) >= 0)
    assert np.all(np.diff(schedule.log_snr(t)) < 0)


def test_endpoints(schedule):
    """Data has little noise left at t = 0, and the prior has little signal left at t = 1."""
    if not isinstance(schedule, LogSNRLine):
        np.testing.assert_allclose(schedule.alpha(0.0), 1, rtol=0, atol=0.51 * schedule.sigma(0.0) ** 2)
        assert schedule.sigma(0.0) <= 0.01
    assert schedule.log_snr(1.0) < -4.9  # VDM ends at -5, Stable Diffusion at -5.4
    np.testing.assert_allclose(schedule.prior_std, schedule.sigma(1.0), rtol=4e-3)


def test_variance(schedule):
    """Every schedule is variance preserving, exploding, a straight interpolant or sub-VP; sigma stays below the
    prior's."""
    alpha, sigma = schedule.alpha(INSIDE), schedule.sigma(INSIDE)
    families = (alpha**2 + sigma**2, alpha, alpha + sigma, alpha**2 + sigma)
    assert any(np.allclose(family, 1, rtol=0, atol=1e-14) for family in families)
    assert np.all(sigma <= schedule.prior_std)


def test_log_snr_agrees_with_alpha_and_sigma(schedule):
    expected = 2 * np.log(schedule.alpha(INSIDE) / schedule.sigma(INSIDE))
    np.testing.assert_allclose(schedule.log_snr(INSIDE), expected, rtol=1e-10, atol=1e-10)


def test_inverse(schedule):
    np.testing.assert_allclose(schedule.time_of_log_snr(schedule.log_snr(INSIDE)), INSIDE, rtol=1e-9, atol=1e-11)


def test_derivatives_against_finite_differences(schedule):
    t, step = np.linspace(0.01025, 0.98925, 90), 1e-6  # between the knots of a table of 1000 steps
    for name in ("alpha", "sigma"):
        curve = getattr(schedule, name)
        difference = (curve(t + step) - curve(t - step)) / (2 * step)
        np.testing.assert_allclose(getattr(schedule, f"{name}_derivative")(t), difference, rtol=1e-5, atol=1e-8)


def test_derivatives_are_those_of_jvp(schedule, x64):
    t = jnp.asarray(np.linspace(0.01025, 0.98925, 90))
    for name in ("alpha", "sigma"):
        expected = jax.jvp(getattr(schedule, name), (t,), (jnp.ones_like(t),))[1]
        np.testing.assert_allclose(getattr(schedule, f"{name}_derivative")(t), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_numpy_and_jax_agree_in_float64(schedule, method, x64):
    host = getattr(schedule, method)(INSIDE)
    device = jax.jit(getattr(schedule, method))(jnp.asarray(INSIDE))
    assert isinstance(host, np.ndarray)
    assert host.dtype == device.dtype == np.float64
    np.testing.assert_allclose(host, device, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["alpha", "sigma", "log_snr"])
def test_float32_is_accurate(schedule, method):
    found = getattr(schedule, method)(jnp.asarray(INSIDE, jnp.float32))
    assert found.dtype == jnp.float32
    if method == "alpha" and schedule == SCHEDULES.build("rectified_flow"):
        return  # 1 - t cancels for a rounded t
    np.testing.assert_allclose(found, getattr(schedule, method)(np.float32(INSIDE)), rtol=2e-4, atol=2e-5)


def test_inverse_in_jax_float32(schedule):
    log_snr = schedule.log_snr(INSIDE)
    found = schedule.time_of_log_snr(jnp.asarray(log_snr, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, INSIDE, atol=2e-5)


def test_host_values_are_numpy_also_while_tracing(schedule):
    """NumPy inputs give NumPy values inside jit, because grids are computed with the same methods."""

    @jax.jit
    def traced(x):
        assert isinstance(schedule.alpha_derivative(np.array([0.25])), np.ndarray)
        assert isinstance(schedule.sigma(0.25), np.generic | np.ndarray)
        return x

    traced(1.0)


def test_hashable(schedule):
    assert hash(schedule) == hash(schedule)


def test_ddpm_linear_constants():
    """The linear table of Ho et al. 2020: T = 1000, beta 1e-4 ... 0.02."""
    schedule = SCHEDULES.build("ddpm_linear")
    last, first = 1.0, 1 / 1000
    found = [
        schedule.alpha(last) ** 2,
        schedule.alpha(last),
        schedule.log_snr(first),
        schedule.log_snr(last),
        schedule.sigma(first) / schedule.alpha(first),
        schedule.sigma(last) / schedule.alpha(last),
        schedule.betas().sum(),
    ]
    expected = [4.03582976538e-05, 0.0063528181, 9.2102403670, -10.1176731833, 0.01000050004, 157.4072808, 10.05]
    np.testing.assert_allclose(found, expected, rtol=4e-9)  # the published digits
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-11)
    np.testing.assert_allclose(found[3], expected[3], rtol=1e-11)


def test_ddpm_linear_knots_are_the_table():
    schedule = SCHEDULES.build("ddpm_linear")
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    knots = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(schedule.alpha(knots) ** 2, table, rtol=1e-10)
    np.testing.assert_allclose(schedule.sigma(knots) ** 2, 1 - table, rtol=1e-10)


@pytest.mark.parametrize(
    ("num_steps", "alpha_squared", "sigma_max"),
    [(1000, 2.42876690703e-09, 20291.16961), (4000, 1.51798e-10, 81164.64774)],
)
def test_cosine_constants(num_steps, alpha_squared, sigma_max):
    """The cosine table of Nichol & Dhariwal 2021."""
    schedule = SCHEDULES.build({"name": "cosine", "num_steps": num_steps})
    np.testing.assert_allclose(schedule.alpha(1.0) ** 2, alpha_squared, rtol=1e-5 if num_steps == 4000 else 1e-11)
    np.testing.assert_allclose(schedule.sigma(1.0) / schedule.alpha(1.0), sigma_max, rtol=1e-10)
    if num_steps == 1000:
        betas = schedule.betas()
        np.testing.assert_allclose(betas[0], 4.128422482e-05, rtol=1e-9)
        np.testing.assert_allclose(betas[-2:], [0.7499993929, 0.999], rtol=1e-9)
        np.testing.assert_allclose(schedule.alpha(0.001) ** 2, 0.999958715775, rtol=1e-12)
        np.testing.assert_allclose(schedule.sigma(0.001) / schedule.alpha(0.001), 0.006425412771, rtol=1e-9)


@pytest.mark.parametrize(
    ("num_steps", "index", "sigma"),
    [
        *((18, 0, 80.0), (18, 1, 57.585984721), (18, 2, 40.785573796), (18, 16, 0.007528020), (18, 17, 0.002)),
        *((40, 1, 69.450946), (40, 38, 0.0036765892), (32, 16, 2.17386), (32, 22, 0.28304)),
    ],
)
def test_edm_is_karras_spacing(num_steps, index, sigma):
    """The noise levels follow Karras et al. 2022, eq. 5."""
    sigmas = SCHEDULES.build("edm").sigma(np.linspace(1, 0, num_steps))
    np.testing.assert_allclose(sigmas[index], sigma, rtol=0, atol=6e-6 if num_steps == 32 else 6e-7)
    rho = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), num_steps) ** 7
    np.testing.assert_allclose(sigmas, rho, rtol=1e-13)


def test_edm_reaches_beyond_its_ends():
    schedule = SCHEDULES.build("edm")
    sigmas = np.array([1e-4, 1e-3, 100.0, 300.0])
    times = schedule.time_of_log_snr(-2 * np.log(sigmas))
    assert np.all((times < 0) | (times > 1))
    np.testing.assert_allclose(schedule.sigma(times), sigmas, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(jnp.asarray(times, jnp.float32)), sigmas, rtol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "ddpm_linear", "beta_end": 1.5},
        {"name": "ddpm_linear", "beta_start": 0.02, "beta_end": 1e-4},
        {"name": "scaled_linear", "beta_start": 0.02},
        {"name": "sigmoid_betas", "beta_end": 1e-5},
        {"name": "vp_sde", "beta_min": 30.0},
        {"name": "ddpm_linear", "num_steps": 0},
        {"name": "edm", "sigma_min": 0.0},
        {"name": "cosin"},
        {"name": "vp_sde", "beta_min": -1.0},
        {"name": "ve_sde", "sigma_min": 2.0, "sigma_max": 1.0},
        {"name": "sigmoid", "tau": 0.0},
        {"name": "respaced", "steps": "ddim999"},
        {"name": "respaced", "steps": "2000"},
        {"name": "respaced", "base": "edm"},
        {"name": "zero_terminal_snr", "base": "vp_sde"},
        {"name": "shifted", "base": "edm"},
        {"name": "shifted", "shift": -1.0},
        {"name": "beta_table", "table": (0.1, 1.2)},
    ],
)
def test_bad_options_are_refused(spec):
    with pytest.raises(UserError):
        SCHEDULES.build(spec)
