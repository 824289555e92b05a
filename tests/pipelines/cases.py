"""The reference runs of tests/golden/pipelines: arrays, draws and tolerances, with channels last."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from diffusion_jax.rng import BatchKey

GOLDEN = Path(__file__).parent.parent / "golden" / "pipelines"
INDEX = json.loads((GOLDEN / "index.json").read_text())
NAMES = sorted(name for name in INDEX["cases"] if (GOLDEN / "cases" / f"{name}.npz").is_file())


@functools.cache
def arrays(name):
    """All arrays of a case."""
    found = dict(np.load(GOLDEN / "cases" / f"{name}.npz"))
    for key, said in INDEX["cases"][name]["arrays"].items():
        if said.startswith("= concat("):
            found[key] = np.concatenate([found[part.strip()] for part in said[len("= concat(") : -1].split(",")])
        elif said.startswith("= "):
            found[key] = found[said[2:]]
    return found


def last(x):
    """Channels last; Flux's packed tokens [n, tokens, 4 c] are unpacked by `unpacked`."""
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def unpacked(x, height, width):
    """[n, (h/2)(w/2), 4 c] of Flux as [n, h, w, c]."""
    n, _, c = x.shape
    x = x.reshape(n, height // 2, width // 2, c // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, height, width, c // 4)


def draws(name):
    """The Gaussian draws of a case in order, channels last, and where each was made."""
    found = arrays(name)
    return [(last(found[draw["name"]]), draw["where"]) for draw in INDEX["cases"][name]["draws"]]


@dataclasses.dataclass(frozen=True)
class StoredKey(BatchKey):
    """A key whose draws in a sampler's steps are given: `noise`, [steps, batch, ...]."""

    noise: np.ndarray | None = None

    def fold_in(self, name):
        return self

    def counter_based(self):
        return self

    def at_step(self, step):
        return dataclasses.replace(self, noise=np.asarray(self.noise)[min(int(step), len(self.noise) - 1)])

    def normal(self, shape, dtype=None):
        return self.noise
