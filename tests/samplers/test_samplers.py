"""What every registered sampler must satisfy: a new one is tested without a new test."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, evaluation_times, sample, samplers_of
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Parameterization, Prediction, TimeGrid
from tests.samplers.closed_form import Gaussian, point_mass_denoiser

# Where the sampler is at home, if not on edm; and samplers that are stochastic only with options.
HOME = {"flow_euler": "rectified_flow", "flow_heun": "rectified_flow", "sit_sde": "rectified_flow"}
HOME |= {"scm": "trigflow", "flow_map": "rectified_flow", "tcd": "rectified_flow"}
OPTIONS = {
    "ddpm_large": {"name": "ddpm", "variance": "large"},
    "ddim_eta": {"name": "ddim", "eta": 0.7},
    "ddpm_reverse": {"name": "predictor_corrector", "predictor": "ancestral", "corrector": "annealed"},
    "lms_started": {"name": "lms", "start": "runge_kutta"},
    "dpmpp_3m_started": {"name": "dpmpp_3m", "start": "runge_kutta"},
    "heun_churn": {"name": "heun", "s_churn": 10.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
}
GAUSSIAN = samplers_of("gaussian")
ALL = [*GAUSSIAN, *OPTIONS]
DETERMINISTIC = [name for name in GAUSSIAN if not SAMPLERS.example(name).stochastic]
FAMILIES = ("edm", "ddpm_linear", "vp_sde", "rectified_flow")  # one for each way to begin and to end


def one_of_each_module(names):
    """All names, those of the default suite first in their module, whose samplers share their code; the rest slow."""
    seen, params = set(), []
    for name in names:
        module = SAMPLERS[name].__module__ if name in SAMPLERS else name
        params.append(pytest.param(name, marks=pytest.mark.slow) if module in seen else name)
        seen.add(module)
    return params


def build(name):
    return SAMPLERS.build(OPTIONS[name]) if name in OPTIONS else SAMPLERS.example(name)


def home(name):
    return SCHEDULES.build(HOME.get(name, "edm"))


def denoiser_for(sampler, schedule, data=None):
    """The exact denoiser, consistency function or flow map of Gaussian data, whichever the sampler takes."""
    data = data or Gaussian()
    return data.denoiser(schedule) if sampler.denoiser_kind == "denoiser" else data.flow_map(schedule)


def point_mass_for(sampler, schedule, target):
    exact = point_mass_denoiser(schedule, target)
    return exact if sampler.denoiser_kind == "denoiser" else lambda xt, t, *s: exact(xt, t)


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def runs(sampler, schedule):
    try:
        sampler.constants(GRIDS.build("uniform")(schedule, 4))
    except UserError:
        return False
    return True


PAIRS = [(name, schedule) for name in GAUSSIAN for schedule in SCHEDULES]
POSSIBLE = [pair for pair in PAIRS if runs(SAMPLERS.example(pair[0]), SCHEDULES.example(pair[1]))]
IMPOSSIBLE = sorted(set(PAIRS) - set(POSSIBLE))


def test_what_is_impossible():
    """Steps in sigma / alpha cannot start where alpha is 0, nor steps in t where its slope is infinite."""
    no_signal = {schedule for schedule in SCHEDULES if SCHEDULES.example(schedule).alpha(1.0) == 0}
    assert {schedule for name, schedule in IMPOSSIBLE if not name.startswith(("flow_", "sit_", "restart"))} <= no_signal
    assert {("euler", "rectified_flow"), ("heun", "gvp"), ("flow_heun", "sigmoid")} <= set(IMPOSSIBLE)
    everywhere = {"ddim", "ddpm", "dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "unipc"}
    assert not [pair for pair in IMPOSSIBLE if pair[0] in everywhere]


@pytest.mark.parametrize(("name", "schedule"), IMPOSSIBLE)
def test_impossible_pairs_are_refused_at_trace_time(name, schedule):
    sampler, schedule = SAMPLERS.example(name), SCHEDULES.example(schedule)
    grid = GRIDS.build("uniform")(schedule, 4)
    run = jax.jit(lambda x: sample(sampler, denoiser_for(sampler, schedule), grid, x, keys(2)).x0)
    with pytest.raises(UserError, match=r"use .*ddim"):
        run(jnp.zeros((2, 3)))


@pytest.mark.parametrize("name", ALL)
def test_gaussian_data_come_out_right(name):
    """300 steps carry noise to data N(0.3, 0.5^2): in distribution, and along the exact flow if deterministic."""
    schedule, sampler = home(name), build(name)
    grid = GRIDS.build("karras")(schedule, 300)
    noise = keys(4096).fold_in("test").normal((2,))
    denoiser = denoiser_for(sampler, schedule)
    x0 = np.asarray(jax.jit(lambda x: sample(sampler, denoiser, grid, x, keys(4096)).x0)(noise))
    assert np.all(np.isfinite(x0))
    np.testing.assert_allclose(x0.mean(), 0.3, atol=0.03)
    np.testing.assert_allclose(x0.std(), 0.5, atol=0.03)
    if not sampler.stochastic:
        exact = Gaussian().flow(schedule, schedule.prior_std * np.asarray(noise), grid)
        assert np.sqrt(np.mean((x0 - exact) ** 2)) < 0.05


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m"])
def test_gaussian_data_come_out_right_on_every_schedule(name, schedule):
    schedule, sampler = SCHEDULES.example(schedule), SAMPLERS.example(name)
    grid = GRIDS.build("karras")(schedule, 300)
    x0 = jax.jit(lambda: sample(sampler, Gaussian().denoiser(schedule), grid, (2,), keys(4096)).x0)()
    np.testing.assert_allclose([np.mean(x0), np.std(x0)], [0.3, 0.5], atol=0.03)


@pytest.mark.parametrize("schedule", FAMILIES)
@pytest.mark.parametrize("name", one_of_each_module(GAUSSIAN))
def test_point_mass_is_found_exactly(name, schedule):
    """With data at one point any grid, of one step or several, ends there: every last step returns the predicted x0."""
    if (name, schedule) in IMPOSSIBLE:
        pytest.skip("refused, see above")
    schedule, sampler = SCHEDULES.example(schedule), SAMPLERS.example(name)
    target = jnp.array([0.7, -0.2])
    for grid, num_steps in (("uniform", 1), ("trailing", 3), ("karras", 9)):
        points = GRIDS.example(grid)(schedule, num_steps)
        if name in ("pndm", "restart") and num_steps < 5:
            continue  # they say that they need more steps
        result = sample(sampler, point_mass_for(sampler, schedule, target), points, (2,), keys(2))
        np.testing.assert_allclose(result.x0, jnp.broadcast_to(target, (2, 2)), atol=2e-3)


@pytest.mark.parametrize("ends_clean", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ALL)
def test_nfe_is_counted(name, ends_clean):
    schedule, sampler = home(name), build(name)
    grid = TimeGrid.from_times(schedule, np.linspace(1, 0.1, 5), to_clean=ends_clean)
    exact, calls = denoiser_for(sampler, schedule), []

    def denoiser(xt, t, *s):
        jax.debug.callback(lambda time: calls.append(np.ravel(time)[0]), t)
        return exact(xt, t, *s)

    result = jax.jit(lambda x: sample(sampler, denoiser, grid, x, keys(2)))(jnp.zeros((2, 1)))
    jax.block_until_ready(result.x0)
    jax.effects_barrier()
    assert len(calls) == result.nfe
    if type(sampler).evaluations is type(build("ddim")).evaluations:  # not adaptive
        assert result.nfe == sampler.nfe(grid.num_steps, ends_clean=ends_clean)
        np.testing.assert_allclose(evaluation_times(sampler, grid), calls, rtol=1e-6)


@pytest.mark.parametrize("name", one_of_each_module(ALL))
def test_any_shape_and_the_trajectory(name):
    schedule, sampler = home(name), build(name)
    grid = GRIDS.build("uniform")(schedule, 3)
    for shape in ((), (2, 3, 2, 1)):
        result = sample(sampler, denoiser_for(sampler, schedule), grid, shape, keys(2), return_trajectory=True)
        assert result.x0.shape == (2, *shape)
        assert result.trajectory.shape == (4, 2, *shape)
        np.testing.assert_array_equal(result.trajectory[-1], result.x0)
        prior = schedule.prior_std * keys(2).fold_in("prior").normal(shape)
        np.testing.assert_array_equal(result.trajectory[0], prior)


@pytest.mark.parametrize("name", one_of_each_module(ALL))
def test_samples_depend_neither_on_the_batch_split_nor_on_its_sharding(name, x64):
    sampler, schedule = build(name), home(name)
    grid = GRIDS.build("uniform")(schedule, 5)

    @jax.jit
    def run(index, seed):
        key = BatchKey(jax.random.key(seed), index, 8)
        return sample(sampler, denoiser_for(sampler, schedule), grid, (3,), key).x0

    whole = run(jnp.arange(8), 0)
    halves = [run(jnp.arange(first, first + 4), 0) for first in (0, 4)]
    np.testing.assert_allclose(whole, jnp.concatenate(halves), rtol=1e-9, atol=1e-9)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = run(jax.device_put(jnp.arange(8), NamedSharding(mesh, PartitionSpec("data"))), 0)
    np.testing.assert_allclose(whole, sharded, rtol=1e-9, atol=1e-9)
    assert not np.allclose(whole, run(jnp.arange(8), 1))


@pytest.mark.parametrize("name", one_of_each_module(ALL))
def test_export_and_a_program_that_does_not_grow_with_the_steps(name):
    """One compiled program per number of steps, as long for 40 steps as for 4."""
    schedule, sampler = home(name), build(name)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)

    def program(num_steps):
        grid = GRIDS.build("uniform")(schedule, num_steps)

        def run(seed):
            key = BatchKey.create(jax.random.key(seed), 2)
            return sample(sampler, denoiser_for(sampler, schedule), grid, (3,), key).x0

        return jax.jit(run)

    lengths = [str(program(n).trace(seed).jaxpr).count(" = ") for n in (4, 40)]
    assert lengths[0] == lengths[1]
    exported = jax.export.export(program(4))(seed)
    np.testing.assert_allclose(exported.call(jnp.uint32(5)), program(4)(jnp.uint32(5)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", one_of_each_module(ALL))
def test_state_stays_float32_for_a_bfloat16_denoiser(name):
    schedule, sampler = home(name), build(name)
    exact = denoiser_for(sampler, schedule)

    def denoiser(xt, t, *s):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact(xt, t, *s))

    result = sample(sampler, denoiser, GRIDS.build("uniform")(schedule, 3), (2,), keys(2))
    assert result.x0.dtype == jnp.float32


@pytest.mark.parametrize("name", one_of_each_module(GAUSSIAN))
def test_an_untrained_network_gives_finite_samples(name):
    """A network at initialisation, which returns zeros, through its parameterisation; predictions of x0 clipped."""
    sampler = SAMPLERS.example(name)
    for schedule in ("ddpm_linear", HOME.get(name, "edm")):
        parameterization = Parameterization.build(schedule=schedule, prediction="v", time_input="t")
        grid = GRIDS.build("karras")(parameterization.schedule, 8)
        denoiser = parameterization.denoiser(lambda x, *time: jnp.zeros_like(x))
        x0 = sample(sampler, denoiser, grid, (2,), keys(3), x0_transform=lambda x: jnp.clip(x, -1, 1)).x0
        assert np.all(np.isfinite(x0))
        if name not in ("lms", "ipndm", "pndm"):  # these extrapolate the noise to the end; all others return an x0
            assert np.all(np.abs(x0) <= 1.01)


@pytest.mark.parametrize("name", one_of_each_module(GAUSSIAN))
def test_a_projection_holds_at_every_step(name):
    """Half of the values are put back to what is known, at the noise level of the step."""
    schedule, sampler = home(name), SAMPLERS.example(name)
    grid = GRIDS.build("uniform")(schedule, 4)
    mask, known = jnp.array([1.0, 0.0]), 0.9

    def project(x, transition, key):
        return jnp.where(mask > 0, transition.alpha_s * known + transition.sigma_s * key.normal((2,)), x)

    result = sample(sampler, denoiser_for(sampler, schedule), grid, (2,), keys(2), project=project)
    np.testing.assert_allclose(result.x0[:, 0], known, rtol=1e-5)
    assert np.all(np.abs(result.x0[:, 1] - known) > 1e-4)


def test_euler_is_ddim(x64):
    for schedule in (SCHEDULES.example(name) for name in SCHEDULES if ("euler", name) not in IMPOSSIBLE):
        grid = GRIDS.build("karras")(schedule, 7)
        noise = jnp.linspace(-2, 2, 5)
        euler, ddim = (
            sample(SAMPLERS.build(n), Gaussian().denoiser(schedule), grid, noise).x0 for n in ("euler", "ddim")
        )
        np.testing.assert_allclose(euler, ddim, atol=1e-12)


def test_ddim_with_eta_1_is_ddpm_small(x64):
    for schedule in map(SCHEDULES.example, FAMILIES):
        grid = GRIDS.build("uniform")(schedule, 5)
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


@pytest.mark.parametrize(("name", "num_steps"), [("pndm", 1), ("restart", 2)])
def test_grids_that_are_too_short_are_refused(name, num_steps):
    grid = GRIDS.build("uniform")(SCHEDULES.build("ddpm_linear"), num_steps)
    with pytest.raises(UserError, match="steps"):
        SAMPLERS.build(name).constants(grid)


def test_a_missing_key_is_one_clear_line():
    schedule = SCHEDULES.build("edm")
    grid, denoiser = GRIDS.build("uniform")(schedule, 2), Gaussian().denoiser(schedule)
    with pytest.raises(UserError, match="give it a key"):
        sample(SAMPLERS.build("ddpm"), denoiser, grid, jnp.zeros((1,)))
    with pytest.raises(UserError, match="give it a key"):
        sample(SAMPLERS.build("ddim"), denoiser, grid, (2,))


def test_a_learned_variance_needs_a_network_that_says_it():
    schedule = SCHEDULES.build("edm")
    grid, sampler = GRIDS.build("uniform")(schedule, 2), SAMPLERS.build({"name": "ddpm", "variance": "learned"})
    with pytest.raises(UserError, match="learned variances"):
        sample(sampler, Gaussian().denoiser(schedule), grid, (2,), keys(2))


@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "small"), (1.0, "large")])
def test_learned_variance_at_its_ends_is_small_and_large(fraction, variance, x64):
    schedule = SCHEDULES.build("ddpm_linear")
    grid, exact = GRIDS.build("uniform")(schedule, 6), Gaussian().denoiser(schedule)

    def denoiser(xt, t):
        prediction = exact(xt, t)
        return Prediction(x0=prediction.x0, noise=prediction.noise, variance_fraction=jnp.full(xt.shape, fraction))

    learned, fixed = (
        sample(SAMPLERS.build({"name": "ddpm", "variance": v}), denoiser, grid, (3,), keys(2)).x0
        for v in ("learned", variance)
    )
    np.testing.assert_allclose(learned, fixed, rtol=1e-10)


@pytest.mark.parametrize(
    "spec", [{"name": "ddpm", "variance": "learnt"}, {"name": "ddim", "eta": 2.0}, {"name": "heun", "s_churn": -1.0}]
)
def test_bad_options_are_refused(spec):
    with pytest.raises(UserError):
        SAMPLERS.build(spec)


def test_unknown_samplers_list_the_known_ones():
    with pytest.raises(UserError, match=r"did you mean 'dpmpp_2m'.*known: .*ddim.*heun.*unipc"):
        SAMPLERS.build("dpmpp2m")


def test_predictions_are_pytrees_and_samplers_are_static():
    assert len(jax.tree.leaves(Prediction(x0=jnp.zeros(2), noise=jnp.ones(2)))) == 2
    grid = GRIDS.build("uniform")(SCHEDULES.build("edm"), 3)
    again = GRIDS.build("uniform")(SCHEDULES.build("edm"), 3)
    assert grid == again
    assert hash(grid) == hash(again)
    assert all(hash(SAMPLERS.example(name)) == hash(SAMPLERS.example(name)) for name in SAMPLERS)
