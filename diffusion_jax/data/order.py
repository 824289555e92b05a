"""What is random of the data, as functions of a seed and a position: the order of an epoch, and random words.

Both come from a counter-based generator, which numpy keeps the same in all versions.
"""

import functools

import numpy as np
from jaxtyping import Int, UInt64

ORDER, FLIP, AUGMENT, HOLES = 0, 1, 2, 3  # streams of (seed, stream, position)
_WORDS_PER_BLOCK = 4  # of Philox 4x64


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    """The order of one epoch, a permutation of 0..size-1."""
    words = np.random.Philox(key=seed + (ORDER << 64), counter=epoch << 128).random_raw(size)
    return np.argsort(words, kind="stable")


def random_bits(
    seed: int, start: int, stop: int, *, stream: int = FLIP, words: int = _WORDS_PER_BLOCK
) -> UInt64[np.ndarray, "positions words"]:
    """Random words of each global position, equation (2): whole blocks of a counter-based generator."""
    generator = np.random.Philox(key=seed + (stream << 64), counter=start * (words // _WORDS_PER_BLOCK))
    return generator.random_raw(words * (stop - start)).reshape(-1, words)


def spread(total: int, most: int | None) -> Int[np.ndarray, " n"]:
    """At most so many of the numbers 0 ... total - 1, evenly spread."""
    count = total if most is None else min(total, most)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)
