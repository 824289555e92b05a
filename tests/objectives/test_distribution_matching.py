"""Distribution matching on Gaussians with exact scores: the generator's gradient is that of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES, Context
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import SCHEDULES, Prediction
from tests.samplers.closed_form import Gaussian

FLOW, SIZE = SCHEDULES.build("rectified_flow"), 64
REAL = Gaussian(mean=0.3, std=0.5)
pytestmark = pytest.mark.usefixtures("x64")
BATCH = {"data": jnp.zeros((SIZE, 2))}


def keys():
    return BatchKey.create(jax.random.key(2), SIZE)


def generator(mean, std):
    """A generator that maps noise at t = 1, and inputs at any other time, to mean + std * x."""

    def denoise(x, t):
        return Prediction(x0=mean + std * x, noise=x)

    return denoise


def context(fake, step=0):
    return Context(
        step=step,
        teacher=REAL.denoiser(FLOW),
        with_network=lambda network: fake.denoiser(FLOW),
        params={"fake": jnp.zeros(())},
    )


def gradient(mean, std, fake, step=0, every=1):
    objective = OBJECTIVES.build({"name": "dmd", "num_steps": 1, "every": every})

    def loss(mean):
        return objective.loss(generator(mean, std), BATCH, keys(), context(fake, step))[1]["matching"]

    return float(jax.grad(loss)(jnp.float64(mean)))


def exact_x0(gaussian, x, t):
    alpha, sigma = 1.0 - t, t
    v = (alpha * gaussian.std) ** 2 + sigma**2
    return gaussian.mean + alpha * gaussian.std**2 / v * (x - alpha * gaussian.mean)


def test_the_gradient_of_the_generator_is_that_of_the_scores():
    """The gradient is the difference of both x0 over the teacher's mean error, computed in NumPy from equal draws."""
    fake, key = Gaussian(mean=0.8, std=0.4), keys()
    z = np.asarray(key.fold_in("simulated").at_step(2).normal((2,), np.float64))
    x = 0.8 + 0.4 * z
    inner = key.fold_in("matching")
    u = 0.02 + 0.96 * np.asarray(inner.fold_in("time").uniform())[:, None]
    xu = (1 - u) * x + u * np.asarray(inner.fold_in("noise").normal((2,), np.float64))
    own, real = exact_x0(fake, xu, u), exact_x0(REAL, xu, u)
    wanted = np.mean((own - real) / np.mean(np.abs(x - real), axis=1, keepdims=True))
    np.testing.assert_allclose(gradient(0.8, 0.4, fake), wanted, rtol=1e-8)


def test_it_leads_to_the_data_and_ends_there():
    assert gradient(0.8, 0.5, Gaussian(mean=0.8, std=0.5)) > 0.1
    assert gradient(-0.2, 0.5, Gaussian(mean=-0.2, std=0.5)) < -0.1
    assert gradient(0.3, 0.5, REAL) == 0.0


def test_it_is_bounded_as_the_noise_takes_over():
    """The difference in x0 stays bounded near u = 1, where a difference of velocities would be divided by 1 - u."""
    objective = OBJECTIVES.build("dmd")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((SIZE, 2)))
    g = objective.difference(REAL.denoiser(FLOW), Gaussian(mean=0.9, std=0.5).denoiser(FLOW), x, keys())
    assert np.all(np.isfinite(g))
    assert np.abs(g).max() < 20


def test_the_network_waits_for_its_turn():
    fake = Gaussian(mean=0.8, std=0.4)
    assert gradient(0.8, 0.4, fake, step=1, every=5) == 0.0
    assert gradient(0.8, 0.4, fake, step=5, every=5) != 0.0


def test_the_fake_score_has_no_loss_but_what_no_denoiser_can_undo():
    """The loss of the fake score is lowest for the Gaussian of the samples."""
    objective = OBJECTIVES.build({"name": "dmd", "num_steps": 1, "prediction": "x0"})
    found = {
        mean: float(objective.loss(generator(0.8, 0.4), BATCH, keys(), context(Gaussian(mean=mean, std=0.4)))[1]["mse"])
        for mean in (0.4, 0.8, 1.2)
    }
    assert found[0.8] < min(found[0.4], found[1.2])


def test_what_is_given_at_later_steps_is_what_sampling_gives():
    """If a generator always returns its mean, x_t is the mixture of that mean and fresh noise."""
    objective = OBJECTIVES.build({"name": "dmd", "num_steps": 4})
    x, t = objective.inputs(generator(0.7, 0.0), BATCH["data"], keys())
    assert set(np.asarray(t)) == {0.25, 0.5, 0.75, 1.0}
    noise = (np.asarray(x) - (1 - np.asarray(t))[:, None] * 0.7) / np.asarray(t)[:, None]
    assert abs(noise.mean()) < 0.3
    assert 0.8 < noise.std() < 1.2


def test_what_is_no_ratio_and_what_is_missing():
    with pytest.raises(UserError, match="every"):
        OBJECTIVES.build({"name": "dmd", "every": 0})
    alone = Context(teacher=REAL.denoiser(FLOW), with_network=lambda network: REAL.denoiser(FLOW))
    with pytest.raises(UserError, match="give the copy of the network"):
        OBJECTIVES.build("dmd").loss(generator(0.0, 1.0), BATCH, keys(), alone)
