"""Losses that are likelihoods: VDM and the variational bound of a chain, on Gaussian data with known results."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.likelihood import elbo_terms
from diffusion_jax.objectives import OBJECTIVES, WEIGHTINGS, Context
from diffusion_jax.objectives.uncertainty import LearnedUncertainty
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import GRIDS, PREDICTIONS, SCHEDULES, MonotoneGamma, Prediction, ReverseSteps
from diffusion_jax.schedulers.gaussian_chain import prior_kl
from tests.samplers.closed_form import Gaussian

CENTRED = Gaussian(mean=0.0)
EDM2 = {"name": "denoising", "schedule": "edm", "prediction": "edm", "time_sampler": "log_normal"}


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def data(size):
    return {"data": 0.5 * jax.random.normal(jax.random.key(5), (size, 4))}


def bits(nats):
    return nats / np.log(2)


def exact_terms(num_steps):
    """The exact terms of the ELBO in nats for data N(0, 1/4). They are quadratic forms of data and noise, so four
    points with the right second moments give their mean; t is integrated by Gauss-Legendre, or summed over steps."""
    schedule = SCHEDULES.build("vdm_linear")
    nodes, weights = np.polynomial.legendre.leggauss(400)
    t, w = 0.5 * (nodes + 1), 0.5 * weights
    if num_steps:
        t, w = (np.arange(num_steps) + 1) / num_steps, np.full(num_steps, 1 / num_steps)
    totals = dict.fromkeys(("diffusion", "prior"), 0.0)
    for x0 in (-0.5, 0.5):
        for noise in (-1.0, 1.0):
            points = (jnp.full((len(t), 1), value) for value in (x0, noise, 0.0))
            x0_points, noise_points, zeros = points
            terms, _ = elbo_terms(
                CENTRED.denoiser(schedule), schedule, x0_points, jnp.asarray(t), noise_points, zeros,
                num_steps=num_steps, bins=4,
            )  # fmt: skip
            for name in totals:
                totals[name] += 0.25 * float(jnp.sum(w * terms[name])) * np.log(2)
    return totals


@pytest.mark.parametrize(("num_steps", "nats"), [(0, 5.9560146336186595), (1000, 6.006236783), (10, 15.72756446)])
def test_vdm_diffusion_loss_of_a_gaussian(num_steps, nats, x64):
    """The continuous loss is 1/2 ln((1 + s^2 SNR(0)) / (1 + s^2 SNR(1))) (I-MMSE); T steps cost more."""
    found = exact_terms(num_steps)
    np.testing.assert_allclose(found["diffusion"], nats, rtol=1e-9)
    np.testing.assert_allclose(
        found["prior"], 8.478551479522e-04, rtol=1e-11
    )  # 1/2 (v - 1 - ln(1 - a^2)), a^2 = sigmoid(-5)


def test_vdm_objective_is_the_mean_of_its_terms():
    schedule = SCHEDULES.build("vdm_linear")
    for num_steps, nats in ((0, 5.9560146336), (10, 15.72756446)):
        objective = OBJECTIVES.build({"name": "vdm", "num_steps": num_steps, "bins": 4})
        run = jax.jit(lambda batch: objective.loss(CENTRED.denoiser(schedule), batch, keys(40000)))  # noqa: B023
        loss, metrics = run(data(40000))
        np.testing.assert_allclose(metrics["diffusion"], bits(nats), rtol=0.012)
        np.testing.assert_allclose(loss, sum(metrics[n] for n in ("diffusion", "prior", "reconstruction")), rtol=1e-6)


def test_the_continuous_loss_does_not_depend_on_the_learned_schedule_between_its_ends():
    """The continuous loss depends only on the ends of gamma (VDM, eq. 18)."""
    schedule = SCHEDULES.build("vdm_linear")
    objective = OBJECTIVES.build({"name": "vdm", "learned": True, "fixed_ends": True, "features": 32})
    params = MonotoneGamma(features=32, fixed_ends=True).init(jax.random.key(0))
    bent = {**params, "w3": 40 * params["w3"]}
    found = [
        jax.jit(lambda p: objective.loss(CENTRED.denoiser(schedule), data(20000), keys(20000), Context(params=p))[1])(p)
        for p in (params, bent)
    ]
    np.testing.assert_allclose([metrics["diffusion"] for metrics in found], bits(5.9560146336), rtol=0.02)
    slopes = [np.ptp(np.diff(objective.gamma.gamma(p, np.linspace(0, 1, 20)))) for p in (params, bent)]
    assert slopes[1] > 2 * slopes[0]  # the schedules do differ


def test_likelihood_weighting_is_the_diffusion_loss():
    """Likelihood weighting gives the diffusion loss in nats per dimension for every prediction kind."""
    schedule, losses = SCHEDULES.build("vdm_linear"), []
    for kind in ("epsilon", "x0", "v"):
        recipe = {"name": "denoising", "schedule": schedule, "prediction": kind, "weighting": "likelihood"}
        recipe["time_sampler"] = {"name": "uniform", "t_min": 0.0, "uniforms": "low_discrepancy"}
        losses.append(OBJECTIVES.build(recipe).loss(CENTRED.denoiser(schedule), data(40000), keys(40000))[0])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-3)
    np.testing.assert_allclose(losses[0], 5.9560146336, rtol=0.012)


def test_rate_weights_are_the_same_loss_on_every_schedule():
    """Sigmoid weighting is an integral over log-SNR, so two schedules with the same ends give the same loss."""
    losses = []
    for name in ("vdm_linear", "clipped_cosine"):
        ends = {"gamma_min": -8.0, "gamma_max": 8.0} if name == "vdm_linear" else {"log_snr_min": -8, "log_snr_max": 8}
        schedule = SCHEDULES.build({"name": name, **ends})
        t = (np.arange(20000) + 0.5) / 20000
        weight = WEIGHTINGS.build({"name": "sigmoid", "bias": -1.0})(PREDICTIONS.build("epsilon"), schedule, t)
        error = (0.5 * schedule.alpha(t)) ** 2 / ((0.5 * schedule.alpha(t)) ** 2 + schedule.sigma(t) ** 2)
        losses.append(np.mean(weight * error))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_p2_and_clipped_velocity_weights():
    snr = np.array([0.1, 1.0, 5.0, 100.0])
    schedule = SCHEDULES.build("vp_sde")
    p2 = WEIGHTINGS.build("p2")(PREDICTIONS.build("epsilon"), schedule, schedule.time_of_log_snr(np.log(snr)))
    np.testing.assert_allclose(p2, [0.9091, 0.5, 0.1667, 0.0099], atol=5e-5)
    flow, t = SCHEDULES.build("rectified_flow"), np.array([0.01, 0.05, 0.5])
    jit = WEIGHTINGS.build("clipped_velocity")
    np.testing.assert_allclose(jit(PREDICTIONS.build("velocity"), flow, t), [0.04, 1, 1], rtol=1e-12)
    np.testing.assert_allclose(jit(PREDICTIONS.build("x0"), flow, t), [400, 400, 4], rtol=1e-12)


def gaussian_with_variance(schedule, fraction):
    exact = CENTRED.denoiser(schedule)

    def denoise(xt, t):
        prediction = exact(xt, t)
        return Prediction(x0=prediction.x0, noise=prediction.noise, variance_fraction=jnp.full(xt.shape, fraction))

    return denoise


@pytest.mark.parametrize(("fraction", "total"), [(0.0, 6.302436875928332), (1.0, 5.645641041770938)])
def test_ddpm_bound_of_a_gaussian(fraction, total, x64):
    """The exact sum over n >= 1 of E KL in bits for data N(0, 0.25), with the small and with the large variance."""
    schedule = SCHEDULES.build("ddpm_linear")
    objective = OBJECTIVES.build({"name": "vlb", "schedule": "ddpm_linear"})
    n = np.arange(1, 1000)
    t = (n + 1) / 1000
    # The KL is a quadratic form of (x0, noise), so four points with the right second moments give its mean.
    total_bits = 0.0
    for x0_sign in (-1, 1):
        for noise_sign in (-1, 1):
            x0, noise = np.full((999, 1), 0.5 * x0_sign), np.full((999, 1), 1.0 * noise_sign)
            xt = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * noise
            estimate = gaussian_with_variance(schedule, fraction)(jnp.asarray(xt), jnp.asarray(t))
            total_bits += 0.25 * float(
                jnp.sum(objective.bits(estimate, jnp.asarray(x0), jnp.asarray(xt), jnp.asarray(t)))
            )
    np.testing.assert_allclose(total_bits, total, rtol=1e-9)


def test_optimal_variance_is_between_the_bounds(x64):
    """The best variance fraction at every step gives the published sum of 5.644065283229962 bits."""
    schedule = SCHEDULES.build("ddpm_linear")
    steps = ReverseSteps.of(GRIDS.build("uniform")(schedule, 1000))
    alpha, sigma = (curve(np.arange(1000, 0, -1) / 1000) for curve in (schedule.alpha, schedule.sigma))
    # Var[x_{n-1} | x_n] adds the uncertainty about x0 to the small variance.
    best = steps.small + steps.mean_x0**2 * 0.25 * sigma**2 / (0.25 * alpha**2 + sigma**2)
    kl = 0.5 * (np.log(best) - np.log(np.maximum(steps.small, 1e-300)))
    np.testing.assert_allclose(np.sum(kl[:-1]) / np.log(2), 5.644065283229962, rtol=1e-9)
    assert np.all((best[:-1] >= steps.small[:-1]) & (best[:-1] <= steps.large[:-1] * (1 + 1e-9)))

    # The reverse chain is then exact: the bound exceeds the entropy only by the KL of q(x_T) from the prior.
    entropy = 0.5 * np.log(2 * np.pi * np.e * 0.25)
    assert entropy == pytest.approx(0.7257913526447274, rel=1e-15)
    decoder = 0.5 * np.log(2 * np.pi * np.e * best[-1])
    a, s = float(alpha[0]), float(sigma[0])
    prior = float(prior_kl(jnp.float64(0.5), a, s))  # x0^2 = 0.25 on average
    assert decoder + kl[:-1].sum() + prior - entropy == pytest.approx(2.2905e-10, abs=5e-13)
    variance = 0.25 * a**2 + s**2
    assert 0.5 * (variance - 1 - np.log(variance)) == pytest.approx(2.2905e-10, rel=1e-4)


def test_hybrid_teaches_the_variance_only():
    """The gradient of lambda vlb does not reach the predicted x0."""
    objective = OBJECTIVES.build({"name": "hybrid", "schedule": "vp_sde", "num_steps": 10, "vlb_weight": 1.0})
    simple = OBJECTIVES.build({"name": "denoising", "schedule": "vp_sde", "time_sampler": objective.time_sampler})

    def gradient(objective):
        def loss(shift):
            def denoise(xt, t):
                p = gaussian_with_variance(objective.schedule, 0.5)(xt, t)
                return Prediction(x0=p.x0 + shift, noise=p.noise - shift, variance_fraction=p.variance_fraction)

            return objective.loss(denoise, data(64), keys(64))[0]

        return jax.jit(jax.grad(loss))(0.1)

    np.testing.assert_allclose(gradient(objective), gradient(simple), rtol=1e-5)


def test_a_network_without_variances_is_one_clear_line():
    objective = OBJECTIVES.example("hybrid")
    with pytest.raises(UserError, match="twice the channels"):
        objective.loss(CENTRED.denoiser(objective.schedule), data(4), keys(4))


def test_learned_uncertainty_is_the_log_of_the_loss():
    """The loss at u = 0 is the plain loss, and fitting u lowers it towards 1 + log of the mean error."""
    plain, learned = (OBJECTIVES.build({**EDM2, "uncertainty": flag}) for flag in (False, True))
    learned = dataclasses.replace(learned, uncertainty=LearnedUncertainty(normalized=False))
    denoiser = Gaussian(std=0.6).denoiser(plain.schedule)
    start = learned.init_params(jax.random.key(0))
    assert start["weight"].shape == (128,)
    loss, metrics = learned.loss(denoiser, data(512), keys(512), Context(params=start))
    np.testing.assert_allclose(loss, plain.loss(denoiser, data(512), keys(512))[0], rtol=1e-6)
    assert metrics["uncertainty"] == 0

    def value(params):
        return learned.loss(denoiser, data(512), keys(512), Context(params=params))[0]

    params, slope = start, jax.jit(jax.grad(value))
    for _ in range(300):
        params = jax.tree.map(lambda p, g: p - 2.0 * g, params, slope(params))
    assert value(params) < loss - 0.01


def test_the_uncertainty_of_edm2_has_normalised_weights_and_a_random_start():
    """The weights start as a normal draw, are divided by their norm in use, and are reset to norm sqrt(128), as in
    MPConv."""
    learned = OBJECTIVES.build({**EDM2, "uncertainty": True})
    start, other = (learned.init_params(jax.random.key(seed)) for seed in (0, 1))
    weight = np.asarray(start["weight"])
    assert weight.shape == (128,)
    assert 0.8 < weight.std() < 1.2
    assert not np.allclose(weight, other["weight"])
    log_snr = jnp.linspace(-12, 12, 7)
    u = learned.uncertainty(start, log_snr)
    assert np.abs(u).max() > 0.1
    frequencies, phases = learned.uncertainty._waves
    waves = np.sqrt(2) * np.cos(-np.asarray(log_snr)[:, None] / 8 * frequencies + phases)
    np.testing.assert_allclose(u, waves @ weight / np.linalg.norm(weight), rtol=2e-3, atol=1e-4)
    longer = {"weight": 7.0 * start["weight"]}
    np.testing.assert_allclose(learned.uncertainty(longer, log_snr), u, rtol=1e-3, atol=1e-4)
    back = learned.constrain(longer)["weight"]
    np.testing.assert_allclose(np.linalg.norm(back), np.sqrt(128), rtol=1e-3)
    np.testing.assert_allclose(back, np.sqrt(128) * weight / np.linalg.norm(weight), rtol=1e-3)
