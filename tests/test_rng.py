"""Random streams depend on seed, name, step and position, but not on how a batch is split."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from diffusion_jax.rng import BatchKey, stream_key


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_streams_differ_by_seed_name_and_step():
    keys = [stream_key(seed, name, step) for seed in (0, 1) for name in ("train", "sample") for step in (0, 1)]
    assert len({bits(key) for key in keys}) == 8
    assert bits(stream_key(3, "train", 5)) == bits(stream_key(3, "train", jnp.int32(5)))


def test_streams_are_the_same_in_every_process_and_release():
    """The bits of a stream are pinned: a change would make existing runs resume differently."""
    assert bits(stream_key(0, "train", 0)) == (941276958, 1067884796)


def test_draws_do_not_depend_on_the_split():
    key = BatchKey.create(stream_key(0, "train"), 12)
    halves = [BatchKey(key.key, key.index[i : i + 6], 12) for i in (0, 6)]
    uniforms = (BatchKey.uniform, BatchKey.low_discrepancy, BatchKey.stratified, BatchKey.antithetic)
    steps = (lambda k: k.normal((3, 2)), lambda k: k.counter_based().normal((2,)), lambda k: k.fold_in("x").uniform())
    for draw in (*uniforms, *steps):
        np.testing.assert_array_equal(draw(key), jnp.concatenate([draw(half) for half in halves]))


def test_uses_and_steps_are_independent():
    key = BatchKey.create(stream_key(0, "train"), 1000)
    draws = [key.uniform(), key.fold_in("a").uniform(), key.fold_in("b").uniform(), key.at_step(1).uniform()]
    correlation = np.corrcoef(draws)
    assert np.abs(correlation - np.eye(4)).max() < 0.12
    assert len(np.unique(draws[0])) == 1000


def test_low_discrepancy_draws_fill_every_stratum_once():
    u = np.asarray(BatchKey.create(stream_key(1, "train"), 64).low_discrepancy())
    assert sorted(np.floor(u * 64).astype(int)) == list(range(64))


def test_stratified_and_antithetic_uniforms():
    key = BatchKey.create(stream_key(1, "train"), 64)
    assert np.array_equal(np.floor(np.asarray(key.stratified()) * 64), np.arange(64))
    u = np.asarray(key.antithetic())
    np.testing.assert_allclose(u[::2] + u[1::2], 1, atol=1e-6)
    assert len(np.unique(u[::2])) == 32


def test_counter_based_noise_is_gaussian_and_independent_over_examples_and_steps():
    """Moments, distribution and correlations of neighbours match those of Gaussian noise at the precision of 2^18
    draws."""
    key = BatchKey.create(stream_key(0, "sampler"), 64).counter_based()
    noise = np.stack([np.asarray(key.at_step(step).normal((64, 32))) for step in (0, 1)])
    count = noise.size
    moments = [np.mean(noise**power) for power in (1, 2, 3, 4, 6)]
    spread = np.sqrt(np.array([1, 2, 15, 96, 10170]) / count)
    assert np.all(np.abs(np.array(moments) - [0, 1, 0, 3, 15]) < 4 * spread)
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    for axis in range(noise.ndim):
        neighbours = np.mean(noise * np.roll(noise, 1, axis))
        assert abs(neighbours) < 4.5 / np.sqrt(count / 2)
