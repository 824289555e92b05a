"""Sampling from an experiment: where guidance acts."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.digits_unet import get_config
from diffusion_jax.errors import UserError
from experiments import evaluation
from experiments.wiring import Experiment


@pytest.fixture(scope="module")
def drawn(data_dir):
    """Samples of a small network with random parameters, guided by 3, by interval."""
    config = get_config()
    config.data.data_dir = str(data_dir)
    config.model.update(base_channels=8, num_res_blocks=1, attention_resolutions=())
    config.sampling.steps, config.sampling.batch_size = 6, 8
    experiment = Experiment(config)
    shapes = jax.eval_shape(experiment.init_state).params
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    labels = np.arange(8) % 10

    def draw(scale, interval=(), *, num_samples=8, start=0):
        make = dataclasses.replace(evaluation.generator(experiment, guidance_scale=scale), guidance_interval=interval)
        return np.concatenate(list(make.batches(params, labels, num_samples, 0, start=start)))

    return draw


def test_guidance_acts_inside_its_interval_only(drawn):
    plain, guided = drawn(1.0), drawn(3.0)
    assert np.abs(plain - guided).max() > 0.1
    np.testing.assert_allclose(drawn(3.0, (0.0, 1e6)), guided, atol=1e-5)
    np.testing.assert_allclose(drawn(3.0, (1e5, 1e6)), plain, atol=1e-5)
    middle = drawn(3.0, (0.1, 2.0))
    assert min(np.abs(middle - plain).max(), np.abs(middle - guided).max()) > 0.01


def test_batches_from_the_middle_are_those_of_the_whole(drawn):
    whole, rest = drawn(1.0, num_samples=20), drawn(1.0, num_samples=20, start=8)
    np.testing.assert_array_equal(whole[8:], rest)


def test_an_interval_has_two_ends(drawn):
    with pytest.raises(UserError, match=r"guidance_interval is \(low, high\)"):
        drawn(3.0, (1.0,))
