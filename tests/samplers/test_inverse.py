"""Inverse problems on a correlated Gaussian, whose posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, posterior, repaint, replacement, sample, sdedit
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Prediction
from tests.samplers.closed_form import Gaussian

SCHEDULE = SCHEDULES.build("ddpm_linear")
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
MASK = jnp.array([1.0, 0.0])
KNOWN = 1.0  # the first coordinate; the second given it is N(0.8, 0.36)


def denoiser(xt, t):
    alpha, sigma = (jnp.asarray(curve(t), xt.dtype) for curve in (SCHEDULE.alpha, SCHEDULE.sigma))
    covariance = jnp.asarray(COVARIANCE, xt.dtype)
    gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(2, dtype=xt.dtype))
    return Prediction.from_x0(SCHEDULE, xt @ gain.T, xt, t)


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def second_given_first(run):
    x0 = np.asarray(jax.jit(run)(keys(8192)))
    return x0[:, 0], x0[:, 1].mean(), x0[:, 1].var()


def test_replacement_is_biased_and_repaint_less():
    """Both keep what is known. The unknown part falls short of its conditional mean 0.8; resampling mends that."""
    grid = GRIDS.build("uniform")(SCHEDULE, 50)
    known = jnp.full((8192, 2), KNOWN)

    def replaced(key):
        return sample(SAMPLERS.build("ddpm"), denoiser, grid, (2,), key, project=replacement(known, MASK)).x0

    first, mean, _ = second_given_first(replaced)
    np.testing.assert_allclose(first, KNOWN, rtol=1e-5)
    _, better, variance = second_given_first(lambda key: repaint(denoiser, grid, known, MASK, key).x0)
    assert mean < 0.77
    assert 0.8 - better < 0.6 * (0.8 - mean)
    np.testing.assert_allclose(better, 0.8, atol=0.06)
    assert 0.2 < variance < 0.4  # 0.36; RePaint falls short of that too
    assert repaint(denoiser, grid, known[:2], MASK, keys(2), num_resamples=3).nfe == 150


@pytest.mark.parametrize("noise_std", [0.1, 0.5])
def test_posterior_denoiser_is_exact_for_gaussians(noise_std):
    """Mean and variance of the second coordinate given a noisy first one."""
    grid = GRIDS.build("uniform")(SCHEDULE, 300)

    def x0_variance(t):  # of the measured coordinate given xt
        a2, s2 = SCHEDULE.alpha(t) ** 2, SCHEDULE.sigma(t) ** 2
        covariance = jnp.asarray(COVARIANCE, jnp.float32)
        return jnp.linalg.inv(jnp.linalg.inv(covariance) + a2 / s2 * jnp.eye(2))[0, 0]

    given = posterior(
        denoiser, SCHEDULE, lambda x: x[:, :1], jnp.full((8192, 1), KNOWN), noise_std, x0_variance=x0_variance
    )
    _, mean, variance = second_given_first(lambda key: sample(SAMPLERS.build("ddpm"), given, grid, (2,), key).x0)
    total = 1 + noise_std**2
    np.testing.assert_allclose(mean, 0.8 / total, atol=0.03)
    np.testing.assert_allclose(variance, 1 - 0.64 / total, atol=0.04)


def test_dps_moves_towards_the_measurement():
    grid = GRIDS.build("uniform")(SCHEDULE, 200)
    given = posterior(denoiser, SCHEDULE, lambda x: x[:, :1], jnp.full((8192, 1), KNOWN), 0.5)
    _, mean, _ = second_given_first(lambda key: sample(SAMPLERS.build("ddpm"), given, grid, (2,), key).x0)
    assert 0.3 < mean < 0.95
    with pytest.raises(UserError, match="noise_std > 0"):
        posterior(denoiser, SCHEDULE, lambda x: x, jnp.zeros((2, 2)), 0.0)


def test_sdedit_keeps_the_more_the_less_noise():
    """Strength 1 forgets the picture; a small strength returns nearly the picture; the law between is known."""
    grid, data = GRIDS.build("uniform")(SCHEDULE, 100), Gaussian(mean=0.0, std=0.5)
    exact, image = data.denoiser(SCHEDULE), jnp.full((8192, 1), 2.0)

    def edited(strength):
        run = jax.jit(lambda key: sdedit(SAMPLERS.build("ddim"), exact, grid, image, key, strength=strength).x0)
        return float(np.mean(run(keys(8192))))

    for strength in (0.1, 0.4):
        alpha, sigma = SCHEDULE.alpha(strength), SCHEDULE.sigma(strength)
        kept = alpha * 0.5 / np.sqrt((alpha * 0.5) ** 2 + sigma**2)  # the flow scales by std / std_t
        np.testing.assert_allclose(edited(strength), 2.0 * kept, atol=0.05)
    np.testing.assert_allclose(edited(1.0), 0.0, atol=0.05)
    with pytest.raises(UserError, match="0 < strength <= 1"):
        sdedit(SAMPLERS.build("ddim"), exact, grid, image, keys(2), strength=0.0)
    with pytest.raises(UserError, match="take more steps"):
        sdedit(SAMPLERS.build("ddim"), exact, grid, image, keys(2), strength=1e-4)
