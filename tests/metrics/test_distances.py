"""Distances between features, compared with closed forms and with torch-fidelity (tests/golden/metrics/README.md)."""

import pathlib

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import (
    density_coverage,
    frechet_distance,
    gaussian,
    gaussian_kernel_distance,
    inception_score,
    kernel_distance,
    kernel_distance_of_subsets,
    precision_recall,
)

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "metrics" / "distances.npz")


def rotation(d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def test_frechet_of_diagonal_gaussians():
    rng = np.random.default_rng(0)
    m, n, s, r = rng.standard_normal((4, 7)) ** 2
    expected = ((m - n) ** 2).sum() + ((s - r) ** 2).sum()
    assert frechet_distance(m, np.diag(s**2), n, np.diag(r**2)) == pytest.approx(expected, rel=1e-12)


def test_frechet_of_gaussians_of_width_one_and_two_is_the_dimension():
    d = 12
    assert frechet_distance(np.zeros(d), np.eye(d), np.zeros(d), 4 * np.eye(d)) == pytest.approx(d, rel=1e-12)


def test_frechet_does_not_see_rotations_and_is_symmetric():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((200, 6)) @ np.diag([1, 2, 3, 1, 2, 3]), rng.standard_normal((300, 6)) + 1
    plain = frechet_distance(*gaussian(a), *gaussian(b))
    turn = rotation(6)
    assert frechet_distance(*gaussian(a @ turn), *gaussian(b @ turn)) == pytest.approx(plain, rel=1e-10)
    assert frechet_distance(*gaussian(b), *gaussian(a)) == pytest.approx(plain, rel=1e-12)
    assert frechet_distance(*gaussian(a), *gaussian(a)) == pytest.approx(0, abs=1e-10)


def test_frechet_of_singular_covariances_is_real_and_right():
    """The distance is real and exact for singular covariances, where the usual matrix square root becomes complex."""
    u, v = np.zeros(50), np.zeros(50)
    u[0], v[0] = 2.0, 3.0
    value = frechet_distance(np.zeros(50), np.outer(u, u), np.zeros(50), np.outer(v, v))
    assert value == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("d", "n", "expected"), [(16, 1000, 0.0840), (64, 1000, 1.088)])
def test_frechet_of_a_finite_sample_is_biased_as_known(d, n, expected):
    """The distance of n draws to N(0, I) is d / n + d (d + 1) / (4 n) to first order."""
    draws = np.random.default_rng(0)
    values = [frechet_distance(*gaussian(draws.standard_normal((n, d))), np.zeros(d), np.eye(d)) for _ in range(20)]
    assert np.mean(values) == pytest.approx(d / n + d * (d + 1) / (4 * n), rel=0.03)
    assert np.mean(values) == pytest.approx(expected, rel=0.04)


def test_the_gaussian_of_float32_features_does_not_cancel():
    x = 1e4 + np.random.default_rng(0).standard_normal((1000, 5)).astype(np.float32)
    mean, covariance = gaussian(x)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x.astype(np.float64).T), rtol=1e-10)


def test_kernel_distance_of_constant_features():
    """MMD^2 of two points is k(a, a) + k(b, b) - 2 k(a, b)."""
    a, b = np.full((10, 8), 0.3), np.full((20, 8), 0.8)
    assert kernel_distance(a, b) == pytest.approx(1.892725, abs=1e-9)


def test_kernel_distance_is_unbiased():
    draws = np.random.default_rng(0)
    values = [kernel_distance(*draws.standard_normal((2, 50, 8))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


@pytest.mark.parametrize("splits", [1, 3])
def test_inception_score_of_known_distributions(splits):
    k = 6
    assert inception_score(np.log(np.full((30, k), 1 / k)), splits=splits) == (pytest.approx(1), pytest.approx(0))
    with np.errstate(divide="ignore"):
        clear = np.log(np.tile(np.eye(k), (5, 1)))
    assert inception_score(clear, splits=1) == (pytest.approx(k), 0)


def test_precision_and_recall_of_equal_and_distant_sets():
    x = np.random.default_rng(0).standard_normal((100, 4))
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 1000) == (0, 0)
    assert density_coverage(x, x + 1000) == (0, 0)


def test_precision_sees_fakes_outside_and_recall_what_is_missing():
    rng = np.random.default_rng(0)
    real, cluster = rng.standard_normal((400, 2)), 0.1 * rng.standard_normal((400, 2))
    precision, recall = precision_recall(cluster, real)
    assert precision > 0.99
    assert recall < 0.2
    assert precision_recall(real, cluster) == (recall, precision)


def test_density_and_coverage_of_one_distribution():
    """Density is 1 and coverage 1 - 2^-k in the limit of many images (Naeem et al. 2020, Eqs. 7 and 9)."""
    rng = np.random.default_rng(0)
    density, coverage = np.mean([density_coverage(*rng.standard_normal((2, 1000, 8))) for _ in range(5)], axis=0)
    assert density == pytest.approx(1, abs=0.03)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.01)


def test_they_agree_with_torch_fidelity():
    a, b = GOLDEN["a"], GOLDEN["b"]
    expected = {name: float(GOLDEN[name]) for name in GOLDEN.files if "__" in name}
    fid = frechet_distance(*gaussian(a), *gaussian(b))
    assert fid == pytest.approx(expected["fid__frechet_inception_distance"], rel=1e-6)
    mean, std = kernel_distance_of_subsets(a, b, subset_size=100, num_subsets=20)
    assert mean == pytest.approx(expected["kid__kernel_inception_distance_mean"], rel=1e-5)  # float32 there
    assert std == pytest.approx(expected["kid__kernel_inception_distance_std"], rel=1e-4)
    logits = GOLDEN["logits"].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert inception_score(logs) == (
        pytest.approx(expected["isc__inception_score_mean"], rel=1e-6),
        pytest.approx(expected["isc__inception_score_std"], rel=1e-5),
    )
    assert precision_recall(a, b) == (
        pytest.approx(expected["prc__precision"], abs=1e-6),
        pytest.approx(expected["prc__recall"], abs=1e-6),
    )


@pytest.mark.parametrize("distance", [kernel_distance, precision_recall, density_coverage])
def test_bad_features_are_refused(distance):
    good = np.zeros((10, 3))
    with pytest.raises(UserError, match="features"):
        distance(good, np.zeros((10, 4)))
    with pytest.raises(UserError, match="at least"):
        distance(good, good[:1])
    with pytest.raises(UserError, match="finite"):
        distance(good, good + np.nan)


def test_bad_statistics_are_refused():
    with pytest.raises(UserError, match="means"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4))
    with pytest.raises(UserError, match="finite"):
        frechet_distance(np.zeros(3), np.full((3, 3), np.inf), np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match="at least 2"):
        gaussian(np.zeros((1, 3)))
    with pytest.raises(UserError, match="subsets"):
        kernel_distance_of_subsets(np.zeros((10, 3)), np.zeros((10, 3)), subset_size=11)
    with pytest.raises(UserError, match="splits"):
        inception_score(np.zeros((3, 2)), splits=4)


def test_cmmd_is_the_authors():
    golden = np.load(pathlib.Path(__file__).parent.parent / "golden" / "metrics" / "cmmd.npz")
    found = 1000 * gaussian_kernel_distance(golden["x"], golden["y"], width=10.0)
    assert found == pytest.approx(float(golden["cmmd"]), rel=1e-9)


def test_gaussian_kernel_distance_in_closed_form():
    """The distance of two points d apart is 2 (1 - exp(-d^2 / (2 w^2)))."""
    x, y = np.zeros((1, 3)), np.array([[3.0, 0.0, 4.0]])
    assert gaussian_kernel_distance(x, y, width=5.0) == pytest.approx(2 * (1 - np.exp(-0.5)))
    assert gaussian_kernel_distance(y, y, width=5.0) == 0
