"""Stochastic samplers: their exact variances, their limits without noise, and Langevin dynamics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.samplers.predictor_corrector import langevin_step
from diffusion_jax.schedulers import GRIDS, SCHEDULES, TimeGrid
from tests.samplers.closed_form import Gaussian, exact_variance

CENTRED = Gaussian(mean=0.0)
EDM, FLOW, VP = (SCHEDULES.build(name) for name in ("edm", "rectified_flow", "vp_sde"))


def grid_of(schedule, num_steps):
    last = {"edm": 0.0, "rectified_flow": 0.02}.get(
        next(name for name in ("edm", "rectified_flow") if SCHEDULES.build(name) == schedule), 0.0
    )
    return TimeGrid.from_times(schedule, np.linspace(1, last, num_steps + 1), to_clean=False)


def variance_errors(spec, schedule, steps):
    found = []
    for num_steps in steps:
        grid = grid_of(schedule, num_steps)
        variance = exact_variance(SAMPLERS.build(spec), CENTRED.denoiser(schedule), grid)
        found.append(abs(variance - float(CENTRED.marginal(schedule, grid.times[-1])[1]) ** 2))
    return np.array(found)


@pytest.mark.parametrize(
    ("spec", "schedule", "order"),
    [
        ("ddpm", EDM, 1),
        ({"name": "ddpm", "variance": "large"}, EDM, 1),
        ("euler_ancestral", EDM, 1),
        ("dpm2_ancestral", EDM, 1),
        ("dpmpp_2s_ancestral", EDM, 1),
        ("dpmpp_sde", EDM, 1),
        ("dpmpp_2m_sde", EDM, 2),
        ("dpmpp_3m_sde", EDM, 2),
        ("sa_solver", EDM, 2),
        ({"name": "predictor_corrector", "num_corrections": 0}, EDM, 1),
        ({"name": "predictor_corrector", "num_corrections": 0, "predictor": "ancestral"}, EDM, 1),
        *(({"name": "sit_sde", "diffusion": d}, FLOW, 1) for d in ("sigma", "linear", "constant", "decreasing")),
    ],
    ids=str,
)
def test_weak_order(spec, schedule, order, x64):
    """The variance converges to that of the data with at least the order of the method."""
    errors = variance_errors(spec, schedule, (64, 128, 256))
    orders = np.log2(errors[:-1] / errors[1:])
    assert errors[-1] < 0.02
    assert orders[-1] > order - 0.25, orders


@pytest.mark.parametrize(
    ("stochastic", "deterministic"),
    [
        ({"name": "dpmpp_2m_sde", "eta": 0.0}, "dpmpp_2m"),
        ({"name": "dpmpp_3m_sde", "eta": 0.0, "solver_type": "heun"}, {"name": "dpmpp_3m", "solver_type": "heun"}),
        ({"name": "sa_solver", "eta": 0.0, "predictor_order": 1, "corrector_order": 0}, "ddim"),
        ({"name": "dpm2_ancestral", "eta": 0.0}, "dpm2"),
        ({"name": "euler_ancestral", "eta": 0.0}, "euler"),
        ({"name": "flow_map", "gamma": 0.0}, "flow_map"),
    ],
    ids=str,
)
def test_without_noise(stochastic, deterministic, x64):
    grid = GRIDS.build("karras")(VP, 9)
    noise = jnp.linspace(-1, 1, 4)
    exact = Gaussian().flow_map(VP) if deterministic == "flow_map" else Gaussian().denoiser(VP)
    a, b = (sample(SAMPLERS.build(spec), exact, grid, noise).x0 for spec in (stochastic, deterministic))
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("predictor", "corrector", "order"), [(1, 0, 1), (2, 0, 2), (3, 0, 3), (2, 3, 3)])
def test_sa_solver_without_noise_has_the_order_of_its_polynomials(predictor, corrector, order, x64):
    spec = {"name": "sa_solver", "eta": 0.0, "predictor_order": predictor, "corrector_order": corrector}
    errors = []
    for num_steps in (96, 192):
        grid = grid_of(EDM, num_steps)
        x = sample(SAMPLERS.build(spec), Gaussian().denoiser(EDM), grid, jnp.array([1.3])).x0[0]
        errors.append(abs(x - Gaussian().flow(EDM, 80 * 1.3, grid)))
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.1)


def test_dpmpp_sde_has_correlated_stages(x64):
    """Both noises belong to one Brownian path, so the noise at the end of a step has the right total variance."""
    constants = SAMPLERS.build("dpmpp_sde").constants(GRIDS.build("karras")(EDM, 8))
    grid = GRIDS.build("karras")(EDM, 8)
    up = np.hypot(constants["end_early_noise"], constants["end_noise"])
    small = SAMPLERS.build("euler_ancestral").constants(grid)["fresh"]
    np.testing.assert_allclose(up[:-1], small[:-1], rtol=1e-12)


def test_churn_and_restart_keep_the_distribution(x64):
    """Additional noise leaves the final variance unchanged, up to the order of Heun."""
    grid, keys = GRIDS.build("uniform")(EDM, 200), BatchKey.create(jax.random.key(0), 20000)

    def draw(sampler, keys):
        return sample(sampler, CENTRED.denoiser(EDM), grid, (2,), keys).x0

    for spec in (
        {"name": "heun", "s_churn": 20.0},
        {"name": "restart", "s_restart_min": 0.1, "s_restart_max": 1.0, "inner_steps": 30},
    ):
        x0 = jax.jit(functools.partial(draw, SAMPLERS.build(spec)))(keys)
        np.testing.assert_allclose(np.std(x0), 0.5, atol=4 * 0.5 / np.sqrt(80000))


def test_restart_counts_and_forgets():
    """An error from above the restart interval decays, and more so for a wider interval."""
    grid = GRIDS.build("uniform")(EDM, 18)

    def memory(sampler):
        key = BatchKey.create(jax.random.key(0), 1)
        return jax.grad(lambda x: sample(sampler, CENTRED.denoiser(EDM), grid, x[None], key).x0[0])(0.1)

    heun, mild, strong = (
        abs(memory(SAMPLERS.build(spec)))
        for spec in ("heun", {"name": "restart", "s_restart_max": 0.3}, {"name": "restart", "s_restart_max": 3.0})
    )
    assert strong < 0.2 * mild < 0.2 * heun


def test_langevin_dynamics_has_its_stationary_variance(x64):
    """x' = x - e x / V + sqrt(2 e) z has variance V / (1 - e / (2 V)), which tends to V."""
    variance, step = 0.25, 0.02
    a = langevin_step(jnp.array(1.0), -jnp.array(1.0) / variance, step, jnp.array(0.0))
    b = langevin_step(jnp.array(0.0), jnp.array(0.0), step, jnp.array(1.0))
    np.testing.assert_allclose(b**2 / (1 - a**2), variance / (1 - step / (2 * variance)), rtol=1e-12)


def test_predictor_corrector_in_many_dimensions():
    """Mean and deviation are right in 256 dimensions on a VE schedule with the paper's step size."""
    schedule = SCHEDULES.build("ve_sde")
    grid = GRIDS.build("uniform")(schedule, 200)
    sampler = SAMPLERS.build({"name": "predictor_corrector", "snr": 0.16})
    keys = BatchKey.create(jax.random.key(1), 64)
    x0 = jax.jit(lambda: sample(sampler, Gaussian().denoiser(schedule), grid, (256,), keys).x0)()
    np.testing.assert_allclose([np.mean(x0), np.std(x0)], [0.3, 0.5], atol=0.03)


def test_sit_diffusions_that_are_special():
    grid = GRIDS.build("uniform")(FLOW, 4)
    with pytest.raises(UserError, match="infinite where alpha = 0"):
        SAMPLERS.build({"name": "sit_sde", "diffusion": "sbdm"}).constants(grid)
    with pytest.raises(UserError, match="did you mean 'sigma'"):
        SAMPLERS.build({"name": "sit_sde", "diffusion": "sigm"})
    # half the squared diffusion coefficient of the VP SDE is beta / 2
    times = np.linspace(1, 0.1, 5)
    found = SAMPLERS.build({"name": "sit_sde", "diffusion": "sbdm"}).diffusions(TimeGrid.from_times(VP, times))
    np.testing.assert_allclose(found, 0.5 * VP.rate(times), rtol=1e-9)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "dpm2", "eta": -0.1},
        {"name": "dpmpp_2m_sde", "eta": -1.0},
        {"name": "dpmpp_2m_sde", "solver_type": "euler"},
        {"name": "sa_solver", "predictor_order": 9},
        {"name": "predictor_corrector", "snr": 0.0},
        {"name": "restart", "s_restart_min": 2.0},
        {"name": "flow_map", "gamma": 1.5},
        {"name": "rk45", "rtol": 0.0, "atol": 0.0},
        {"name": "sit_sde", "diffusion_norm": 0.0},
    ],
    ids=str,
)
def test_bad_options_are_refused(spec):
    with pytest.raises(UserError):
        SAMPLERS.build(spec)
