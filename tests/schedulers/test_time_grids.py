"""Properties that every sampling grid must have on every schedule, and the definitions of the spacings."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import GRIDS, SCHEDULES, TimeGrid, shift_of_size


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("name", list(GRIDS))
def test_from_noise_to_clean_data_in_num_steps(name, schedule, num_steps):
    schedule = SCHEDULES.example(schedule)
    rule = GRIDS.example(name)
    try:
        grid = rule(schedule, num_steps)
    except UserError:
        if name == "edm_discretised" and num_steps > 3:
            pytest.skip("two points round to one noise level here")
        raise
    assert grid.num_steps == num_steps
    assert len(grid.times) == len(grid.alphas) == len(grid.sigmas) == len(grid.log_snrs) == num_steps + 1
    assert grid.times[0] == 1 if rule.starts_at_one else 0 < grid.times[0] <= 1
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
    assert len(inner) == (12 if np.isfinite(grid.log_snrs[0]) else 11)


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
    with pytest.raises(UserError, match="take fewer"):
        GRIDS.build("leading")(schedule, 1001)
    with pytest.raises(UserError, match="fewer steps"):
        GRIDS.build({"name": "edm_discretised", "num_train_steps": 5})(schedule, 8)
    with pytest.raises(UserError, match="outside the model's steps"):
        GRIDS.build({"name": "linspace", "offset": 1})(schedule, 8)
    with pytest.raises(UserError, match="shift must be a number above 0"):
        GRIDS.build({"name": "shift", "shift": 0.0})


@pytest.mark.parametrize(
    ("spec", "num_steps", "first", "last"),
    [
        ("leading", 10, [900, 800], [100, 0]),
        ({"name": "leading", "offset": 1}, 50, [981, 961], [21, 1]),
        ("trailing", 10, [999, 899], [199, 99]),
        ("linspace", 10, [999, 888], [111, 0]),
        ({"name": "linspace", "rounded": True}, 20, [999, 946], [53, 0]),
        ("quadratic", 10, [800, 632.0987654], [9.8765432, 0]),
        ("dpm_linspace", 10, [999, 899], [200, 100]),
        ("dpm_linspace", 20, [999, 949], [100, 50]),
        ("dpm_leading", 10, [900, 810], [180, 90]),
        ({"name": "dpm_leading", "offset": 1}, 20, [941, 894], [95, 48]),
    ],
)
def test_discrete_spacings(spec, num_steps, first, last):
    """The discrete steps equal those of diffusers, and for the last spacing those of Song et al. 2020."""
    grid = GRIDS.build(spec)(SCHEDULES.build("ddpm_linear"), num_steps)
    indices = grid.times[:-1] * 1000 - 1
    np.testing.assert_allclose(indices[:2], first, atol=1e-6)
    np.testing.assert_allclose(indices[-2:], last, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "num_steps", "expected"),
    [
        ({"name": "leading", "offset": 1}, 10, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]),
        ({"name": "leading", "offset": 1}, 3, [667, 334, 1, 0]),
        ({"name": "leading"}, 3, [999, 666, 333, 0]),
        ({"name": "leading"}, 7, [994, 852, 710, 568, 426, 284, 142, 0]),
        ({"name": "trailing"}, 4, [999, 749, 499, 249, 0]),
        ({"name": "linspace"}, 3, [999, 666, 333, 0]),
        ({"name": "dpm_linspace"}, 10, [999, 899, 799, 699, 599, 500, 400, 300, 200, 100, 0]),
        ({"name": "dpm_leading"}, 4, [800, 600, 400, 200, 0]),
    ],
    ids=str,
)
def test_grids_that_end_at_step_0_keep_their_strides(spec, num_steps, expected):
    """N transitions keep the strides of N and end with the noise of step 0, as in diffusers."""
    grid = GRIDS.build({**spec, "to_clean": False})(SCHEDULES.build("ddpm_linear"), num_steps)
    assert grid.num_steps == num_steps
    assert not grid.ends_clean
    np.testing.assert_allclose(grid.times * 1000 - 1, expected, atol=1e-9)


def test_leading_to_step_0_without_room_is_refused():
    """10 strides of 100 from step 0 would start at step 1000, which does not exist; with offset 1 they fit."""
    with pytest.raises(UserError, match=r"set offset=1"):
        GRIDS.build({"name": "leading", "to_clean": False})(SCHEDULES.build("ddpm_linear"), 10)


def test_karras_levels():
    """The published 18, 40 and 32 steps; EDM2's guidance interval (0.19, 1.61] covers steps 17 to 22 of its 32."""
    schedule = SCHEDULES.build("edm")
    levels = {n: GRIDS.build("uniform")(schedule, n).sigmas for n in (18, 32, 40)}
    np.testing.assert_allclose(levels[18][:3], [80, 57.585984721, 40.785573796], rtol=1e-10)
    np.testing.assert_allclose(levels[18][-3:], [0.007528020, 0.002, 0], rtol=1e-6)
    np.testing.assert_allclose(levels[40][[1, 38]], [69.450946, 0.0036765892], rtol=1e-7)
    edm2 = [2.17386, 1.60857, 1.17427, 0.84462, 0.59770, 0.41543, 0.28304, 0.18859]
    np.testing.assert_allclose(levels[32][16:24], edm2, atol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero((levels[32] > 0.19) & (levels[32] <= 1.61)), np.arange(17, 23))


def test_shift_is_the_shifted_schedule():
    flow, shifted = SCHEDULES.build("rectified_flow"), SCHEDULES.build({"name": "shifted", "shift": 3.0})
    grid = GRIDS.build({"name": "shift", "shift": 3.0})(flow, 8)
    np.testing.assert_allclose(grid.sigmas, GRIDS.build("uniform")(shifted, 8).sigmas, rtol=1e-14)
    np.testing.assert_allclose(grid.times[4], 0.75)


def test_beta_spacing_is_dense_at_both_ends():
    times = GRIDS.build("beta")(SCHEDULES.build("rectified_flow"), 10).times
    np.testing.assert_allclose(times + times[::-1], 1, atol=1e-12)
    assert -np.diff(times)[0] < -np.diff(times)[4] / 2


def test_edm_discretised_rounds_to_the_levels_of_the_model():
    """Levels are rounded to iDDPM's u_j (Karras et al. 2022), with u_0 = 20291.17 for 1000 cosine steps."""
    cosine = SCHEDULES.build("cosine")
    np.testing.assert_allclose(cosine.sigma(1.0) / cosine.alpha(1.0), 20291.16961, rtol=1e-9)
    schedule = SCHEDULES.build("ddpm_linear")
    grid = GRIDS.build({"name": "edm_discretised", "base": "karras"})(schedule, 18)
    steps = grid.times[:-1] * 1000
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
    wanted = GRIDS.build("karras")(schedule, 18)
    np.testing.assert_allclose(grid.log_snrs[:-1], wanted.log_snrs[:-1], atol=0.5)


def test_times_are_shifted_for_the_size_on_the_straight_path_alone():
    """Larger sizes multiply noise to signal by sqrt(m / n), only on the straight path (Esser et al. 2024, eq. 23)."""
    schedule = SCHEDULES.build("rectified_flow")
    shift = shift_of_size(schedule, 64 * 64, 16 * 16)
    assert shift == 4.0
    plain, moved = GRIDS.build("uniform")(schedule, 5), GRIDS.build({"name": "shift", "shift": shift})(schedule, 5)
    inner = slice(1, -1)
    ratio = (moved.sigmas / moved.alphas)[inner] / (plain.sigmas / plain.alphas)[inner]
    np.testing.assert_allclose(ratio, 4.0)
    assert shift_of_size(SCHEDULES.build("edm"), 4096, 256) == 1.0
    assert shift_of_size(SCHEDULES.build("ddpm_linear"), 4096, 256) == 1.0
