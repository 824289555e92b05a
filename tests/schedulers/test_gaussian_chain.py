"""The chain of Gaussian steps: published numbers for DDPM's table, and integrals."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_jax.schedulers import GRIDS, SCHEDULES, ReverseSteps
from diffusion_jax.schedulers.gaussian_chain import discretised_log_likelihood, normal_kl, prior_kl

pytestmark = pytest.mark.usefixtures("x64")


def ddpm_steps():
    return ReverseSteps.of(GRIDS.build("uniform")(SCHEDULES.build("ddpm_linear"), 1000))


def test_ddpm_table():
    """The published numbers (papers: check 12); step n of the paper is transition T - 1 - n."""
    steps = ddpm_steps()
    np.testing.assert_allclose(steps.large[::-1][[0, -1]], [1e-4, 2e-2], rtol=1e-10)
    np.testing.assert_allclose(steps.large.sum(), 10.05, rtol=1e-12)
    np.testing.assert_allclose(steps.small[-2], 5.4531876613e-05, rtol=1e-10)
    np.testing.assert_allclose(steps.log_small[-1], -9.81672514, atol=5e-9)
    assert steps.small[-1] == 0


def test_reverse_steps_are_bayes_rule():
    """The mean and variance of x_s given x_t and x0 follow from the joint Gaussian."""
    grid = GRIDS.build("uniform")(SCHEDULES.build("vp_sde"), 7)
    steps = ReverseSteps.of(grid)
    x0, xt = 0.4, -0.9
    for i in range(grid.num_steps - 1):
        a_t, a_s, v_t, v_s = grid.alphas[i], grid.alphas[i + 1], grid.sigmas[i] ** 2, grid.sigmas[i + 1] ** 2
        ratio = a_t / a_s
        gain = ratio * v_s / v_t
        np.testing.assert_allclose(steps.mean_xt[i] * xt + steps.mean_x0[i] * x0, a_s * x0 + gain * (xt - a_t * x0))
        np.testing.assert_allclose(steps.small[i], v_s - gain * ratio * v_s, rtol=1e-9)


def test_prior_kl():
    schedule = SCHEDULES.build("ddpm_linear")
    ends = float(schedule.alpha(1.0)), float(schedule.sigma(1.0))
    for second_moment, bits in ((0.25, 7.278677e-06), (1.0, 2.911295e-05)):
        found = prior_kl(jnp.asarray(second_moment**0.5), *ends) / np.log(2)
        np.testing.assert_allclose(found, bits, rtol=2e-7)


def test_normal_kl():
    np.testing.assert_allclose(normal_kl(0.0, 0.0, 1.0, 1.0), 0.3678794503, atol=1e-7)  # 1 / e
    np.testing.assert_allclose(normal_kl(0.3, -1.0, 0.3, -1.0), 0.0)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -1.0), (0.9, -3.0), (-1.4, 0.5)])
def test_discretised_likelihood_sums_to_one(mean, log_std):
    x = jnp.linspace(-1, 1, 256)
    total = jnp.sum(jnp.exp(discretised_log_likelihood(x, mean, log_std)))
    np.testing.assert_allclose(total, 1.0, rtol=1e-9)


def test_discretised_likelihood_values():
    """The public code, with a tanh approximation of the normal CDF, gives -5.7403588 at x = -1 and -4.7670746 at 0."""
    found = discretised_log_likelihood(jnp.array([-1.0, 0.0]), 0.0, -1.0)
    cdf, half = scipy.stats.norm(0, np.exp(-1)).cdf, 1 / 255
    np.testing.assert_allclose(found, np.log([cdf(-1 + half), cdf(half) - cdf(-half)]), rtol=1e-8)

    def approximate_cdf(y):
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))

    e = np.exp(1.0)
    published = np.log([approximate_cdf(e * (-1 + half)), approximate_cdf(e * half) - approximate_cdf(-e * half)])
    np.testing.assert_allclose(published, [-5.7403588, -4.7670746], rtol=1e-6)  # their code computes in float32
    np.testing.assert_allclose(found, published, atol=0.06)


def test_far_tails_are_finite():
    found = discretised_log_likelihood(jnp.array([-1.0, 0.5, 1.0], jnp.float32), jnp.float32(-0.9), jnp.float32(-5.0))
    assert np.all(np.isfinite(found))
