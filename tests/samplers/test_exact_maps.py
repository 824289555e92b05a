"""Samplers that are exact for an exact model, and identities between solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.samplers.editing import DDIMInversion
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Prediction, TimeGrid
from tests.samplers.closed_form import Gaussian, GivenNoise, Mixture

pytestmark = pytest.mark.usefixtures("x64")
EDM, FLOW, VP = (SCHEDULES.build(name) for name in ("edm", "rectified_flow", "vp_sde"))


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("schedule", [FLOW, VP])
def test_a_flow_map_is_exact_in_any_number_of_steps(schedule, num_steps):
    noise = jnp.linspace(-2, 2, 5)
    grid = GRIDS.build("uniform")(schedule, num_steps)
    found = sample(SAMPLERS.build("flow_map"), Gaussian().flow_map(schedule), grid, noise).x0
    np.testing.assert_allclose(found, Gaussian().flow(schedule, np.asarray(noise), grid), rtol=1e-9)


def test_mean_flow_of_a_gaussian():
    """u(x = 1; t = .9, r = .2) = v - (t - r) du/dt, and the one-step sample from x = 1 is 1 - u(1, 1, 0) = .8."""
    flow_map = Gaussian().flow_map(FLOW)

    def average_velocity(x, t, r):
        prediction = flow_map(jnp.array([x]), jnp.asarray(t), jnp.asarray(r))
        return (prediction.noise - prediction.x0)[0]  # (x_t - x_r) / (t - r)

    np.testing.assert_allclose(average_velocity(1.0, 0.9, 0.2), 0.3982074711341017, rtol=1e-12)
    velocity = Gaussian().denoiser(FLOW)(jnp.array([1.0]), jnp.asarray(0.9))
    v = (velocity.noise - velocity.x0)[0]
    np.testing.assert_allclose(v, 0.7446153846, atol=1e-10)
    u, slope = jax.jvp(average_velocity, (1.0, 0.9, 0.2), (v, 1.0, 0.0))
    np.testing.assert_allclose(u, v - 0.7 * slope, rtol=1e-10)
    np.testing.assert_allclose(average_velocity(1.0, 1.0, 0.0), 0.2, rtol=1e-12)
    grid = GRIDS.build("uniform")(FLOW, 1)
    np.testing.assert_allclose(sample(SAMPLERS.build("flow_map"), flow_map, grid, jnp.array([1.0])).x0, 0.8, rtol=1e-12)


def test_consistency_function_of_a_gaussian():
    """f(1; sigma 80 -> 0.002) = .3043749495525, and the second step's noise is sqrt(t^2 - eps^2)."""
    end = TimeGrid.from_times(EDM, [1.0, 0.0], to_clean=False)
    np.testing.assert_allclose(Gaussian().flow(EDM, 1.0, end), 0.3043749495525, rtol=1e-12)
    grid = TimeGrid.from_times(EDM, np.array([0.0, 22.0, 39.0])[::-1] / 39)
    std = SAMPLERS.build("consistency").constants(grid)["std"]
    levels = EDM.sigma(np.array([22.0, 0.0]) / 39)
    np.testing.assert_allclose(std, [*np.sqrt(np.maximum(levels**2 - 0.002**2, 0)), 0.0], atol=1e-9)


def test_two_consistency_steps():
    grid = TimeGrid.from_times(EDM, [1.0, 0.6])
    f, z = Gaussian().flow_map(EDM), 0.7
    found = sample(SAMPLERS.build("consistency"), f, grid, jnp.array([0.5]), GivenNoise(jnp.full((2, 2), z))).x0
    first = f(jnp.array([40.0]), jnp.asarray(1.0)).x0
    again = first + np.sqrt(EDM.sigma(0.6) ** 2 - 0.002**2) * z
    np.testing.assert_allclose(found, f(again, jnp.asarray(0.6)).x0, rtol=1e-10)


def test_tcd_at_its_ends():
    """gamma = 0 follows the flow map; gamma = 1 denoises to clean data in each step, as a consistency sampler does."""
    grid, key = GRIDS.build("uniform")(FLOW, 3), BatchKey.create(jax.random.key(0), 4)
    noise, flow_map = jnp.linspace(-1, 1, 4), Gaussian().flow_map(FLOW)
    run = {g: sample(SAMPLERS.build({"name": "tcd", "gamma": g}), flow_map, grid, noise, key).x0 for g in (0.0, 1.0)}
    np.testing.assert_allclose(run[0.0], sample(SAMPLERS.build("flow_map"), flow_map, grid, noise).x0)
    np.testing.assert_allclose(run[1.0], sample(SAMPLERS.build("lcm"), flow_map, grid, noise, key).x0, rtol=1e-9)


@pytest.mark.parametrize("data", [Gaussian(), Mixture()], ids=["gaussian", "mixture"])
def test_rk45_is_as_exact_as_its_tolerances(data):
    grid = TimeGrid.from_times(EDM, [1.0, 0.0], to_clean=False)
    errors, evaluations = [], []
    for tolerance in (1e-3, 1e-6, 1e-9):
        sampler = SAMPLERS.build({"name": "rk45", "rtol": tolerance, "atol": tolerance})
        result = sample(sampler, data.denoiser(EDM), grid, jnp.array([1.3, -0.4]))
        errors.append(
            max(abs(float(x) - data.flow(EDM, x1, grid)) for x, x1 in zip(result.x0, (104, -32), strict=True))
        )
        evaluations.append(int(result.nfe))
    assert np.all(np.array(errors) < [1e-2, 1e-5, 1e-8])
    assert evaluations == sorted(evaluations)


def test_rk45_gives_nan_where_its_steps_do_not_suffice():
    grid = TimeGrid.from_times(EDM, [1.0, 0.0], to_clean=False)
    sampler = SAMPLERS.build({"name": "rk45", "rtol": 1e-10, "max_steps": 3})
    assert np.isnan(sample(sampler, Gaussian().denoiser(EDM), grid, jnp.array([1.3])).x0).all()


def test_inversion_comes_back():
    """Naive inversion has an error of first order; fixed-point iterations remove it."""
    x0, errors = jnp.array([0.4, -0.8, 1.1]), []
    for num_steps, iterations in ((50, 0), (100, 0), (50, 3), (50, 30)):
        grid = GRIDS.build("uniform")(VP, num_steps)
        inverse = DDIMInversion(iterations=iterations)(Mixture().denoiser(VP), grid, x0)
        assert inverse.nfe == num_steps * (1 + iterations)
        errors.append(np.abs(sample(SAMPLERS.build("ddim"), Mixture().denoiser(VP), grid, inverse.noise).x0 - x0).max())
    assert errors[1] < 0.6 * errors[0] < 0.1
    assert errors[3] < errors[2] < errors[0]


@pytest.mark.parametrize("pair", [("dpm_solver_2m", "dpmpp_2m"), ("dpmpp_2m", "dpm_solver_2m")])
def test_first_order_solvers_are_one(pair):
    """DDIM equals DPM-Solver-1 and DPM-Solver++-1, the first step of every multistep solver."""
    grid = TimeGrid.from_times(VP, [0.9, 0.6], to_clean=False)
    noise = jnp.linspace(-1, 1, 3)
    ddim, other = (sample(SAMPLERS.build(n), Mixture().denoiser(VP), grid, noise).x0 for n in ("ddim", pair[0]))
    np.testing.assert_allclose(ddim, other, atol=1e-14)


def test_dpmpp_2m_is_the_published_recurrence():
    """x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) ((1 + 1/(2r)) D_i - D_{i-1} / (2r)) (Lu et al., alg. 2)."""
    grid = GRIDS.build("karras")(VP, 6)
    denoiser = Mixture().denoiser(VP)
    x, previous = jnp.linspace(-1, 1, 4), None
    lambdas = 0.5 * grid.log_snrs
    for i in range(6):
        d = denoiser(x, jnp.asarray(grid.times[i])).x0
        h = lambdas[i + 1] - lambdas[i]
        mixed = d
        if previous is not None and np.isfinite(h):
            r = (lambdas[i] - lambdas[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * d - previous / (2 * r)
        x = grid.sigmas[i + 1] / grid.sigmas[i] * x - grid.alphas[i + 1] * np.expm1(-h) * mixed
        previous = d
    found = sample(SAMPLERS.build("dpmpp_2m"), denoiser, grid, jnp.linspace(-1, 1, 4)).x0
    np.testing.assert_allclose(found, x, rtol=1e-11)


@pytest.mark.parametrize(("name", "degree"), [("lms", 3), ("deis", 2)])
def test_adams_polynomials_are_exact_up_to_their_degree(name, degree):
    """dz / d rho = u^k, with u = rho for LMS and log rho for DEIS, is integrated exactly after the start-up steps."""
    grid = TimeGrid.from_times(EDM, np.linspace(0.5, 0.2, 8), to_clean=False)
    levels = grid.sigmas

    def variable(t):
        return EDM.sigma(t) if name == "lms" else jnp.log(EDM.sigma(t))

    def primitive(level):
        if name == "lms":
            return level ** (degree + 1) / (degree + 1)
        log = np.log(level)
        return level * (log**2 - 2 * log + 2)

    def denoiser(xt, t):
        noise = jnp.full(xt.shape, variable(t) ** degree)
        return Prediction(x0=xt - EDM.sigma(t) * noise, noise=noise)

    path = sample(SAMPLERS.build(name), denoiser, grid, jnp.zeros(1), return_trajectory=True).trajectory[:, 0]
    np.testing.assert_allclose(np.diff(path)[degree:], np.diff(primitive(levels))[degree:], rtol=1e-9)


def test_straight_pairs_need_one_euler_step():
    """One Euler step is exact after reflow, which pairs data and noise of a Gaussian linearly (Liu et al. 2022)."""

    def denoiser(xt, t):  # x0 = 0.3 + 0.5 noise along every path
        noise = (xt - 0.3 * (1 - t)) / (t + 0.5 * (1 - t))
        return Prediction(x0=0.3 + 0.5 * noise, noise=noise)

    grid = GRIDS.build("uniform")(FLOW, 1)
    found = sample(SAMPLERS.build("flow_euler"), denoiser, grid, jnp.linspace(-2, 2, 5)).x0
    np.testing.assert_allclose(found, 0.3 + 0.5 * np.linspace(-2, 2, 5), rtol=1e-12)
