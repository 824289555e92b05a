"""Projections onto known values, on a correlated Gaussian with a known posterior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import PROJECTIONS, SAMPLERS, Measurement, Region, evaluation_times, sample, sample_given
from diffusion_jax.samplers.guidance import AdaptiveProjected, guided
from diffusion_jax.samplers.projections import DPS, PiGDM, RePaint, Replacement, network_evaluations
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Prediction

SCHEDULE = SCHEDULES.build("ddpm_linear")
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
MASK = jnp.array([[0.0, 1.0]])
KNOWN = 1.0  # the first coordinate; given it, the second is N(0.8, 0.36)


def denoiser(xt, t):
    alpha, sigma = (jnp.asarray(curve(t), xt.dtype) for curve in (SCHEDULE.alpha, SCHEDULE.sigma))
    covariance = jnp.asarray(COVARIANCE, xt.dtype)
    gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(2, dtype=xt.dtype))
    return Prediction.from_x0(SCHEDULE, xt @ gain.T, xt, t)


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def region(size):
    return Region(mask=MASK, source=jnp.full((size, 2), KNOWN))


def grid_of(steps):
    return GRIDS.build("uniform")(SCHEDULE, steps)


def drawn(projection, known, *, steps=50, sampler="ddpm", size=8192, denoise=denoiser, **options):
    run = jax.jit(
        lambda key: (
            sample_given(projection, known, SAMPLERS.build(sampler), denoise, grid_of(steps), (2,), key, **options).x0
        )
    )
    return np.asarray(run(keys(size)))


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_every_projection_draws_what_is_not_known_nearer_to_its_conditional_mean(name):
    """The second coordinate moves from mean 0 towards its conditional mean 0.8, and examples are independent."""
    projection = PROJECTIONS.example(name)
    found = drawn(projection, region(8192))
    assert np.isfinite(found).all()
    assert 0.4 < found[:, 1].mean() < 1.0
    if projection.of_region:
        np.testing.assert_allclose(found[:, 0], KNOWN, rtol=1e-6)
    part = jax.jit(
        lambda: sample_given(
            projection, region(3), SAMPLERS.build("ddpm"), denoiser, grid_of(50), (2,),
            dataclasses.replace(keys(8192), index=jnp.array([5, 6, 7])),
        ).x0
    )()  # fmt: skip
    np.testing.assert_allclose(part, found[5:8], atol=1e-4)


@pytest.mark.parametrize("name", list(PROJECTIONS))
@pytest.mark.parametrize(
    "sampler", ["ddpm", "ddim", "euler", "predictor_corrector", "dpm2_ancestral", "euler_ancestral"]
)
def test_evaluations_are_counted(name, sampler):
    projection, sampler, grid = PROJECTIONS.example(name), SAMPLERS.example(sampler), grid_of(5)
    calls = []

    def counting(xt, t):
        jax.debug.callback(lambda: calls.append(1))
        return denoiser(xt, t)

    jax.block_until_ready(sample_given(projection, region(1), sampler, counting, grid, (2,), keys(1)).x0)
    jax.effects_barrier()
    assert len(calls) == network_evaluations(projection, sampler, grid)


def test_the_walk_of_repaint_is_the_authors():
    """Four steps in jumps of two, twice: 4 3 2 1 0 with 0..2 repeated once, as in `get_schedule_jump`."""
    walk = RePaint(num_resamples=2, jump_length=2).walk(4)
    assert list(zip(walk.index, walk.up, strict=True)) == [
        *((0, False), (1, False), (2, False), (3, False)),
        *((3, True), (2, True)),
        *((2, False), (3, False)),
    ]
    walk = RePaint(num_resamples=3, jump_length=1).walk(50)
    assert walk.up.count(False) == 50 + 2 * 49
    assert walk.up.count(True) == 2 * 49
    with pytest.raises(UserError, match="takes 6 steps back, but the grid has 5"):
        RePaint(jump_length=6).check(SAMPLERS.build("ddpm"), grid_of(5))


def test_steps_are_taken_again_by_samplers_that_can():
    """Repeated steps keep the spread of the unknown part; samplers with a history are refused."""
    found = drawn(RePaint(num_resamples=3), region(4096), size=4096)
    assert found[:, 1].std() > 0.4
    for name in ("dpmpp_2m", "unipc", "rk45", "restart"):
        assert not SAMPLERS.example(name).one_step
        with pytest.raises(UserError, match="repeats steps, which sampler"):
            RePaint().check(SAMPLERS.example(name), grid_of(50))


def test_replacement_is_biased_and_repaint_less():
    """The unknown part falls short of its conditional mean 0.8 with replacement, and less with resampling."""
    known = region(8192)
    mean = drawn(Replacement(), known)[:, 1].mean()
    better = drawn(RePaint(), known)[:, 1]
    assert mean < 0.77
    assert 0.8 - better.mean() < 0.6 * (0.8 - mean)
    np.testing.assert_allclose(better.mean(), 0.8, atol=0.06)
    assert 0.2 < better.var() < 0.4  # exact: 0.36; RePaint's variance is too small as well


def test_replacement_keeps_one_noise_and_ends_at_the_source():
    """The known part follows alpha source + sigma noise with the initial noise of sampling."""
    grid, size = grid_of(5), 3
    noise = jax.random.normal(jax.random.key(1), (size, 2))
    result = sample_given(
        Replacement(), region(size), SAMPLERS.build("ddim"), denoiser, grid, noise, keys(size), return_trajectory=True
    )
    for alpha, sigma, x in zip(grid.alphas[1:-1], grid.sigmas[1:-1], result.trajectory[1:-1], strict=True):
        np.testing.assert_allclose(x[:, 0], alpha * KNOWN + sigma * noise[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(result.x0[:, 0], KNOWN)


@pytest.mark.parametrize("noise_std", [0.1, 0.5])
def test_the_posterior_is_exact_where_the_variance_is(noise_std):
    """With the exact variance, the second coordinate has the exact mean and variance given a noisy first one."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Exact(PiGDM):
        def variance(self, schedule, t):  # variance of the measured coordinate given xt
            a2, s2 = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2
            covariance = jnp.asarray(COVARIANCE, jnp.float32)
            return jnp.linalg.inv(jnp.linalg.inv(covariance) + a2 / s2 * jnp.eye(2))[0, 0]

    known = Measurement(
        measure=lambda x: x[:, :1], measured=jnp.full((8192, 1), KNOWN), shape=(2,), noise_std=noise_std
    )
    second = drawn(Exact(), known, steps=300)[:, 1]
    total = 1 + noise_std**2
    np.testing.assert_allclose(second.mean(), 0.8 / total, atol=0.03)
    np.testing.assert_allclose(second.var(), 1 - 0.64 / total, atol=0.04)


def test_any_linear_measurement_of_independent_data_is_exact():
    """x0 ~ N(0, I), y = (2 x_1 + x_2, x_3): rows of different norms, so the pseudoinverse needs A A^T."""
    matrix = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

    def unit(xt, t):
        return Prediction.from_x0(SCHEDULE, SCHEDULE.alpha(t) * xt, xt, t)  # alpha^2 + sigma^2 = 1

    y = jnp.broadcast_to(jnp.array([1.5, -0.5]), (8192, 2))
    known = Measurement(measure=lambda x: x @ matrix.T, measured=y, shape=(3,), noise_std=0.3)
    run = jax.jit(lambda key: sample_given(PiGDM(), known, SAMPLERS.build("ddpm"), unit, grid_of(300), (3,), key).x0)
    x0 = np.asarray(run(keys(8192)), np.float64)
    a = np.asarray(matrix, np.float64)
    gain = a.T @ np.linalg.inv(a @ a.T + 0.09 * np.eye(2))
    np.testing.assert_allclose(x0.mean(axis=0), gain @ [1.5, -0.5], atol=0.04)
    np.testing.assert_allclose(np.cov(x0.T), np.eye(3) - gain @ a, atol=0.05)


def test_dps_moves_towards_the_measurement():
    known = Measurement(measure=lambda x: x[:, :1], measured=jnp.full((8192, 1), KNOWN), shape=(2,), noise_std=0.5)
    assert 0.3 < drawn(DPS(), known, steps=200)[:, 1].mean() < 0.95
    with pytest.raises(UserError, match="noise_std above 0"):
        DPS(noise_std=0.0)


def test_what_does_not_fit_is_one_clear_line():
    known = Measurement(measure=lambda x: x[:, :1], measured=jnp.ones((2, 1)), shape=(2,))
    with pytest.raises(UserError, match="replacement puts known values back, but a measurement has none"):
        sample_given(Replacement(), known, SAMPLERS.build("ddpm"), denoiser, grid_of(5), (2,), keys(2))
    for name in ("consistency", "flow_map"):
        with pytest.raises(UserError, match="asks a network that jumps"):
            PiGDM().check(SAMPLERS.example(name), grid_of(5))
    flow = GRIDS.build("uniform")(SCHEDULES.build("rectified_flow"), 5)
    with pytest.raises(UserError, match="divides by alpha, which is 0 at t = 1 of RectifiedFlow"):
        DPS().check(SAMPLERS.build("flow_euler"), flow)


@pytest.mark.parametrize("name", list(PROJECTIONS))
def test_guidance_that_remembers_goes_through_a_projection(name):
    """A rule with momentum works together with a projection, and the momentum changes the result."""
    size = 4

    def run(momentum):
        rule = AdaptiveProjected(scale=2.0, eta=1.0, momentum=momentum)
        shift = {"label": jnp.ones(size)}, {"label": jnp.zeros(size)}
        told = lambda xt, t, c: denoiser(xt - 0.3 * c["label"][:, None], t)  # noqa: E731
        denoise = guided(rule, told, shift[0], schedule=SCHEDULE, null=shift[1])
        memory = {"memory": rule.first_memory} if rule.remembers else {}
        return drawn(PROJECTIONS.example(name), region(size), steps=8, size=size, denoise=denoise, **memory)

    assert np.abs(run(-0.5) - run(0.0)).max() > 1e-3


def test_a_projection_that_does_nothing_is_plain_sampling():
    """A mask that covers everything gives the samples without a projection, bit for bit."""
    whole = Region(mask=jnp.ones((1, 2)), source=jnp.zeros((16, 2)))
    sampler, grid = SAMPLERS.build("ddpm"), grid_of(5)
    found = jax.jit(lambda k: sample_given(Replacement(), whole, sampler, denoiser, grid, (2,), k).x0)(keys(16))
    np.testing.assert_array_equal(found, jax.jit(lambda k: sample(sampler, denoiser, grid, (2,), k).x0)(keys(16)))
    assert len(evaluation_times(sampler, grid)) == 5
