"""Loss weights by prediction kind: published numbers, and identities between kinds."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.objectives import WEIGHTINGS
from diffusion_jax.schedulers import PREDICTIONS, SCHEDULES
from tests.samplers.closed_form import LogSNRLine

SCHEDULE = LogSNRLine()
SNR = np.array([0.1, 1.0, 5.0, 100.0])


def weight(weighting, kind, snr=SNR, schedule=SCHEDULE):
    t = schedule.time_of_log_snr(np.log(snr))
    return WEIGHTINGS.build(weighting)(PREDICTIONS.build(kind), schedule, t)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("epsilon", np.minimum(SNR, 5) / SNR),
        ("x0", np.minimum(SNR, 5)),
        ("v", np.minimum(SNR, 5) / (SNR + 1)),
        ("score", np.minimum(SNR, 5) / SNR / (SNR + 1)),
    ],
)
def test_min_snr_by_kind(kind, expected):
    np.testing.assert_allclose(weight("min_snr", kind), expected, rtol=1e-12)


def test_min_snr_published_numbers():
    np.testing.assert_allclose(weight("min_snr", "epsilon"), [1, 1, 1, 0.05], rtol=1e-12)
    np.testing.assert_allclose(weight("min_snr", "v"), [0.0909, 0.5, 0.8333, 0.049505], atol=5e-5)


@pytest.mark.parametrize("kind", ["x0", "v", "epsilon"])
@pytest.mark.parametrize("schedule", [{"name": "zero_terminal_snr", "base": "ddpm_linear"}, "rectified_flow"], ids=str)
def test_min_snr_where_there_is_no_signal_is_one(schedule, kind):
    """The weight is 1 at SNR = 0, as in the authors' code, and follows the formula with min(SNR, 5) elsewhere."""
    schedule = SCHEDULES.build(schedule)
    times = np.array([1.0, 0.999, 0.5])
    for t in (times, jnp.asarray(times, jnp.float32)):
        found = np.asarray(WEIGHTINGS.build("min_snr")(PREDICTIONS.build(kind), schedule, t))
        snr = np.exp(schedule.log_snr(times[1:]))
        own = {"x0": 1.0, "v": schedule.sigma(times[1:]) ** 2, "epsilon": 1 / snr}[kind]
        if kind == "v":  # sigma^2 / d^2, d = alpha^2 + sigma^2
            own = own / (schedule.alpha(times[1:]) ** 2 + schedule.sigma(times[1:]) ** 2) ** 2
        np.testing.assert_allclose(found, [1.0, *np.minimum(snr, 5) * own], rtol=2e-3)


def test_snr_weights():
    np.testing.assert_allclose(weight("snr", "epsilon"), 1, rtol=1e-12)
    np.testing.assert_allclose(weight("snr", "x0"), SNR, rtol=1e-12)
    np.testing.assert_allclose(weight({"name": "snr", "minimum": 1.0}, "x0"), np.maximum(SNR, 1), rtol=1e-12)


def test_v_is_x0_weighted_by_snr_plus_one():
    for name in WEIGHTINGS:
        if name != "uniform":
            np.testing.assert_allclose(weight(name, "v") * (SNR + 1), weight(name, "x0"), rtol=1e-12)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_edm_weight_is_uniform_on_the_edm_kind(schedule):
    schedule = SCHEDULES.example(schedule)
    t = np.linspace(0.01, 0.99, 33)
    found = WEIGHTINGS.build("edm")(PREDICTIONS.build("edm"), schedule, t)
    np.testing.assert_allclose(found, 1, rtol=1e-9)


def test_edm_lambda():
    """lambda = (sigma^2 + sd^2) / (sigma sd)^2 on D (Karras et al. 2022)."""
    found = weight("edm", "x0", np.array([0.002, 0.5, 80.0]) ** -2.0, SCHEDULES.build("edm"))
    np.testing.assert_allclose(found, [250004, 8, 4.00015625], rtol=1e-9)


@pytest.mark.parametrize("kind", list(PREDICTIONS))
@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_every_weight_is_finite_and_positive_and_uniform_is_one(name, kind):
    for schedule in map(SCHEDULES.example, SCHEDULES):
        t = jnp.linspace(1e-3, 0.999, 101)
        found = WEIGHTINGS.example(name)(PREDICTIONS.example(kind), schedule, t)
        assert found.shape == t.shape
        assert np.all(np.isfinite(found))
        assert np.all(found > 0)
        if name == "uniform":
            np.testing.assert_array_equal(found, 1)
