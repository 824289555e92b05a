"""Metrics of image pairs equal their equations, rate worse pictures as worse, and refuse sets that form no pairs."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import METRICS, ImageSet, psnr, ssim

PAIRED = [name for name in METRICS if "reconstructions" in METRICS.facts(name).reads]
RNG = np.random.default_rng(0)
ORIGINALS = np.clip(RNG.normal(128, 40, (6, 16, 18, 3)).cumsum(1) / 3, 0, 255).astype(np.uint8)


def noisy(strength):
    noise = np.random.default_rng(1).normal(0, strength, ORIGINALS.shape)
    return np.clip(ORIGINALS + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PAIRED)
def test_more_noise_is_worse_and_the_order_of_pairs_does_not_matter(name):
    metric, facts = METRICS.example(name), METRICS.facts(name)
    originals = ImageSet(images=ORIGINALS)
    found = [
        metric(ImageSet(images=noisy(strength)), train=originals, test=originals)[facts.headline]
        for strength in (0, 3, 10, 40)
    ]
    assert sorted(found, reverse=not facts.lower_is_better) == found
    turned = ImageSet(images=noisy(10)[::-1])
    again = metric(turned, train=originals, test=ImageSet(images=ORIGINALS[::-1]))
    assert again[facts.headline] == pytest.approx(found[2], rel=1e-12)
    with pytest.raises(UserError, match="compares pairs: 6 reconstructions, but 5 originals"):
        metric(originals, train=originals, test=ImageSet(images=ORIGINALS[1:]))


def test_psnr_is_its_equation():
    x = np.zeros((2, 4, 4, 1), np.uint8)
    y = x.copy()
    y[0] += 10  # 20 log10(255 / 10)
    np.testing.assert_allclose(psnr(x, y), [28.130803608679102, 10 * np.log10(12 * 255**2)], rtol=1e-12)


def test_ssim_is_its_equation():
    """SSIM equals its equation window by window in float64, its closed form for constants, and 1 for identical
    pictures."""
    x, y = ORIGINALS[:2], noisy(20)[:2]
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = np.zeros((2, 6, 8, 3))
    for i, row, column, k in np.ndindex(expected.shape):
        a, b = (v[i, row : row + 11, column : column + 11, k].astype(np.float64) for v in (x, y))
        ma, mb = (weights * a).sum(), (weights * b).sum()
        va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
        cov = (weights * (a - ma) * (b - mb)).sum()
        expected[i, row, column, k] = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    np.testing.assert_allclose(ssim(x, y), expected.mean((1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(ssim(x, x), 1, rtol=1e-12)
    flat = np.full((1, 12, 12, 1), 100, np.uint8)
    np.testing.assert_allclose(ssim(flat, flat + 50), (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rtol=1e-9)
    with pytest.raises(UserError, match="at least 11x11 pixels, not 8x8"):
        ssim(np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1), np.uint8))
