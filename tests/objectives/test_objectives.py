"""Formulas of the regressions on noise, data and velocity; test_conformance covers all objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES, WEIGHTINGS
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import PREDICTIONS, Parameterization, Prediction
from tests.samplers.closed_form import Gaussian, point_mass_denoiser

RECIPES = {
    "v": {"name": "denoising", "schedule": "cosine", "time_sampler": "uniform", "prediction": "v"},
    "min_snr": {"name": "denoising", "prediction": "v", "weighting": {"name": "min_snr", "gamma": 5.0}},
    "edm": {"name": "denoising", "schedule": "edm", "time_sampler": "log_normal", "prediction": "edm"},
    "sd3": {"name": "flow_matching", "time_sampler": {"name": "logit_normal", "uniforms": "low_discrepancy"}},
    **{name: {"name": name} for name in ("denoising", "flow_matching", "stochastic_interpolant", "jit")},
}


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def batch(size=8, shape=(4, 4, 1), seed=0):
    return {"data": jnp.asarray(np.random.default_rng(seed).normal(0.3, 0.5, (size, *shape)), jnp.float32)}


@pytest.fixture(params=list(RECIPES))
def objective(request):
    return OBJECTIVES.build(RECIPES[request.param])


def test_no_loss_for_the_perfect_denoiser_of_one_point(objective):
    image = jnp.full((8, 4, 4, 1), 0.7)
    loss, metrics = objective.loss(point_mass_denoiser(objective.schedule, image[0]), {"data": image}, keys(8))
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    np.testing.assert_allclose(metrics["x0_mse"], 0, atol=1e-8)


def test_loss_and_metrics_are_finite_scalars(objective):
    loss, metrics = objective.loss(Gaussian().denoiser(objective.schedule), batch(), keys(8))
    assert {"loss", "mse", "x0_mse"} <= set(metrics)
    assert all(value.shape == () and np.isfinite(value) for value in (loss, *metrics.values()))
    assert loss == metrics["loss"] > 0


def gradient(objective, dtype):
    """The gradient of the loss for a network with one weight."""
    parameterization = Parameterization.build(
        schedule=objective.schedule, prediction=objective.prediction, time_input="t"
    )

    def loss(weight):
        denoiser = parameterization.denoiser(lambda x, time: jnp.tanh(weight * (x + time[:, None, None, None])))
        return objective.loss(denoiser, batch(), keys(8))[0]

    return jax.jit(jax.grad(loss))(jnp.asarray(0.3, dtype))


def test_gradients_in_bfloat16_are_those_in_float32():
    objective = OBJECTIVES.build(RECIPES["edm"])
    np.testing.assert_allclose(gradient(objective, jnp.bfloat16), gradient(objective, jnp.float32), rtol=0.02)


def test_the_best_denoiser_has_the_least_loss(objective):
    """The posterior mean of Gaussian data has a lower loss than denoisers for slightly different data."""
    data, key = batch(256), keys(256)
    best, *others = (
        objective.loss(Gaussian(mean=mean, std=std).denoiser(objective.schedule), data, key)[0]
        for mean, std in ((0.3, 0.5), (0.45, 0.5), (0.15, 0.5), (0.3, 0.35), (0.3, 0.7))
    )
    assert all(best < other for other in others)


def test_ddpm_loss_is_one_for_a_network_that_returns_zero():
    """The loss of a zero network is E |noise - 0|^2 = 1 per dimension."""
    objective = OBJECTIVES.build("denoising")
    parameterization = Parameterization.build(
        schedule=objective.schedule, prediction="epsilon", time_input="discrete_index"
    )
    loss, _ = objective.loss(parameterization.denoiser(lambda x, time: 0 * x), batch(64, (16, 16, 1)), keys(64))
    np.testing.assert_allclose(loss, 1, atol=0.03)


def test_flow_matching_loss_of_a_network_that_returns_zero():
    """The loss is E |noise - x0|^2 = 1 + E x0^2 per dimension, with E x0^2 = 0.3^2 + 0.5^2 for these images."""
    objective = OBJECTIVES.build("flow_matching")
    parameterization = Parameterization.build(schedule="rectified_flow", prediction="velocity", time_input="t")
    loss, metrics = objective.loss(parameterization.denoiser(lambda x, time: 0 * x), batch(64, (16, 16, 1)), keys(64))
    np.testing.assert_allclose(loss, 1.34, atol=0.04)
    assert loss == metrics["mse"]


def test_edm_loss_is_karras_weighted_x0_loss():
    """A uniform weight on F equals lambda(sigma) on D; a zero network has loss 1 for data with std sigma_data."""
    edm = RECIPES["edm"]
    on_x0 = {**edm, "prediction": "x0", "weighting": "edm"}
    on_f = {**edm, "weighting": "edm"}
    parameterization = Parameterization.build(
        schedule="edm", prediction="edm", time_input="quarter_log_sigma", input_scale=None
    )
    data = {"data": 0.5 * jax.random.normal(jax.random.key(1), (64, 16, 16, 1))}
    denoiser = parameterization.denoiser(lambda x, time: 0 * x)
    losses = [OBJECTIVES.build(spec).loss(denoiser, data, keys(64))[0] for spec in (edm, on_x0, on_f)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-3)
    np.testing.assert_allclose(losses[0], 1, atol=0.03)


def test_the_snr_weight_makes_every_kind_the_epsilon_loss():
    denoiser, data = Gaussian().denoiser(OBJECTIVES.build("denoising").schedule), batch()
    losses = [
        OBJECTIVES.build({"name": "denoising", "prediction": kind, "weighting": "snr"}).loss(denoiser, data, keys(8))[0]
        for kind in PREDICTIONS
    ]
    epsilon = OBJECTIVES.build("denoising").loss(denoiser, data, keys(8))[0]
    np.testing.assert_allclose(losses, epsilon, rtol=1e-3)


def test_flow_matching_and_denoising_share_their_code():
    flow = OBJECTIVES.build("flow_matching")
    written_out = OBJECTIVES.build(
        {"name": "denoising", "schedule": "rectified_flow", "time_sampler": "uniform", "prediction": "velocity"}
    )
    assert flow == written_out


def test_corruption_uses_its_own_streams():
    """xt = alpha x0 + sigma noise, with noise and t from the streams "noise" and "time"."""
    objective, data, key = OBJECTIVES.build("denoising"), batch(), keys(8)
    seen = {}

    def spy(xt, t):
        seen.update(xt=xt, t=t)
        return Prediction(x0=xt, noise=xt)

    objective.loss(spy, data, key)
    t = objective.time_sampler(key.fold_in("time"), objective.schedule)
    noise = key.fold_in("noise").normal((4, 4, 1))
    alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in (objective.schedule.alpha(t), objective.schedule.sigma(t)))
    np.testing.assert_array_equal(seen["t"], t)
    np.testing.assert_allclose(seen["xt"], alpha * data["data"] + sigma * noise, rtol=1e-6)


def test_bad_input():
    with pytest.raises(UserError, match="needs batch"):
        OBJECTIVES.build("denoising").loss(lambda xt, t: None, {"pixels": jnp.zeros((2, 1))}, keys(2))
    with pytest.raises(UserError, match="did you mean 'min_snr'"):
        OBJECTIVES.build({"name": "denoising", "weighting": "minsnr"})
    with pytest.raises(UserError, match="minimum"):
        WEIGHTINGS.build({"name": "snr", "minimum": 3.0, "maximum": 1.0})
