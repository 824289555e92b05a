"""Inversion of data to noise and back, to the same or other data, on Gaussians and mixtures with known flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import INVERSIONS, SAMPLERS, edit, sample, sdedit, up_to
from diffusion_jax.schedulers import GRIDS, SCHEDULES
from tests.samplers.closed_form import Gaussian, LogSNRLine, Mixture

VP = LogSNRLine(first=10.0, last=-10.0)
SCHEDULE = SCHEDULES.build("ddpm_linear")
FLOW = SCHEDULES.build("rectified_flow")
X0 = jnp.array([0.4, -0.8, 1.1])


def keys(size):
    return BatchKey.create(jax.random.key(0), size)


@pytest.mark.parametrize("name", list(INVERSIONS))
@pytest.mark.parametrize("schedule", [VP, SCHEDULE, SCHEDULES.build("edm")], ids=["line", "ddpm", "edm"])
def test_an_inversion_comes_back_by_its_sampler(x64, name, schedule):
    inversion = INVERSIONS.build({"name": name, **({"iterations": 20} if name == "ddim" else {})})
    grid, data = GRIDS.build("uniform")(schedule, 60), Mixture().denoiser(schedule)
    inverse = inversion(data, grid, X0)
    assert inverse.noise.shape == X0.shape
    assert np.abs(inverse.noise).max() < 6  # in units of the prior
    back = sample(SAMPLERS.build(inversion.sampler), data, grid, inverse.noise).x0
    np.testing.assert_allclose(back, X0, atol=0.03)


@pytest.mark.parametrize("schedule", [SCHEDULE, FLOW, SCHEDULES.build("edm")], ids=["ddpm", "flow", "edm"])
def test_flow_inversion_is_the_flow(x64, schedule):
    """Inversion of Gaussian data equals the known flow, also where alpha is 0 at t = 1 and ddim does not work."""
    data, grid = Gaussian(), GRIDS.build("uniform")(schedule, 5)
    noise = INVERSIONS.build({"name": "rk45", "rtol": 1e-9, "atol": 1e-9, "t_first": 1e-5})(
        data.denoiser(schedule), grid, X0
    ).noise
    np.testing.assert_allclose(data.flow(schedule, schedule.prior_std * np.asarray(noise), grid), X0, atol=2e-3)


def test_edit_is_a_map_between_gaussians():
    """Editing keeps quantiles: x0 of N(m, s^2) becomes m' + s' / s (x0 - m); equal denoisers return x0."""
    grid = GRIDS.build("uniform")(SCHEDULE, 200)
    one, other = Gaussian(mean=0.3, std=0.5), Gaussian(mean=-0.4, std=0.25)
    arguments = (SAMPLERS.build("ddim"), INVERSIONS.build("ddim"))
    denoisers = one.denoiser(SCHEDULE), other.denoiser(SCHEDULE)
    found = edit(*arguments, *denoisers, grid, X0).x0
    np.testing.assert_allclose(found, -0.4 + 0.5 * (X0 - 0.3), atol=0.03)
    same = edit(*arguments, denoisers[0], denoisers[0], grid, X0).x0
    np.testing.assert_allclose(same, X0, atol=0.03)
    some = edit(*arguments, *denoisers, grid, X0, strength=0.2).x0
    assert np.all(np.abs(some - X0) < np.abs(found - X0))


def test_sdedit_keeps_the_more_the_less_noise():
    """Strength 1 forgets the picture, small strengths nearly return it, and the law in between is known."""
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


def test_strength_is_a_time_of_the_grid():
    grid = GRIDS.build("uniform")(SCHEDULE, 10)
    np.testing.assert_allclose(up_to(grid, 0.5).times, grid.times[5:])
    assert up_to(grid, 1.0) == grid
    for strength in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="strength must be above 0 and at most 1"):
            up_to(grid, strength)
    with pytest.raises(UserError, match="take more steps"):
        up_to(grid, 1e-4)


def test_inversion_ddim_needs_a_signal_at_its_end():
    with pytest.raises(UserError, match="infinite at t = 1 of RectifiedFlow: use inversion rk45"):
        INVERSIONS.build("ddim")(Gaussian().denoiser(FLOW), GRIDS.build("uniform")(FLOW, 4), jnp.zeros(2))
