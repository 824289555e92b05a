"""Shuffled captions keep their frequencies and never stay with their own picture; pictures and labels do not change."""

import collections
import dataclasses

import numpy as np
import pytest

from diffusion_jax.data import Pipeline
from diffusion_jax.errors import UserError

SCENES = {"size": 24, "num_examples": 60, "num_test": 12, "max_objects": 1}
PLAIN = Pipeline(dataset="scenes", options=SCENES, batch_size=4)
SHUFFLED = dataclasses.replace(PLAIN, shuffle_captions=True)


def test_every_example_has_the_caption_of_another_one():
    before, after = (pipeline.examples(range(60)) for pipeline in (PLAIN, SHUFFLED))
    np.testing.assert_array_equal([e["image"] for e in before], [e["image"] for e in after])
    texts, shuffled = ([e["text"] for e in examples] for examples in (before, after))
    assert collections.Counter(texts) == collections.Counter(shuffled)
    distance = next(d for d in range(1, 60) if texts[d:] + texts[:d] == shuffled)
    assert np.mean([a == b for a, b in zip(texts, shuffled, strict=True)]) < 0.2  # short captions coincide by chance
    assert SHUFFLED.texts() == shuffled
    assert dataclasses.replace(SHUFFLED, seed=1).texts() != shuffled, distance


def test_one_by_one_is_as_many_at_once():
    source = SHUFFLED._opened.source
    assert [source[i]["text"] for i in (0, 59)] == [e["text"] for e in source.__getitems__([0, 59])]
    assert len(source) == 60


def test_it_is_other_data_to_whoever_compares_runs():
    assert SHUFFLED.info.fingerprint != PLAIN.info.fingerprint
    assert dataclasses.replace(SHUFFLED, seed=1).info.fingerprint != SHUFFLED.info.fingerprint
    assert dataclasses.replace(PLAIN, seed=1).info.fingerprint == PLAIN.info.fingerprint


def test_data_without_captions_is_refused():
    with pytest.raises(UserError, match=r"data.shuffle_captions needs data with several captions; digits"):
        _ = Pipeline(dataset="digits", batch_size=4, shuffle_captions=True).info
