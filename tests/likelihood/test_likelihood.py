"""Likelihoods of Gaussian data in closed form, and quantities that must not be mixed up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.likelihood import bits_per_dim, continuous_bound, elbo_terms, log_likelihood
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import SCHEDULES, Prediction
from tests.samplers.closed_form import Gaussian, Mixture

EDM, VP = SCHEDULES.build("edm"), SCHEDULES.build("vp_sde")
CENTRED = Gaussian(mean=0.0)


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


@pytest.mark.parametrize("steps", [0, 200])
def test_flow_likelihood_of_a_gaussian(steps, x64):
    """log p(.7) of N(.3, .25) with sigma_max = 80 and prior N(0, 80^2) is -.5487914116; x_1 and the determinant match
    too."""
    x = jnp.array([[0.7]])
    found = log_likelihood(Gaussian().denoiser(EDM), EDM, x, divergence="exact", steps=steps, rtol=1e-10, atol=1e-10)
    std_first = np.sqrt(0.25 + 0.002**2)
    expected_x1 = 0.3 + 0.4 * np.sqrt(0.25 + 80**2) / std_first
    np.testing.assert_allclose(found.x_1, [[expected_x1]], rtol=1e-6)
    np.testing.assert_allclose(found.log_determinant, np.log(np.sqrt(0.25 + 80**2) / std_first), rtol=1e-6)
    np.testing.assert_allclose(found.log_determinant, 5.0751933461, atol=1e-5)
    # The published numbers are for sigma_min = 0; the remaining noise of 0.002 changes the density by 1e-5.
    np.testing.assert_allclose(found.x_1, 64.30124999, rtol=1e-5)
    np.testing.assert_allclose(found.log_likelihood, -0.5487914116, atol=2e-5)
    np.testing.assert_allclose(found.log_likelihood, -0.5457913526447273, atol=5e-3)  # of the data itself


def test_flow_likelihood_without_noise_left(x64):
    """The VP SDE integrated from 1e-5 with prior N(0, 1) gives log p = -.5473770606."""
    found = log_likelihood(
        Gaussian().denoiser(VP), VP, jnp.array([[0.7]]), divergence="exact", rtol=1e-9, atol=1e-9, t_first=1e-5
    )
    np.testing.assert_allclose(found.log_likelihood, -0.5473770606, atol=2e-6)


def test_hutchinson_is_exact_for_a_diagonal_jacobian_and_unbiased(x64):
    x = jnp.array([[0.7, -0.2], [0.1, 0.9]])
    exact, estimate = (
        log_likelihood(Gaussian().denoiser(VP), VP, x, keys(2), divergence=d, steps=50) for d in ("exact", "hutchinson")
    )
    np.testing.assert_allclose(exact.log_likelihood, estimate.log_likelihood, rtol=1e-9)
    assert exact.nfe == 200


def test_flow_likelihood_of_a_mixture(x64):
    """The likelihood equals the density of the data with noise sigma_min; independent coordinates add up."""
    x = jnp.array([[-1.0, 0.8], [0.2, 0.5]])
    found = log_likelihood(Mixture().denoiser(EDM), EDM, x, divergence="exact", rtol=1e-8, atol=1e-8)
    weights, means, stds = np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.hypot([0.2, 0.35], 0.002)
    density = np.sum(weights * np.exp(-0.5 * ((np.asarray(x)[..., None] - means) / stds) ** 2) / stds, -1)
    expected = np.sum(np.log(density / np.sqrt(2 * np.pi)), axis=1)
    np.testing.assert_allclose(found.log_likelihood, expected, atol=0.01)  # the prior's mean is 0, the data's is not


def test_each_example_has_its_own_steps():
    x = jnp.array([[0.7], [3.0]])
    whole = log_likelihood(Mixture().denoiser(EDM), EDM, x, keys(2))
    alone = log_likelihood(Mixture().denoiser(EDM), EDM, x[:1], BatchKey(jax.random.key(0), jnp.array([0]), 2))
    np.testing.assert_allclose(whole.log_likelihood[:1], alone.log_likelihood, rtol=1e-4)


def test_vdm_bound_is_near_the_entropy():
    """-ELBO - H = KL(q(z1) || N) + .5 ln(1 + 1 / (s^2 SNR0)) = 9.67e-6 for continuous Gaussian data."""
    schedule = SCHEDULES.build("vdm_linear")
    snr0, snr1 = (np.exp(schedule.log_snr(t)) for t in (0.0, 1.0))
    alpha2 = 1 / (1 + 1 / snr1)
    variance = alpha2 * 0.25 + 1 - alpha2
    gap = 0.5 * (variance - 1 - np.log(variance)) + 0.5 * np.log1p(1 / (0.25 * snr0))
    np.testing.assert_allclose(gap, 9.669327e-06, rtol=1e-5)
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (40000, 4))
    key, u = keys(40000), keys(40000, 1)
    noise = [key.fold_in(n).normal((4,)) for n in ("a", "b")]
    terms, _ = elbo_terms(CENTRED.denoiser(schedule), schedule, x0, u.low_discrepancy(), *noise, bins=16)
    np.testing.assert_allclose(np.mean(terms["diffusion"]) * np.log(2), 5.9560146336, rtol=0.012)
    np.testing.assert_allclose(np.mean(terms["prior"]) * np.log(2), 8.478551479522e-04, rtol=0.02)


@pytest.mark.parametrize("name", ["edm", "vp_sde", "rectified_flow", "cosine"])
@pytest.mark.parametrize("probability", [0.7, 0.3])
def test_continuous_bound_of_the_best_denoiser_is_the_probability(name, probability):
    """For x0 = +1 with P = 0.7, else -1, the exact posterior mean makes the bound tight on any schedule."""
    schedule = SCHEDULES.build(name)

    def denoiser(xt, t):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        x0 = 2 * jax.nn.sigmoid(np.log(0.7 / 0.3) + 2 * alpha * xt / sigma**2) - 1
        return Prediction(x0=x0, noise=(xt - alpha * x0) / sigma)

    x0 = jnp.full((2000, 1), 1.0 if probability == 0.7 else -1.0)
    found = continuous_bound(denoiser, schedule, x0, keys(2000), num_draws=64, bins=2)
    error = np.std(found) / np.sqrt(len(found))
    np.testing.assert_allclose(np.mean(found), -np.log2(probability), atol=4 * error)
    assert error < 0.03


def test_a_worse_denoiser_has_a_larger_bound():
    x0 = jnp.where(jax.random.uniform(jax.random.key(1), (500, 4)) < 0.5, 1.0, -1.0)
    nothing = continuous_bound(lambda xt, t: Prediction(x0=0 * xt, noise=xt), EDM, x0, keys(500), bins=2)
    assert np.mean(nothing) > 2  # of a bit that costs 1
    with pytest.raises(UserError, match="num_draws"):
        continuous_bound(None, EDM, x0, keys(500), num_draws=0)


def test_kinds_are_not_mixed_up():
    nats = jnp.array([-10.0])
    assert bits_per_dim(nats, 4, kind="density").kind == "density"
    uniform = bits_per_dim(nats, 4, kind="uniform", bins=256)
    np.testing.assert_allclose(uniform.bits, 10 / (4 * np.log(2)) + 7, rtol=1e-6)
    np.testing.assert_allclose(
        bits_per_dim(nats, 4, kind="discretised", bins=256).bits, 10 / (4 * np.log(2)), rtol=1e-6
    )
    with pytest.raises(UserError, match="needs the number of levels"):
        bits_per_dim(nats, 4, kind="uniform")
    with pytest.raises(UserError, match="leave them out"):
        bits_per_dim(nats, 4, kind="density", bins=256)
    with pytest.raises(UserError, match="did you mean 'discretised'"):
        bits_per_dim(nats, 4, kind="discretized")


def test_uniform_levels_cost_their_bits():
    """Data uniform over 16 levels, dequantised uniformly, has the density 1/2 on [-1, 1] and costs 4 bits."""
    density = jnp.full((16,), np.log(0.5))
    np.testing.assert_allclose(bits_per_dim(density, 1, kind="uniform", bins=16).bits, 4, rtol=1e-6)


def test_bad_options_are_refused():
    x = jnp.zeros((2, 1))
    with pytest.raises(UserError, match="give a key"):
        log_likelihood(CENTRED.denoiser(EDM), EDM, x)
    with pytest.raises(UserError, match="'exact' or 'hutchinson'"):
        log_likelihood(CENTRED.denoiser(EDM), EDM, x, divergence="trace")
