"""Constants of the published schedules, to the published digits."""

import numpy as np
import pytest

from diffusion_jax.schedulers import SCHEDULES, space_timesteps


def level(schedule, t):
    """The noise level sigma / alpha of unscaled data."""
    return schedule.sigma(t) / schedule.alpha(t)


@pytest.mark.parametrize(
    ("ends", "abar", "rtol", "sigma_min", "sigma_max"),
    [
        ((0.00085, 0.012), 0.00466009851308, 1e-11, 0.0291671582, 14.61464123),
        ((0.0015, 0.0195), 1.42303975e-04, 3e-9, None, 83.82249447),
        ((0.0015, 0.0155), 6.68665174e-04, 1e-9, None, 38.65898083),
    ],
)
def test_scaled_linear(ends, abar, rtol, sigma_min, sigma_max):
    schedule = SCHEDULES.build({"name": "scaled_linear", "beta_start": ends[0], "beta_end": ends[1]})
    np.testing.assert_allclose(schedule.alpha(1.0) ** 2, abar, rtol=rtol)
    np.testing.assert_allclose(level(schedule, 1.0), sigma_max, rtol=4e-10)
    if sigma_min:
        np.testing.assert_allclose(level(schedule, 1 / 1000), sigma_min, rtol=2e-9)


def test_vp_sde():
    schedule = SCHEDULES.build("vp_sde")
    np.testing.assert_allclose(schedule.alpha(1.0), 0.006571586494929619, rtol=1e-14)
    np.testing.assert_allclose(schedule.sigma(1.0) ** 2, 0.9999568142509396, rtol=1e-14)
    np.testing.assert_allclose(schedule.log_snr(1.0), -10.04995681, rtol=1e-9)
    np.testing.assert_allclose(level(schedule, 1.0), 152.16697028, rtol=1e-10)
    np.testing.assert_allclose(level(schedule, 1e-3), 0.010485992787, rtol=1e-10)
    np.testing.assert_allclose(level(schedule, 1e-5), 0.001000497627, rtol=1e-9)


def test_sub_vp_sde_has_the_variance_of_the_vp_sde_squared():
    t = np.linspace(0.01, 1, 30)
    vp, sub_vp = SCHEDULES.build("vp_sde"), SCHEDULES.build("sub_vp_sde")
    np.testing.assert_allclose(sub_vp.sigma(t), vp.sigma(t) ** 2, rtol=1e-13)
    np.testing.assert_array_equal(sub_vp.alpha(t), vp.alpha(t))


def test_ve_sde():
    schedule = SCHEDULES.build("ve_sde")
    np.testing.assert_allclose(schedule.log_snr(np.array([0.0, 1.0])), [9.21034, -7.82405], atol=5e-6)
    np.testing.assert_allclose(schedule.sigma(np.array([0.0, 0.5, 1.0])), [0.01, np.sqrt(0.5), 50.0], rtol=1e-14)


def test_clipped_cosine():
    found = SCHEDULES.build("clipped_cosine").log_snr(np.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(found, [20, 1.7626187665611515, 0, -20], rtol=0, atol=1e-10)


def test_vdm_linear():
    schedule = SCHEDULES.build("vdm_linear")
    snr = np.exp(schedule.log_snr(np.array([0.0, 1.0])))
    np.testing.assert_allclose(snr, [597195.61379, 0.006737947], rtol=1e-8)
    np.testing.assert_allclose(schedule.sigma(0.0) ** 2, 1.67449e-06, rtol=1e-5)


def test_ends_are_exact():
    """Signal or noise is zero at the ends of the schedules whose formula says so, to 1e-10 and better."""
    for name in ("gvp", "trigflow", "rectified_flow", "sigmoid", "shifted", "zero_terminal_snr"):
        schedule = SCHEDULES.example(name)
        ends = [schedule.alpha(1.0), schedule.sigma(0.0), schedule.alpha(0.0) - 1, schedule.sigma(1.0) - 1]
        np.testing.assert_allclose(ends, 0, rtol=0, atol=1e-15)
        assert schedule.alpha(1.0) == 0


def test_gvp_is_the_angle_of_the_noise_level():
    """TrigFlow has t = atan(sigma~), scaled to [0, 1]."""
    schedule, t = SCHEDULES.build("trigflow"), np.linspace(0.01, 0.99, 21)
    np.testing.assert_allclose(np.arctan(level(schedule, t)), np.pi / 2 * t, rtol=1e-13)


def test_sigmoid_is_jabris_formula():
    t = np.linspace(0, 1, 11)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x / 0.9))

    expected = (sigmoid(3) - sigmoid(-3 + 6 * t)) / (sigmoid(3) - sigmoid(-3))
    found = SCHEDULES.build({"name": "sigmoid", "tau": 0.9}).alpha(t) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shift(shift):
    """Shift 3 maps 0.5 to 0.75 (SD3), shift 1 changes nothing, and shift 1 / s inverts shift s."""
    base = SCHEDULES.build("rectified_flow")
    schedule = SCHEDULES.build({"name": "shifted", "shift": shift})
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(schedule.sigma(0.5), shift / (1 + shift), rtol=1e-15)
    back = SCHEDULES.build({"name": "shifted", "shift": 1 / shift})
    np.testing.assert_allclose(back.base_time(schedule.base_time(t)), t, atol=1e-15)
    gvp = SCHEDULES.build({"name": "shifted", "base": "gvp", "shift": shift})
    inside = t[1:-1]
    drop = SCHEDULES.build("gvp").log_snr(inside) - gvp.log_snr(inside)
    np.testing.assert_allclose(drop, 2 * np.log(shift), atol=1e-12)
    np.testing.assert_allclose(base.log_snr(inside) - schedule.log_snr(inside), 2 * np.log(shift), atol=1e-12)


@pytest.mark.parametrize(
    ("num_steps", "sections", "first", "last", "length"),
    [
        (1000, "250", [0, 4, 8, 12, 16], 999, 250),
        (1000, "ddim25", [0, 40, 80], 960, 25),
        (1000, "25", [0, 42, 83], 999, 25),
        (4000, "100", [0, 40, 81], 3999, 100),
        (300, "10,15,20", [0, 11, 22], 299, 45),
    ],
)
def test_space_timesteps(num_steps, sections, first, last, length):
    found = space_timesteps(num_steps, sections)
    assert list(found[: len(first)]) == first
    assert found[-1] == last
    assert len(found) == len(set(found)) == length


@pytest.mark.parametrize("steps", ["250", "ddim25", "10,15,20"])
def test_respacing_keeps_alpha(steps):
    schedule = SCHEDULES.build({"name": "respaced", "base": "cosine", "steps": steps})
    kept = (schedule.timestep_map + 1) / 1000
    own = np.arange(1, schedule.num_steps + 1) / schedule.num_steps
    np.testing.assert_allclose(schedule.alpha(own), schedule.base.alpha(kept), rtol=1e-11)
    np.testing.assert_allclose(schedule.sigma(own), schedule.base.sigma(kept), rtol=1e-12)


def test_zero_terminal_snr_is_lins_algorithm():
    schedule = SCHEDULES.build({"name": "zero_terminal_snr", "base": "scaled_linear"})
    root = np.sqrt(np.cumprod(1 - SCHEDULES.build("scaled_linear").betas()))
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    knots = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(schedule.alpha(knots), expected, rtol=1e-10, atol=1e-16)
    np.testing.assert_allclose(schedule.sigma(knots) ** 2, 1 - expected**2, rtol=1e-10)
    assert schedule.alpha(1.0) == 0
