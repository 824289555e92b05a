"""What every registered sampler must satisfy, on every schedule where it can run."""

import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Parameterization, Prediction, TimeGrid
from tests.samplers.closed_form import Gaussian, point_mass_denoiser


def runs(sampler, schedule):
    """Whether the sampler accepts grids of the schedule; one that does not must say so, see below."""
    try:
        SAMPLERS.example(sampler).constants(GRIDS.build("uniform")(SCHEDULES.example(schedule), 4))
    except UserError:
        return False
    return True


PAIRS = list(itertools.product(SAMPLERS, SCHEDULES))
POSSIBLE = [pair for pair in PAIRS if runs(*pair)]
IMPOSSIBLE = sorted(set(PAIRS) - set(POSSIBLE))
STOCHASTIC = {
    "ddpm_large": {"name": "ddpm", "variance": "large"},
    "ddim_eta": {"name": "ddim", "eta": 0.7},
    "heun_churn": {"name": "heun", "s_churn": 10.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
}
DETERMINISTIC = [name for name in SAMPLERS if not SAMPLERS.example(name).stochastic]


def home_schedule(name):
    """A schedule on which the sampler runs."""
    return SCHEDULES.build("rectified_flow" if name == "flow_euler" else "edm")


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def test_what_is_impossible():
    """Steps in sigma / alpha can not start where alpha is 0; everything else runs everywhere."""
    assert {("euler", "rectified_flow"), ("heun", "rectified_flow")} <= set(IMPOSSIBLE)
    own = {"ddim", "ddpm", "dpmpp_2m", "euler", "flow_euler", "heun"}
    assert not [pair for pair in IMPOSSIBLE if pair[0] in own - {"euler", "heun"}]


@pytest.mark.parametrize(("name", "schedule"), IMPOSSIBLE)
def test_impossible_pairs_are_refused_at_trace_time(name, schedule):
    schedule = SCHEDULES.example(schedule)
    grid = GRIDS.build("uniform")(schedule, 4)
    run = jax.jit(lambda x: sample(SAMPLERS.example(name), Gaussian().denoiser(schedule), grid, x).x0)
    with pytest.raises(UserError, match=r"use .*ddim"):
        run(jnp.zeros((2, 3)))


@pytest.mark.parametrize(("name", "schedule"), POSSIBLE)
def test_gaussian_data_come_out_right(name, schedule):
    """300 steps carry noise to data N(0.3, 0.5^2): in distribution, and along the exact flow if deterministic."""
    schedule, sampler = SCHEDULES.example(schedule), SAMPLERS.example(name)
    grid = GRIDS.build("karras")(schedule, 300)
    noise = keys(4096).fold_in("test").normal((2,))
    denoiser = Gaussian().denoiser(schedule)
    x0 = np.asarray(jax.jit(lambda x: sample(sampler, denoiser, grid, x, keys(4096)).x0)(noise))
    assert np.all(np.isfinite(x0))
    np.testing.assert_allclose(x0.mean(), 0.3, atol=0.03)
    np.testing.assert_allclose(x0.std(), 0.5, atol=0.03)
    if not sampler.stochastic:
        exact = Gaussian().flow(schedule, schedule.prior_std * np.asarray(noise), grid)
        assert np.sqrt(np.mean((x0 - exact) ** 2)) < 0.05


@pytest.mark.parametrize(("name", "schedule"), POSSIBLE)
def test_point_mass_is_found_exactly_on_every_grid(name, schedule):
    """With data at one point any grid, of one step or several, ends there: every last step returns the predicted x0."""
    schedule, sampler = SCHEDULES.example(schedule), SAMPLERS.example(name)
    target = jnp.array([0.7, -0.2])
    for grid, num_steps in (("uniform", 1), *((grid, 3) for grid in GRIDS)):
        grid_points = GRIDS.example(grid)(schedule, num_steps)
        with jax.disable_jit():
            result = sample(sampler, point_mass_denoiser(schedule, target), grid_points, (2,), keys(2))
        np.testing.assert_allclose(result.x0, jnp.broadcast_to(target, (2, 2)), atol=2e-3)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name, x64):
    schedule, sampler = home_schedule(name), SAMPLERS.example(name)
    denoiser, x_1, errors = Gaussian().denoiser(schedule), 1.3, []
    for num_points in (65, 129, 257):
        times = np.linspace(1.0, 0.0, num_points)
        grid = TimeGrid.from_times(schedule, times, to_clean=False)
        found = sample(sampler, denoiser, grid, jnp.array([x_1])).x0[0]
        errors.append(abs(found - Gaussian().flow(schedule, schedule.prior_std * x_1, grid)))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, sampler.order, atol=0.15)


def test_published_orders():
    published = {"euler": 1, "ddim": 1, "flow_euler": 1, "heun": 2, "dpmpp_2m": 2}
    assert {name: SAMPLERS.example(name).order for name in published} == published


@pytest.mark.parametrize("ends_clean", [True, False])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_nfe_is_counted(name, ends_clean):
    schedule, sampler = home_schedule(name), SAMPLERS.example(name)
    grid = TimeGrid.from_times(schedule, np.linspace(1, 0.1, 5), to_clean=ends_clean)
    exact, calls = Gaussian().denoiser(schedule), []

    def denoiser(xt, t):
        jax.debug.callback(lambda time: calls.append(float(time)), t)
        return exact(xt, t)

    result = jax.jit(lambda x: sample(sampler, denoiser, grid, x, keys(2)))(jnp.zeros((2, 1)))
    jax.block_until_ready(result.x0)
    jax.effects_barrier()
    expected = 2 * grid.num_steps - grid.ends_clean if name == "heun" else grid.num_steps
    assert len(calls) == result.nfe == sampler.nfe(grid.num_steps, ends_clean=ends_clean) == expected


@pytest.mark.parametrize("shape", [(), (2, 3, 2, 1)])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_any_shape_and_the_trajectory(name, shape):
    schedule = home_schedule(name)
    grid = GRIDS.build("uniform")(schedule, 3)
    result = sample(SAMPLERS.example(name), Gaussian().denoiser(schedule), grid, shape, keys(2), return_trajectory=True)
    assert result.x0.shape == (2, *shape)
    assert result.trajectory.shape == (4, 2, *shape)
    np.testing.assert_array_equal(result.trajectory[-1], result.x0)
    prior = schedule.prior_std * keys(2).fold_in("prior").normal(shape)
    np.testing.assert_array_equal(result.trajectory[0], prior)


@pytest.mark.parametrize("spec", [*SAMPLERS, *STOCHASTIC])
def test_samples_do_not_depend_on_the_batch_split(spec):
    sampler = SAMPLERS.build(STOCHASTIC.get(spec, spec))
    schedule = home_schedule(spec)
    grid = GRIDS.build("uniform")(schedule, 6)

    def run(key):
        with jax.disable_jit():
            return sample(sampler, Gaussian().denoiser(schedule), grid, (3,), key).x0

    whole = run(keys(4))
    halves = [run(BatchKey(jax.random.key(0), index, 4)) for index in (jnp.array([0, 1]), jnp.array([2, 3]))]
    np.testing.assert_allclose(whole, jnp.concatenate(halves), rtol=1e-5, atol=1e-6)
    assert not np.allclose(whole, run(keys(4, seed=1)))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_jit_and_export(name):
    schedule, sampler = home_schedule(name), SAMPLERS.example(name)
    grid = GRIDS.build("uniform")(schedule, 4)

    def run(seed):
        key = BatchKey.create(jax.random.key(seed), 2)
        return sample(sampler, Gaussian().denoiser(schedule), grid, (3,), key).x0

    exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct((), jnp.uint32))
    np.testing.assert_allclose(exported.call(jnp.uint32(5)), run(jnp.uint32(5)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_state_stays_float32_for_a_bfloat16_denoiser(name):
    schedule = home_schedule(name)
    exact = Gaussian().denoiser(schedule)

    def denoiser(xt, t):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact(xt, t))

    result = sample(SAMPLERS.example(name), denoiser, GRIDS.build("uniform")(schedule, 3), (2,), keys(2))
    assert result.x0.dtype == jnp.float32


@pytest.mark.parametrize(("name", "schedule"), POSSIBLE)
def test_an_untrained_network_gives_finite_clipped_samples(name, schedule):
    """A network at initialisation, which returns zeros, must give finite samples through its parameterisation."""
    parameterization = Parameterization.build(schedule=schedule, prediction="v", time_input="t")
    grid = GRIDS.build("uniform")(parameterization.schedule, 5)
    denoiser = parameterization.denoiser(lambda x, time: jnp.zeros_like(x))
    with jax.disable_jit():
        result = sample(
            SAMPLERS.example(name), denoiser, grid, (2,), keys(3), x0_transform=lambda x: jnp.clip(x, -1, 1)
        )
    assert np.all(np.isfinite(result.x0))
    assert np.all(np.abs(result.x0) <= 1.01)


def test_euler_is_ddim(x64):
    for schedule in (SCHEDULES.example(name) for name in SCHEDULES if ("euler", name) not in IMPOSSIBLE):
        grid = GRIDS.build("karras")(schedule, 7)
        noise = jnp.linspace(-2, 2, 5)
        euler, ddim = (
            sample(SAMPLERS.build(n), Gaussian().denoiser(schedule), grid, noise).x0 for n in ("euler", "ddim")
        )
        np.testing.assert_allclose(euler, ddim, atol=1e-12)


def test_ddim_with_eta_1_is_ddpm_small(x64):
    for schedule in map(SCHEDULES.example, SCHEDULES):
        grid = GRIDS.build("uniform")(schedule, 5)
        with jax.disable_jit():
            ddim, ddpm = (
                sample(SAMPLERS.build(spec), Gaussian().denoiser(schedule), grid, (3,), keys(2)).x0
                for spec in ({"name": "ddim", "eta": 1.0}, "ddpm")
            )
        np.testing.assert_allclose(ddim, ddpm, atol=1e-11)


def test_flow_euler_is_ddim_on_the_straight_path(x64):
    schedule = SCHEDULES.build("rectified_flow")
    grid = GRIDS.build("uniform")(schedule, 5)
    flow, ddim = (
        sample(SAMPLERS.build(n), Gaussian().denoiser(schedule), grid, jnp.linspace(-2, 2, 5)).x0
        for n in ("flow_euler", "ddim")
    )
    np.testing.assert_allclose(flow, ddim, atol=1e-14)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_dpmpp_2m_first_order_is_ddim(schedule, x64):
    """Its first step, and a step to clean data, are DDIM's."""
    schedule = SCHEDULES.example(schedule)
    grid = GRIDS.build("uniform")(schedule, 1)
    two_m, ddim = (
        sample(SAMPLERS.build(n), Gaussian().denoiser(schedule), grid, jnp.array([0.4])).x0
        for n in ("dpmpp_2m", "ddim")
    )
    np.testing.assert_allclose(two_m, ddim, atol=1e-13)


def test_churn_where_the_schedule_ends_stays_on_the_schedule():
    """On a table the noise level cannot be raised above that of t = 1."""
    schedule = SCHEDULES.build("ddpm_linear")
    grid = GRIDS.build("karras")(schedule, 10)
    constants = SAMPLERS.build({"name": "heun", "s_churn": 40.0}).constants(grid)
    assert constants["added_std"][0] < 1e-3
    assert np.all(constants["added_std"][1:] > 0)
    assert np.all((constants["raised_time"] <= 1) & (constants["raised_time"] >= grid.times[:-1]))


def test_x0_transform_also_moves_the_noise():
    schedule = SCHEDULES.build("ddpm_linear")
    grid, seen = GRIDS.build("uniform")(schedule, 4), []

    class Probe(type(SAMPLERS.build("ddim"))):
        def step(self, denoise, state, transition, key):
            prediction = denoise(state.x, transition.t)
            again = transition.alpha_t * prediction.x0 + transition.sigma_t * prediction.noise
            seen.append(jax.debug.callback(lambda gap: np.testing.assert_allclose(gap, 0, atol=1e-5), again - state.x))
            return super().step(denoise, state, transition, key)

    sample(
        Probe(), Gaussian().denoiser(schedule), grid, jnp.array([3.0]), x0_transform=lambda x: jnp.clip(x, -0.1, 0.1)
    )
    jax.effects_barrier()
    assert seen


def test_a_missing_key_is_one_clear_line():
    schedule = SCHEDULES.build("edm")
    grid, denoiser = GRIDS.build("uniform")(schedule, 2), Gaussian().denoiser(schedule)
    with pytest.raises(UserError, match="give it a key"):
        sample(SAMPLERS.build("ddpm"), denoiser, grid, jnp.zeros((1,)))
    with pytest.raises(UserError, match="give it a key"):
        sample(SAMPLERS.build("ddim"), denoiser, grid, (2,))


@pytest.mark.parametrize(
    "spec", [{"name": "ddpm", "variance": "learnt"}, {"name": "ddim", "eta": 2.0}, {"name": "heun", "s_churn": -1.0}]
)
def test_bad_options_are_refused(spec):
    with pytest.raises(UserError):
        SAMPLERS.build(spec)


def test_predictions_are_pytrees_and_samplers_are_static():
    assert len(jax.tree.leaves(Prediction(x0=jnp.zeros(2), noise=jnp.ones(2)))) == 2
    grid = GRIDS.build("uniform")(SCHEDULES.build("edm"), 3)
    again = GRIDS.build("uniform")(SCHEDULES.build("edm"), 3)
    assert grid == again
    assert hash(grid) == hash(again)
    assert all(hash(SAMPLERS.example(name)) == hash(SAMPLERS.example(name)) for name in SAMPLERS)
