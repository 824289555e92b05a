"""Classifier-free guidance: linear in the scale, one evaluation at scale 0 and 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.samplers import (
    SAMPLERS,
    AdaptiveProjected,
    Rescaled,
    autoguidance,
    classifier_free,
    classifier_guided,
    dynamic_threshold,
    interval,
    sample,
)
from diffusion_jax.schedulers import GRIDS, SCHEDULES
from tests.samplers.closed_form import Gaussian

SCHEDULE = SCHEDULES.build("edm")
LABELS, NULL = {"label": jnp.array([0, 1])}, {"label": jnp.array([2, 2])}


def conditional(xt, t, conditioning, calls=None):
    """Data whose mean depends on the label: -0.5, 0.5, and 0 for none."""
    if calls is not None:
        calls.append(xt.shape)
    means = jnp.array([-0.5, 0.5, 0.0])[conditioning["label"]][:, None]
    centred = Gaussian(mean=0.0).denoiser(SCHEDULE)(xt - means, t)
    return type(centred)(x0=centred.x0 + means, noise=centred.noise)


@pytest.mark.parametrize("t", [0.6, jnp.array([0.6, 0.2])])
def test_linear_in_the_scale(t):
    xt = jnp.array([[0.3, 1.0], [-2.0, 0.1]])
    only = {0: conditional(xt, t, NULL), 1: conditional(xt, t, LABELS)}
    for scale in (0.0, 1.0, 0.5, 3.0):
        guided = classifier_free(conditional, LABELS, NULL, scale)(xt, t)
        expected = jax.tree.map(lambda u, c, w=scale: u + w * (c - u), only[0], only[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), guided, expected)


def test_evaluations():
    for scale, shapes in ((0.0, [(2, 1)]), (1.0, [(2, 1)]), (1.5, [(4, 1)])):
        calls = []
        denoiser = classifier_free(lambda x, t, c, calls=calls: conditional(x, t, c, calls), LABELS, NULL, scale)
        denoiser(jnp.zeros((2, 1)), 0.5)
        assert calls == shapes


def test_guided_sampling_moves_away_from_the_unconditional_mean():
    grid = GRIDS.build("uniform")(SCHEDULE, 20)

    def mean(scale):
        denoiser = classifier_free(conditional, LABELS, NULL, scale)
        return sample(SAMPLERS.build("heun"), denoiser, grid, jnp.zeros((2, 1))).x0[:, 0]

    np.testing.assert_allclose(mean(1.0), [-0.5, 0.5], atol=0.02)
    np.testing.assert_allclose(mean(3.0), [-1.5, 1.5], atol=0.06)


def test_mismatched_null_is_refused():
    with pytest.raises(UserError, match="same shapes"):
        classifier_free(conditional, LABELS, {"label": jnp.array([2])}, 2.0)


def test_a_missing_null_condition_is_one_clear_line():
    for null in (None, {}):
        with pytest.raises(UserError, match="needs a null condition"):
            classifier_free(conditional, LABELS, null, 2.0)
    classifier_free(conditional, LABELS, None, 1.0)  # scale 1 does not need one


def test_a_negative_condition_takes_the_place_of_the_null_one():
    negative = {"label": LABELS["label"][::-1]}
    found = classifier_free(conditional, LABELS, negative, 2.0)(jnp.zeros((2, 1)), 0.5)
    a, b = (conditional(jnp.zeros((2, 1)), 0.5, c) for c in (LABELS, negative))
    np.testing.assert_allclose(found.x0, 2 * a.x0 - b.x0, rtol=1e-6)


def test_autoguidance_with_itself_changes_nothing_and_scale_one_is_one_evaluation():
    good, bad = Gaussian().denoiser(SCHEDULE), Gaussian(std=0.8).denoiser(SCHEDULE)
    xt = jnp.linspace(-1, 1, 5)
    np.testing.assert_allclose(autoguidance(good, good, 3.0)(xt, 0.5).x0, good(xt, 0.5).x0, rtol=1e-6)
    assert autoguidance(good, bad, 1.0) is good
    found = autoguidance(good, bad, 2.0)(xt, 0.5).x0
    np.testing.assert_allclose(found, 2 * good(xt, 0.5).x0 - bad(xt, 0.5).x0, rtol=1e-5, atol=1e-6)


def test_an_interval_is_guided_inside_and_skips_the_evaluation_outside():
    calls = []

    def counting(xt, t):
        jax.debug.callback(lambda: calls.append(1))
        return Gaussian(mean=0.9).denoiser(SCHEDULE)(xt, t)

    plain = Gaussian().denoiser(SCHEDULE)
    limited = interval(counting, plain, SCHEDULE, 0.19, 1.61)
    grid = GRIDS.build("uniform")(SCHEDULE, 32)
    sample(SAMPLERS.build("euler"), limited, grid, jnp.zeros((2, 1)))
    jax.effects_barrier()
    assert len(calls) == 6  # steps 17 to 22 of EDM2's 32
    outside = limited(jnp.ones((2, 1)), jnp.asarray(grid.times[3]))
    np.testing.assert_allclose(outside.x0, plain(jnp.ones((2, 1)), grid.times[3]).x0, rtol=1e-6)
    with pytest.raises(UserError, match="low < high"):
        interval(plain, plain, SCHEDULE, 2.0, 1.0)
    with pytest.raises(UserError, match="one number for the whole batch"):
        limited(jnp.ones((2, 1)), jnp.ones(2))


def test_rescaled_guidance_has_the_deviation_of_the_conditional_x0():
    xt = jax.random.normal(jax.random.key(0), (2, 50))
    rule = Rescaled(scale=4.0, rescale=1.0)
    guided = classifier_free(conditional, LABELS, NULL, rule, schedule=SCHEDULE)(xt, 0.4)
    np.testing.assert_allclose(jnp.std(guided.x0, axis=1), jnp.std(conditional(xt, 0.4, LABELS).x0, axis=1), rtol=1e-5)
    agrees = SCHEDULE.alpha(0.4) * guided.x0 + SCHEDULE.sigma(0.4) * guided.noise
    np.testing.assert_allclose(agrees, xt, atol=1e-5)
    with pytest.raises(UserError, match="give the schedule"):
        classifier_free(conditional, LABELS, NULL, rule)


def test_projected_guidance():
    """eta = 1 without a threshold is (1); eta = 0 moves x0 at right angles to the conditional one only."""
    xt = jax.random.normal(jax.random.key(0), (2, 50))
    plain = classifier_free(conditional, LABELS, NULL, 4.0)(xt, 0.4)
    same, across, short = (
        classifier_free(conditional, LABELS, NULL, AdaptiveProjected(scale=4.0, **o), schedule=SCHEDULE)(xt, 0.4)
        for o in ({"eta": 1.0}, {"eta": 0.0}, {"eta": 1.0, "norm_threshold": 0.1})
    )
    base = conditional(xt, 0.4, LABELS).x0
    np.testing.assert_allclose(same.x0, plain.x0, atol=1e-5)
    np.testing.assert_allclose(jnp.sum((across.x0 - base) * base, axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(short.x0 - base, axis=1), 0.3, rtol=1e-4)


def test_classifier_guidance_of_a_gaussian_is_the_posterior():
    """p(x0) N(0, 1/4) and a linear classifier's log p = k x0-free in xt: the mean moves by the score's gradient."""
    data, slope = Gaussian(mean=0.0), 0.7
    guided = classifier_guided(data.denoiser(SCHEDULE), SCHEDULE, lambda x, t: slope * jnp.sum(x, axis=1), 2.0)
    xt, t = jnp.array([[0.2, -0.4]]), 0.4
    sigma = SCHEDULE.sigma(0.4)
    expected = data.denoiser(SCHEDULE)(xt, t).x0 + sigma**2 * 2.0 * slope
    np.testing.assert_allclose(guided(xt, t).x0, expected, rtol=1e-5)
    plain = data.denoiser(SCHEDULE)
    assert classifier_guided(plain, SCHEDULE, lambda x, t: x, 0.0) is plain


def test_dynamic_threshold():
    x0 = jnp.concatenate([jnp.linspace(-0.5, 0.5, 100)[None], jnp.linspace(-4, 4, 100)[None]])
    found = dynamic_threshold(0.9)(x0)
    np.testing.assert_allclose(found[0], x0[0], atol=1e-6)  # never stretched
    assert np.abs(found[1]).max() <= 1
    np.testing.assert_allclose(found[1][50:60], x0[1][50:60] / np.quantile(np.abs(x0[1]), 0.9), rtol=1e-4)
    with pytest.raises(UserError, match="percentile"):
        dynamic_threshold(0.0)


def test_guidance_of_a_flow_map_passes_the_second_time_on():
    seen = []

    def flow_map(xt, t, conditioning, s):
        seen.append((jnp.shape(t), jnp.shape(s)))
        return conditional(xt, t, conditioning)

    for scale in (1.0, 2.0):
        classifier_free(flow_map, LABELS, NULL, scale)(jnp.zeros((2, 1)), jnp.full(2, 0.5), jnp.full(2, 0.1))
    assert seen == [((2,), (2,)), ((4,), (4,))]
