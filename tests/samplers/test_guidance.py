"""Classifier-free guidance: linear in the scale, one evaluation at scale 0 and 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.samplers import SAMPLERS, classifier_free, sample
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
