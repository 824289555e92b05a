"""Random numbers for many examples at once, each a function of (seed, stream, index) and of its place in the program.

SplitMix64 (Steele, Lea and Flood 2014, OOPSLA, "Fast splittable pseudorandom number generators"): word j of a key is
mix(key + j * golden ratio). numpy does not promise to keep any distribution between versions, so these are our own.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt64

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def _mix(words: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@dataclasses.dataclass
class Draws:
    """A stream of numbers for each of `n` examples; every call continues where the last one stopped.

    Attributes:
      keys: one for each example.
      position: how many numbers of each stream were drawn.
    """

    keys: UInt64[np.ndarray, " n"]
    position: int = 0

    @classmethod
    def of(cls, seed: int, stream: int, indices: Int[np.ndarray, " n"]) -> "Draws":
        """The streams of the examples `indices`."""
        start = _mix(np.array([(seed * _GOLDEN + (stream + 1) * 0xD1342543DE82EF95) & _MASK], np.uint64))
        return cls(_mix(_mix(start + np.asarray(indices).astype(np.uint64) * np.uint64(_GOLDEN))))

    def uniform(self, *shape: int) -> Float[np.ndarray, "n ..."]:
        """Numbers in [0, 1), float64 [n, *shape]."""
        count = int(np.prod(shape, dtype=np.int64))
        steps = np.arange(self.position + 1, self.position + 1 + count, dtype=np.uint64) * np.uint64(_GOLDEN)
        self.position += count
        words = _mix(self.keys[:, None] + steps)
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(len(self.keys), *shape)

    def below(self, limit: int | np.ndarray, *shape: int) -> Int[np.ndarray, "n ..."]:
        """Whole numbers from 0 to limit - 1."""
        return (self.uniform(*shape) * limit).astype(np.int64)

    def only(self, chosen: np.ndarray) -> "Draws":
        """The streams of some of the examples, from the current position on."""
        return Draws(self.keys[chosen], self.position)
