"""The randomness of the data as functions of a seed and a position: the order of an epoch, and random words.

Both come from a counter-based generator, which gives the same numbers in all versions of numpy.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64

ORDER, FLIP, AUGMENT, HOLES = 0, 1, 2, 3  # streams of (seed, stream, position)
_WORDS_PER_BLOCK = 4  # of Philox 4x64


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    """The order of one epoch, a permutation of 0..size-1."""
    words = np.random.Philox(key=seed + (ORDER << 64), counter=epoch << 128).random_raw(size)
    return np.argsort(words, kind="stable")


def in_order(positions: Int[np.ndarray, " positions"], count: int, seed: int | None) -> Int[np.ndarray, " positions"]:
    """Which of `count` examples are at these positions: a new order in every epoch, or their own order without a
    seed."""
    epochs, places = np.divmod(positions, count)
    if seed is None:
        return places
    chosen = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen[epochs == epoch] = permutation(seed, int(epoch), count)[places[epochs == epoch]]
    return chosen


def in_turns(
    positions: Int[np.ndarray, " positions"], counts: Sequence[int], seed: int | None
) -> Int[np.ndarray, " positions"]:
    """The same for groups that are stored one after the other and alternate: position p has group p mod len(counts)."""
    chosen, first = np.empty_like(positions), 0
    for turn, count in enumerate(counts):
        mine = positions % len(counts) == turn
        chosen[mine] = first + in_order(positions[mine] // len(counts), count, seed)
        first += count
    return chosen


def random_bits(
    seed: int, start: int, stop: int, *, stream: int = FLIP, words: int = _WORDS_PER_BLOCK
) -> UInt64[np.ndarray, "positions words"]:
    """Random words for each global position, equation (2): whole blocks of a counter-based generator."""
    generator = np.random.Philox(key=seed + (stream << 64), counter=start * (words // _WORDS_PER_BLOCK))
    return generator.random_raw(words * (stop - start)).reshape(-1, words)


def spread(total: int, most: int | None) -> Int[np.ndarray, " n"]:
    """At most `most` of the numbers 0 ... total - 1, evenly spread."""
    count = total if most is None else min(total, most)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)
