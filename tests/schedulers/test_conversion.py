"""Using one denoiser on several schedules."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.schedulers import PREDICTIONS, SCHEDULES, TimeGrid, on_schedule
from tests.samplers.closed_form import Mixture

NAMES = ("rectified_flow", "vp_sde", "edm", "gvp")


def grid_through(schedule, log_snrs):
    return TimeGrid.from_times(schedule, schedule.time_of_log_snr(log_snrs), to_clean=False)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(NAMES, 2)))
def test_the_converted_denoiser_is_that_of_the_other_schedule(first, second, x64):
    first, second = SCHEDULES.build(first), SCHEDULES.build(second)
    converted = on_schedule(Mixture().denoiser(first), first, second)
    t = jnp.asarray(second.time_of_log_snr(np.linspace(-8, 8, 5)))
    xt = jnp.linspace(-1.5, 1.5, 5)
    found, expected = converted(xt, t), Mixture().denoiser(second)(xt, t)
    np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-8, atol=1e-9)


def test_conversion_commutes_with_sampling(x64):
    """Straight paths and variance preservation visit the same states up to scale (papers: check 43)."""
    flow, vp = SCHEDULES.build("rectified_flow"), SCHEDULES.build("vp_sde")
    log_snrs = np.linspace(-8, 8, 9)
    on_flow, on_vp = grid_through(flow, log_snrs), grid_through(vp, log_snrs)
    denoiser = Mixture().denoiser(flow)
    noise = jnp.linspace(-1, 1, 5)
    ddim = SAMPLERS.build("ddim")
    a = sample(ddim, denoiser, on_flow, noise * on_flow.sigmas[0], return_trajectory=True).trajectory
    b = sample(ddim, on_schedule(denoiser, flow, vp), on_vp, noise * on_vp.sigmas[0], return_trajectory=True).trajectory
    np.testing.assert_allclose(a / on_flow.alphas[:, None], b / on_vp.alphas[:, None], rtol=1e-9, atol=1e-9)


def test_trigflow_is_edm_at_the_angle_of_the_noise_level(x64):
    """t = atan(sigma / sigma_d) for data of standard deviation sigma_d, and F is the v prediction (Lu & Song 2024)."""
    trig = SCHEDULES.build("trigflow")
    levels, sigma_d = np.array([0.002, 0.5, 80.0]), 0.5
    angles = np.arctan(levels / sigma_d)
    times = trig.time_of_log_snr(-2 * np.log(levels / sigma_d))
    np.testing.assert_allclose(times * np.pi / 2, angles, rtol=1e-12)
    edm = PREDICTIONS.build({"name": "edm", "sigma_data": 1.0}).coefficients(trig, times)
    v = PREDICTIONS.build("v").coefficients(trig, times)
    np.testing.assert_allclose(edm, -np.array(v), atol=1e-14)  # F = -v
