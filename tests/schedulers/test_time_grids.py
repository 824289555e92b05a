"""What every sampling grid must satisfy on every schedule, and the spacings by their definitions."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import GRIDS, SCHEDULES, TimeGrid


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("name", list(GRIDS))
def test_from_noise_to_clean_data_in_num_steps(name, schedule, num_steps):
    schedule = SCHEDULES.example(schedule)
    grid = GRIDS.example(name)(schedule, num_steps)
    assert grid.num_steps == num_steps
    assert len(grid.times) == len(grid.alphas) == len(grid.sigmas) == len(grid.log_snrs) == num_steps + 1
    assert grid.times[0] == 1
    assert (grid.times[-1], grid.alphas[-1], grid.sigmas[-1], grid.log_snrs[-1]) == (0, 1, 0, np.inf)
    assert grid.ends_clean
    assert np.all(np.diff(grid.log_snrs) > 0)
    assert np.all(np.diff(grid.times) <= 0)
    inner = slice(0, -1)
    np.testing.assert_array_equal(grid.alphas[inner], schedule.alpha(grid.times[inner]))
    np.testing.assert_array_equal(grid.sigmas[inner], schedule.sigma(grid.times[inner]))
    assert all(values.dtype == np.float64 for values in (grid.times, grid.alphas, grid.sigmas, grid.log_snrs))


def test_uniform_on_a_table_visits_its_steps():
    grid = GRIDS.build("uniform")(SCHEDULES.build("ddpm_linear"), 1000)
    np.testing.assert_allclose(grid.times * 1000, np.arange(1000, -1, -1), atol=1e-9)


def test_uniform_on_edm_is_karras_and_a_final_zero():
    schedule = SCHEDULES.build("edm")
    uniform, karras = (GRIDS.build(name)(schedule, 18) for name in ("uniform", "karras"))
    expected = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18) ** 7
    np.testing.assert_allclose(uniform.sigmas[:-1], expected, rtol=1e-12)
    np.testing.assert_allclose(karras.sigmas[:-1], expected, rtol=1e-12)


def test_karras_on_a_table():
    grid = GRIDS.build("karras")(SCHEDULES.build("ddpm_linear"), 11)
    levels = (grid.sigmas / grid.alphas)[:-1] ** (1 / 7)
    np.testing.assert_allclose(np.diff(levels), (levels[-1] - levels[0]) / 10, rtol=1e-8)
    np.testing.assert_allclose(grid.times[-2], 1e-3)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_log_snr_spacing(schedule):
    grid = GRIDS.build("log_snr")(SCHEDULES.example(schedule), 12)
    inner = grid.log_snrs[np.isfinite(grid.log_snrs)]
    np.testing.assert_allclose(np.diff(inner), np.diff(inner)[0], rtol=1e-8)
    assert len(inner) == (11 if schedule == "rectified_flow" else 12)


def test_log_snr_may_stop_at_t_min():
    grid = GRIDS.build({"name": "log_snr", "t_min": 0.01, "to_clean": False})(SCHEDULES.build("ddpm_linear"), 12)
    assert grid.num_steps == 12
    assert grid.times[-1] == 0.01
    assert not grid.ends_clean


def test_impossible_grids_are_refused():
    schedule = SCHEDULES.build("ddpm_linear")
    with pytest.raises(UserError, match="strictly from noise to data"):
        TimeGrid.from_times(schedule, [1.0, 0.5, 0.5])
    with pytest.raises(UserError, match="strictly from noise to data"):
        TimeGrid.from_times(schedule, [0.1, 0.9])
    with pytest.raises(UserError, match="at least one transition"):
        TimeGrid.from_times(schedule, [1.0], to_clean=False)
    for name in GRIDS:
        with pytest.raises(UserError, match="at least 1 step"):
            GRIDS.example(name)(schedule, 0)
    with pytest.raises(UserError, match="t_min"):
        GRIDS.build({"name": "karras", "t_min": 0.5, "t_max": 0.1})
