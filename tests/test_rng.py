"""Random streams: a function of seed, name, step and position; not of how a batch is split."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.rng import BatchKey, stream_key


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_streams_differ_by_seed_name_and_step():
    keys = [stream_key(seed, name, step) for seed in (0, 1) for name in ("train", "sample") for step in (0, 1)]
    assert len({bits(key) for key in keys}) == 8
    assert bits(stream_key(3, "train", 5)) == bits(stream_key(3, "train", jnp.int32(5)))


def test_streams_are_the_same_in_every_process_and_release():
    """Pinned: a change would break the resume of every run there is."""
    assert bits(stream_key(0, "train", 0)) == (941276958, 1067884796)


def test_draws_do_not_depend_on_the_split():
    key = BatchKey.create(stream_key(0, "train"), 12)
    halves = [BatchKey(key.key, key.index[i : i + 6], 12) for i in (0, 6)]
    for draw in (lambda k: k.normal((3, 2)), BatchKey.uniform, BatchKey.stratified, lambda k: k.fold_in("x").uniform()):
        np.testing.assert_array_equal(draw(key), jnp.concatenate([draw(half) for half in halves]))


def test_uses_and_steps_are_independent():
    key = BatchKey.create(stream_key(0, "train"), 1000)
    draws = [key.uniform(), key.fold_in("a").uniform(), key.fold_in("b").uniform(), key.at_step(1).uniform()]
    correlation = np.corrcoef(draws)
    assert np.abs(correlation - np.eye(4)).max() < 0.12
    assert len(np.unique(draws[0])) == 1000


def test_stratified_draws_fill_every_stratum_once():
    u = np.asarray(BatchKey.create(stream_key(1, "train"), 64).stratified())
    assert sorted(np.floor(u * 64).astype(int)) == list(range(64))
