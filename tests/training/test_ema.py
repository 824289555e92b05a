"""EMA: the closed form, the half-life in images, the ramp."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.training import EmaConfig


def test_average_of_a_ramp_matches_the_closed_form(x64):
    """params = 1 ... 100 with decay 0.99 from 0: 37.23720178604974 (a published check value)."""
    config = EmaConfig(decays=(0.99,))
    averages = {"decay_0.99": jnp.float64(0.0)}
    for step in range(100):
        averages = config.update(averages, jnp.float64(step + 1), jnp.int32(step), 1)
    # The decay itself is float32, as it is in training.
    np.testing.assert_allclose(averages["decay_0.99"], 37.23720178604974, rtol=1e-6)


def test_half_life_in_images_gives_edm_decays():
    """EDM: half-life 0.5 Mimg at batch 512 is decay .99929047; ImageNet-64: 50 Mimg at 4096 is .99994322."""
    config = EmaConfig(half_lives=(500_000, 50_000_000), ramp_up_ratio=None)
    np.testing.assert_allclose(config.gains_at(0, 512)["half_life_500000"], 1 - 0.9992904691232699, rtol=1e-6)
    np.testing.assert_allclose(config.gains_at(0, 4096)["half_life_50000000"], 1 - 0.9999432189950708, rtol=1e-6)


def test_ramp_forgets_the_initial_parameters():
    config = EmaConfig(half_lives=(500_000,), ramp_up_ratio=0.05)
    assert config.gains_at(0, 512)["half_life_500000"] == 1  # nothing seen yet: the average is the parameters
    # after 1000 steps 512,000 images were seen, so the half-life is 25,600 of them
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
