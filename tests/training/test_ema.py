"""EMA: the closed form, the half-life in images, and the ramp."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.training import EmaConfig, post_hoc_coefficients, power_from_width


def test_average_of_a_ramp_matches_the_closed_form(x64):
    """The average of params = 1 ... 100 with decay 0.99 from 0 is 37.23720178604974 (a published check value)."""
    config = EmaConfig(decays=(0.99,))
    averages = {"decay_0.99": jnp.float64(0.0)}
    for step in range(100):
        averages = config.update(averages, jnp.float64(step + 1), jnp.int32(step), 1)
    # The decay itself is float32, as it is in training.
    np.testing.assert_allclose(averages["decay_0.99"], 37.23720178604974, rtol=1e-6)


def test_half_life_in_images_gives_edm_decays():
    """EDM: a half-life of 0.5 Mimg at batch 512 is decay .99929047; ImageNet-64: 50 Mimg at 4096 is .99994322."""
    config = EmaConfig(half_lives=(500_000, 50_000_000), ramp_up_ratio=None)
    np.testing.assert_allclose(config.gains_at(0, 512)["half_life_500000"], 1 - 0.9992904691232699, rtol=1e-6)
    np.testing.assert_allclose(config.gains_at(0, 4096)["half_life_50000000"], 1 - 0.9999432189950708, rtol=1e-6)


def test_ramp_forgets_the_initial_parameters():
    config = EmaConfig(half_lives=(500_000,), ramp_up_ratio=0.05)
    assert config.gains_at(0, 512)["half_life_500000"] == 1  # no images seen yet, so the average equals the parameters
    # 1000 steps have seen 512,000 images, so the half-life is 25,600 images
    np.testing.assert_allclose(config.gains_at(1000, 512)["half_life_500000"], 1 - 0.5 ** (512 / 25_600), rtol=1e-6)
    full = config.gains_at(10**6, 512)["half_life_500000"]
    np.testing.assert_allclose(full, 1 - 0.9992904691232699, rtol=1e-6)


@pytest.mark.parametrize(
    "fields", [{"decays": (1.5,)}, {"decays": (0.0,)}, {"half_lives": (0,)}, {"decays": (0.9, 0.9)}]
)
def test_impossible_averages_are_refused(fields):
    with pytest.raises(UserError, match="ema"):
        EmaConfig(**fields)


def test_several_averages_are_kept_in_float32_and_named():
    config = EmaConfig(decays=(0.5, 0.9), half_lives=(64,), ramp_up_ratio=None)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    averages = config.init(params)
    assert list(averages) == list(config.names) == ["decay_0.5", "decay_0.9", "half_life_64"]
    averages = config.update(averages, {"w": jnp.zeros(3, jnp.bfloat16)}, jnp.int32(0), 64)
    values = [float(averages[name]["w"][0]) for name in config.names]
    assert values == pytest.approx([0.5, 0.9, 0.5])
    assert all(average["w"].dtype == jnp.float32 for average in averages.values())


def test_width_and_power_are_the_published_pairs():
    """EDM2: relative deviation 0.05 is gamma 16.97 and 0.10 is gamma 6.94; the uniform average has 12^(-1/2)."""
    assert power_from_width(0.05) == pytest.approx(16.9721986, abs=5e-8)
    assert power_from_width(0.10) == pytest.approx(6.9372039, abs=5e-8)
    for width in (0.01, 0.05, 0.1, 0.2, 0.28):
        gamma = power_from_width(width)
        assert (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5) == pytest.approx(width, rel=1e-12)
    for impossible in (0.0, 0.3, -1.0):
        with pytest.raises(UserError, match="width"):
            EmaConfig(widths=(impossible,))


def test_power_decays_are_the_published_values():
    """EDM2: beta(t = 1000, dt = 1) is .98217951 for width 0.05 and .99209027 for 0.10."""
    gains = EmaConfig(widths=(0.05, 0.10)).gains_at(999, 2048)
    assert float(gains["width_0.05"]) == pytest.approx(1 - 0.98217951, abs=1e-8)
    assert float(gains["width_0.1"]) == pytest.approx(1 - 0.99209027, abs=1e-8)
    assert float(EmaConfig(widths=(0.05,)).gains_at(0, 2048)["width_0.05"]) == 1


def test_a_stored_profile_is_reconstructed_from_itself():
    """The coefficients for a profile stored at the last step are a unit vector."""
    widths, steps = [0.05, 0.10] * 4, np.repeat([250, 500, 750, 1000], 2)
    for index in (6, 7):
        found = post_hoc_coefficients(widths, steps, width=widths[index], step=1000)
        np.testing.assert_allclose(found, np.eye(8)[index], atol=1e-9)


@pytest.mark.parametrize("width", [0.07, 0.15])
def test_post_hoc_average_is_the_one_that_was_not_kept(x64, width):
    """An average of a random walk, rebuilt from 16 snapshots of two widths, equals the tracked one."""
    config = EmaConfig(widths=(0.05, 0.10, width))
    path = np.cumsum(np.random.default_rng(0).normal(size=1600))
    averages, stored = {name: jnp.float64(0.0) for name in config.names}, []
    for step, value in enumerate(path):
        averages = config.update(averages, jnp.float64(value), jnp.float64(step), 1)
        if (step + 1) % 100 == 0:
            stored += [(w, step + 1, float(averages[f"width_{w}"])) for w in (0.05, 0.10)]
    widths, steps, values = zip(*stored, strict=True)
    coefficients = post_hoc_coefficients(widths, steps, width=width, step=1600)
    assert coefficients.sum() == pytest.approx(1, abs=1e-9)
    spread = path.std()
    assert abs(coefficients @ np.array(values) - float(averages[f"width_{width}"])) < 0.01 * spread


def test_post_hoc_needs_something_stored():
    with pytest.raises(UserError, match="stored"):
        post_hoc_coefficients([], [], width=0.05, step=10)
