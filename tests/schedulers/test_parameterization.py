"""Settings of a parameterisation: names, shapes, precision, and impossible combinations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import INPUT_SCALES, PREDICTIONS, SCHEDULES, TIME_INPUTS, Parameterization

# Schedules without any signal at t = 1; alpha may also end there with an infinite slope.
NO_SIGNAL = ("rectified_flow", "gvp", "trigflow", "shifted", "sigmoid", "zero_terminal_snr")
IMPOSSIBLE = {*itertools.product(NO_SIGNAL, ("epsilon", "score")), ("sigmoid", "velocity")}


def is_impossible(schedule, prediction):
    """Whether a pair is impossible; for schedules of other packages this follows from the values near t = 1."""
    if (schedule, prediction) in IMPOSSIBLE or type(SCHEDULES.example(schedule)).__module__.startswith("diffusion_jax"):
        return (schedule, prediction) in IMPOSSIBLE
    alpha = SCHEDULES.example(schedule).alpha
    steep = abs(alpha(1.0) - alpha(1.0 - 1e-12)) > 1e-9
    return alpha(1.0) == 0 and (prediction in ("epsilon", "score") or (prediction == "velocity" and steep))


def build(**choices):
    defaults = {"schedule": "ddpm_linear", "prediction": "epsilon", "time_input": "discrete_index"}
    return Parameterization.build(**{**defaults, **choices})


@pytest.mark.parametrize(("schedule", "prediction"), list(itertools.product(SCHEDULES, PREDICTIONS)))
def test_a_perfect_network_gives_back_data_and_noise(schedule, prediction, x64):
    if is_impossible(schedule, prediction):
        with pytest.raises(UserError, match="does not determine x0"):
            build(schedule=SCHEDULES.example(schedule), prediction=prediction, time_input="t")
        return
    parameterization = build(schedule=SCHEDULES.example(schedule), prediction=prediction, time_input="t")
    x0, noise = jnp.array([[0.3, -0.8], [1.0, 0.0]]), jnp.array([[1.5, 0.2], [-0.4, 0.9]])
    for t in (jnp.asarray(0.4), jnp.array([0.1, 0.9])):
        schedule_now = parameterization.schedule
        alpha, sigma = (c.reshape(-1, 1) for c in (schedule_now.alpha(t), schedule_now.sigma(t)))
        target = parameterization.target(x0, noise, t)
        found = parameterization.denoiser(lambda x, time, target=target: target)(alpha * x0 + sigma * noise, t)
        np.testing.assert_allclose(found.x0, x0, atol=1e-10)
        np.testing.assert_allclose(found.noise, noise, atol=1e-10)


@pytest.mark.parametrize("name", list(TIME_INPUTS))
@pytest.mark.parametrize("t", [0.25, jnp.array([0.25, 0.25])])
def test_time_inputs(name, t):
    parameterization = build(time_input=name)
    _, time = parameterization.network_inputs(jnp.zeros((2, 3)), t)
    schedule = parameterization.schedule
    level = schedule.sigma(0.25) / schedule.alpha(0.25)
    expected = {
        "discrete_index": 249,
        "scaled_t": 250,
        "t": 0.25,
        "quarter_log_sigma": np.log(level) / 4,
        "log_half_sigma": np.log(level / 2),
    }[name]
    assert time.dtype == jnp.float32
    np.testing.assert_allclose(time, np.full(2, expected), rtol=1e-5)


def test_discrete_index_at_the_ends():
    _, time = build().network_inputs(jnp.zeros((2, 1)), jnp.array([0.001, 1.0]))
    np.testing.assert_allclose(time, [0.0, 999.0], atol=1e-4)


@pytest.mark.parametrize("name", list(INPUT_SCALES))
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_input_scales(name, schedule):
    """unit_variance normalises data with standard deviation sigma_data at every noise level; identity keeps xt."""
    schedule, scale = SCHEDULES.example(schedule), INPUT_SCALES.example(name)
    t = np.linspace(0, 1, 11)
    variance = (0.5 * schedule.alpha(t)) ** 2 + schedule.sigma(t) ** 2
    expected = variance**-0.5 if name == "unit_variance" else np.ones_like(t)
    np.testing.assert_allclose(scale(schedule, t), expected, rtol=1e-12)


def test_the_default_input_scale_is_that_of_the_kind():
    assert build(prediction={"name": "edm", "sigma_data": 0.7}).input_scale.sigma_data == 0.7
    assert build(prediction="v").input_scale == INPUT_SCALES.build("identity")
    assert build(prediction="edm", input_scale="identity").input_scale == INPUT_SCALES.build("identity")


def test_a_bfloat16_network_is_combined_in_float32():
    parameterization = build(schedule="edm", prediction="edm", time_input="quarter_log_sigma")
    xt, t = jnp.full((1, 2), 1.2345678), jnp.array([0.05])
    prediction = parameterization.denoiser(lambda x, time: jnp.zeros_like(x, jnp.bfloat16))(xt, t)
    exact = parameterization.denoiser(lambda x, time: jnp.zeros_like(x))(xt, t)
    assert prediction.x0.dtype == jnp.float32
    np.testing.assert_array_equal(prediction.x0, exact.x0)


def test_extra_channels_are_not_read_and_missing_ones_refused():
    parameterization = build()
    xt = jnp.ones((2, 4, 4, 3))

    def head(channels):
        return parameterization.denoiser(lambda x, time: jnp.arange(channels) * jnp.ones((*x.shape[:-1], channels)))

    np.testing.assert_allclose(head(6)(xt, 0.5).noise, head(3)(xt, 0.5).noise)
    with pytest.raises(UserError, match="at least as many channels"):
        head(1)(xt, 0.5)


def test_an_infinite_time_input_is_refused():
    with pytest.raises(UserError, match="infinite at t = 1"):
        build(schedule="rectified_flow", prediction="velocity", time_input="quarter_log_sigma")


def test_hashable_and_static_under_jit():
    parameterization = build()
    assert hash(parameterization) == hash(build())

    def apply(p, x, t):
        return p.denoiser(lambda x, time: x)(x, t).x0

    x, t = jnp.ones((2, 3)), jnp.array([0.1, 0.9])
    found = jax.jit(apply, static_argnums=0)(parameterization, x, t)
    np.testing.assert_allclose(found, apply(parameterization, x, t), rtol=1e-5)
