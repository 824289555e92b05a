"""Published and independently computed numbers, for data N(0.3, 0.5^2) unless stated otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.schedulers import GRIDS, SCHEDULES, TimeGrid
from tests.samplers.closed_form import Gaussian, Mixture, exact_variance

pytestmark = pytest.mark.usefixtures("x64")
VP_SDE = SCHEDULES.build("vp_sde")
DATA, CENTRED = Gaussian(), Gaussian(mean=0.0)


def run(sampler, grid, noise=(1.0,), data=DATA):
    denoiser = data.denoiser(grid.schedule)
    return np.asarray(sample(SAMPLERS.build(sampler), denoiser, grid, jnp.asarray(noise)).x0)


def steps(schedule, indices):
    """The grid through discrete steps n of T = 1000, then clean data."""
    return TimeGrid.from_times(schedule, (np.asarray(indices) + 1) / 1000)


KARRAS_18 = {"euler": 0.721445068521, "ddim": 0.721445068521, "heun": 0.825646044612, "dpmpp_2m": 0.829148299139}


@pytest.mark.parametrize(("sampler", "value"), KARRAS_18.items())
def test_karras_18_steps_from_sigma_80(sampler, value):
    schedule = SCHEDULES.build("edm")
    np.testing.assert_allclose(run(sampler, GRIDS.build("uniform")(schedule, 18)), value, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("sampler", "value"), KARRAS_18.items())
def test_a_float32_state_is_enough(sampler, value):
    """The constants are float64 on the host, so only the state is rounded."""
    with jax.enable_x64(False):
        found = run(sampler, GRIDS.build("uniform")(SCHEDULES.build("edm"), 18))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "num_steps", "value"),
    [("ddim", 12, 0.708801844993), ("ddim", 24, 0.751693522052), ("dpmpp_2m", 12, 0.813253736115)],
)
def test_vp_sde_uniform_in_log_snr(sampler, num_steps, value):
    grid = GRIDS.build({"name": "log_snr", "to_clean": False})(VP_SDE, num_steps)
    np.testing.assert_allclose(run(sampler, grid), value, rtol=0, atol=1e-11)


def test_vp_sde_exact_flow():
    grid = GRIDS.build({"name": "log_snr", "to_clean": False})(VP_SDE, 12)
    np.testing.assert_allclose(Gaussian().flow(VP_SDE, 1.0, grid), 0.7990881414904365, rtol=1e-14)


@pytest.mark.parametrize(
    ("sampler", "indices", "value", "tolerance"),
    [
        ("ddim", range(900, -1, -100), 0.6722833913307353, 1e-13),
        ("ddim", range(999, -1, -100), 0.6692498, 1e-6),
        ("dpmpp_2m", range(940, 0, -47), 0.7788476, 1e-6),
        ("dpmpp_2m", range(999, -1, -50), 0.7772994, 1e-6),
    ],
)
def test_discrete_spacings_of_the_linear_table(sampler, indices, value, tolerance):
    """The reference numbers with tolerance 1e-6 come from a table in float32."""
    grid = steps(SCHEDULES.build("ddpm_linear"), list(indices))
    np.testing.assert_allclose(run(sampler, grid), value, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("sampler", "num_steps", "std"),
    [
        ("heun", 18, 0.5276246370),
        ("heun", 256, 0.5000954247),
        ("euler", 18, 0.4230314),
        ("euler", 40, 0.4648508),
        ("euler", 256, 0.4944452),
        ("euler_ancestral", 20, 0.3782805),
        ("euler_ancestral", 50, 0.4445043),
        ("euler_ancestral", 250, 0.4880456),
        ({"name": "heun", "s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}, 18, 0.5640499),
        ({"name": "heun", "s_churn": 40.0, "s_min": 0.05, "s_max": 50.0}, 18, 0.5623649),
    ],
)
def test_edm_standard_deviation(sampler, num_steps, std):
    schedule = SCHEDULES.build("edm")
    grid = GRIDS.build("uniform")(schedule, num_steps)
    variance = exact_variance(SAMPLERS.build(sampler), CENTRED.denoiser(schedule), grid)
    np.testing.assert_allclose(np.sqrt(variance), std, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("sampler", "indices", "variance"),
    [
        ({"name": "ddpm", "variance": "small"}, range(999, -1, -1), 0.2461252114),
        ({"name": "ddpm", "variance": "large"}, range(999, -1, -1), 0.2507520750),
        ("ddim", range(999, -1, -1), 0.2484975472),
        ("ddim", range(980, -1, -20), 0.2231987155),
        ("ddim", range(900, -1, -100), 0.1399721299),
    ],
)
def test_ddpm_table_variance(sampler, indices, variance):
    schedule = SCHEDULES.build("ddpm_linear")
    found = exact_variance(SAMPLERS.build(sampler), CENTRED.denoiser(schedule), steps(schedule, list(indices)))
    np.testing.assert_allclose(found, variance, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("num_steps", "std"), [(1, 0), (2, 0.2), (4, 0.3405405), (8, 0.4147846), (50, 0.4853967), (250, 0.4970452)]
)
def test_flow_matching_euler_standard_deviation(num_steps, std):
    schedule = SCHEDULES.build("rectified_flow")
    grid = GRIDS.build("uniform")(schedule, num_steps)
    variance = exact_variance(SAMPLERS.build("flow_euler"), CENTRED.denoiser(schedule), grid)
    np.testing.assert_allclose(np.sqrt(variance), std, rtol=0, atol=1e-7)


def test_mixture_heun_18_steps():
    grid = GRIDS.build("uniform")(SCHEDULES.build("edm"), 18)
    found = run("heun", grid, noise=np.array([-80.0, -20.0, 40.0, 80.0]) / 80, data=Mixture())
    np.testing.assert_allclose(found, [-1.01927862, 0.43063221, 0.87083159, 1.08933787], rtol=0, atol=1e-8)


def test_mixture_denoiser():
    schedule = SCHEDULES.build("edm")
    times = schedule.time_of_log_snr(-2 * np.log([0.1, 2.0]))
    found = Mixture().denoiser(schedule)(jnp.full((2,), 0.1), jnp.asarray(times)).x0
    np.testing.assert_allclose(found, [0.15282346511, 0.27800860325], rtol=0, atol=1e-11)


LOG_SNR_12 = {
    "dpm_solver_2s": 0.903152244968,
    "dpm_solver_3s": 0.825039814963,
    "dpmpp_2s": 0.745364945393,
    "dpmpp_2m": 0.813253736115,
    "dpmpp_3m": 0.814762842965,
}


@pytest.mark.parametrize(("sampler", "value"), LOG_SNR_12.items())
def test_dpm_solvers_official_numbers(sampler, value):
    """Results of the official code with 12 steps equal in log-SNR from t = 1 to 1e-3 on the VP SDE, x = 1."""
    grid = GRIDS.build({"name": "log_snr", "to_clean": False})(VP_SDE, 12)
    np.testing.assert_allclose(run(sampler, grid), value, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("solver_type", "order", "value"),
    [("bh1", 2, 0.848593957874), ("bh2", 2, 0.813477503114), ("bh2", 3, 0.815976597971)],
)
def test_unipc_official_numbers(solver_type, order, value):
    grid = GRIDS.build({"name": "log_snr", "to_clean": False})(VP_SDE, 12)
    spec = {"name": "unipc", "solver_type": solver_type, "solver_order": order, "lower_order_final": True}
    np.testing.assert_allclose(run(spec, grid), value, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("sampler", "value"), [("dpm2", 0.813866790408), ("lms", 0.775357316320)])
def test_more_of_karras_18_steps(sampler, value):
    grid = GRIDS.build("uniform")(SCHEDULES.build("edm"), 18)
    np.testing.assert_allclose(run(sampler, grid), value, rtol=0, atol=1e-11)


def test_dpmpp_2m_on_equal_times():
    """The result of the official code on its time_uniform grid."""
    grid = TimeGrid.from_times(VP_SDE, np.linspace(1, 1e-3, 13), to_clean=False)
    np.testing.assert_allclose(run("dpmpp_2m", grid), 0.974065526844, rtol=0, atol=1e-11)


def test_exact_flow_of_the_mixture():
    """The probability-flow ODE keeps quantiles."""
    grid = GRIDS.build("uniform")(SCHEDULES.build("edm"), 18)
    found = [Mixture().flow(grid.schedule, x, grid) for x in (-80.0, -20.0, 40.0, 80.0)]
    expected = [-0.9868144114214011, 0.42644650841252, 0.8506935665662763, 1.0611429581514227]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


LEADING_20 = (np.arange(21) * 47.0)[::-1][:-1]
TRAILING_20 = np.arange(999, -1, -50)
LINSPACE_20 = np.linspace(0, 999, 21).round()[::-1][:-1]


@pytest.mark.parametrize(
    ("indices", "two_m", "deis"),
    [
        (LEADING_20, 0.7788476, 0.8133988),
        (TRAILING_20, 0.7772994, 0.8175050),
        (LINSPACE_20, 0.7760259, 0.8183150),
    ],
    ids=["leading", "trailing", "linspace"],
)
def test_diffusers_on_the_linear_table(indices, two_m, deis):
    """diffusers' tables are float32, and its DEIS ends at the first noise level, which it visits twice."""
    schedule = SCHEDULES.build("ddpm_linear")
    np.testing.assert_allclose(run("dpmpp_2m", steps(schedule, indices)), two_m, rtol=0, atol=1e-6)
    times = (np.append(indices, 0) + 1) / 1000
    grid = TimeGrid.from_times(schedule, times, to_clean=False)
    np.testing.assert_allclose(run("deis", grid), deis, rtol=0, atol=5e-6)


def test_diffusers_pndm():
    schedule = SCHEDULES.build("ddpm_linear")
    leading = TimeGrid.from_times(schedule, (np.arange(20)[::-1] * 50 + 1) / 1000, to_clean=False)
    np.testing.assert_allclose(run("pndm", leading), 0.7990608, rtol=0, atol=1e-6)


def test_variance_exploding_flow():
    """The flow from x = 80 at sigma = 80 to x(0) and to x(.002)."""
    last = [TimeGrid.from_times(SCHEDULES.build("edm"), [1.0, 0.0], to_clean=clean) for clean in (True, False)]
    found = [DATA.flow(grid.schedule, 80.0, grid) for grid in last]
    np.testing.assert_allclose(found, [0.7981152712811139, 0.7981192561873446], rtol=1e-13)
