"""Sampling from an experiment: where guidance acts."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.digits_unet import get_config
from diffusion_jax.errors import UserError
from diffusion_jax.samplers.guidance import Autoguidance, ClassifierFree
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation
from experiments.evaluating.generation import Guide


@pytest.fixture(scope="module")
def drawn(data_dir):
    """Draw samples of a small network with random parameters at a guidance scale and in an interval."""
    config = get_config()
    config.data.data_dir = str(data_dir)
    config.model.update(base_channels=8, num_res_blocks=1, attention_resolutions=())
    config.sampling.steps, config.sampling.batch_size = 6, 8
    experiment = Experiment(config)
    params = random_params(experiment)
    labels = np.arange(8) % 10

    def draw(scale, interval=(), *, num_samples=8, start=0, guide=None, steps=None, own=(experiment, params)):
        guide = guide and Guide(experiment=guide[0], params=guide[1], source={})
        rule = (Autoguidance if guide else ClassifierFree)(scale=scale, interval=interval)
        make = dataclasses.replace(evaluation.generator(own[0], steps=steps), guidance=rule, guide=guide)
        return np.concatenate(list(make.batches(own[1], labels, num_samples, 0, start=start)))

    draw.own = experiment, params
    return draw


def random_params(experiment, seed=0):
    shapes = jax.eval_shape(experiment.init_state).params
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def other_experiment(data_dir, **fields):
    """An experiment on the same data with a smaller network."""
    config = get_config()
    config.data.data_dir = str(data_dir)
    config.model.update(base_channels=4, num_res_blocks=1, attention_resolutions=(), channel_multipliers=(1,))
    config.sampling.batch_size = 8
    config.update_from_flattened_dict(fields)
    return Experiment(config)


def test_guidance_acts_inside_its_interval_only(drawn):
    plain, guided = drawn(1.0), drawn(3.0)
    assert np.abs(plain - guided).max() > 0.1
    np.testing.assert_allclose(drawn(3.0, (0.0, 1e6)), guided, atol=1e-5)
    np.testing.assert_allclose(drawn(3.0, (1e5, 1e6)), plain, atol=1e-5)
    middle = drawn(3.0, (0.1, 2.0))
    assert min(np.abs(middle - plain).max(), np.abs(middle - guided).max()) > 0.01


def test_an_interval_costs_a_second_evaluation_inside_it_only(drawn):
    """Guidance doubles only Heun's evaluations in the interval: one at every level, a second at all but the first."""
    make = dataclasses.replace(evaluation.generator(drawn.own[0]), guidance=ClassifierFree(scale=3.0))
    assert make.network_evaluations == 2 * 11
    levels = make.grid.sigmas[:-1] / make.grid.alphas[:-1]
    asked = np.concatenate([levels, levels[1:]])
    low, high = levels[4], levels[1]
    limited = dataclasses.replace(make, guidance=ClassifierFree(scale=3.0, interval=(0.99 * low, 1.01 * high)))
    assert limited.network_evaluations == 11 + np.sum((asked >= low) & (asked <= high)) == 11 + 8
    plain = dataclasses.replace(limited, guidance=ClassifierFree(scale=1.0, interval=limited.guidance.interval))
    assert plain.network_evaluations == 11


def test_batches_from_the_middle_are_those_of_the_whole(drawn):
    whole, rest = drawn(1.0, num_samples=20), drawn(1.0, num_samples=20, start=8)
    np.testing.assert_array_equal(whole[8:], rest)


@pytest.mark.parametrize(
    "classes", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["classes", "unconditional"]
)
def test_a_guide_is_extrapolated_from(drawn, data_dir, classes):
    """With one step a sample is the denoiser's x0, so the guided sample follows from those of both networks."""
    worse = other_experiment(data_dir, **{"train.class_conditional": classes})
    worse = worse, random_params(worse, seed=1)
    own, other = drawn(1.0, steps=1), drawn(1.0, steps=1, own=worse)
    guided = drawn(2.5, steps=1, guide=worse)
    np.testing.assert_allclose(guided, other + 2.5 * (own - other), atol=1e-3)
    assert np.abs(guided - own).max() > 0.1
    rule = Autoguidance(scale=2.5)
    make = dataclasses.replace(evaluation.generator(drawn.own[0], steps=1), guidance=rule)
    assert make.network_evaluations == 2


def test_guided_by_itself_is_not_guided(drawn):
    np.testing.assert_allclose(drawn(3.0, guide=drawn.own), drawn(1.0), atol=1e-4)


@pytest.mark.slow
def test_a_guide_on_another_schedule(drawn, data_dir):
    """A guide on another schedule is evaluated at matching noise levels, so the samples remain close."""
    fields = {"process.schedule.sigma_max": 40.0}
    worse = other_experiment(data_dir, **fields)
    same = other_experiment(data_dir)
    params = random_params(worse, seed=1)
    on_other, on_same = (drawn(2.0, guide=(one, params)) for one in (worse, same))
    assert np.isfinite(on_other).all()
    assert np.abs(on_other - on_same).max() < 0.5 * np.abs(on_same - drawn(1.0)).max()


def test_a_guide_of_other_data_is_refused(drawn, data_dir):
    worse = other_experiment(data_dir, **{"data.image_size": 16, "data.crop": "pad"})
    with pytest.raises(UserError, match="must be trained on the same data"):
        drawn(2.0, guide=(worse, {}))


def test_a_shortcut_model_is_sampled_at_the_lengths_that_it_is_trained_at(data_dir):
    """With base_steps steps only the velocity is used, as in Euler's method; with fewer steps the network jumps."""
    experiment = other_experiment(
        data_dir,
        **{
            "process.schedule": {"name": "rectified_flow"},
            "process.prediction": {"name": "velocity"},
            "process.time_input": {"name": "t"},
            "time_sampler": {"name": "uniform"},
            "objective": {"name": "shortcut", "base_steps": 4},
            "model.num_times": 2,
            "sampling.clip_x0": False,
        },
    )
    params, labels = random_params(experiment), np.arange(8) % 10

    def draw(sampler, steps):
        make = evaluation.generator(experiment, sampler=sampler, steps=steps)
        return np.concatenate(list(make.batches(params, labels, 8, 0)))

    np.testing.assert_allclose(draw("flow_map", 4), draw("flow_euler", 4), atol=1e-4)
    assert np.abs(draw("flow_map", 2) - draw("flow_euler", 2)).max() > 0.01
