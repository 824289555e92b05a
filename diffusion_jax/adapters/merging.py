"""Merging several models of one form: arithmetic on checkpoints, tensor by tensor, in float64 on the host.

    linear          sum_i w_i A_i
    slerp           along the great circle between two, Shoemake 1985
    ties            base + scale * (mean of the trimmed changes that agree with the elected sign),
                    Yadav et al. 2023, arXiv:2306.01708
    dare            base + sum_i w_i (changes with a share dropped, the rest divided by the kept share),
                    Yu et al. 2023, arXiv:2311.03099, eq. 2
    add_difference  A + scale (B - C): adds to A what B has learned on top of C

Changes are differences from a base that all models were trained from.
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from diffusion_jax.domains import ANY, SHARE_BELOW_1, TIME, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry

KEPT_SHARE = Bounds(low=0, high=1, above=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merging:
    """How several models become one.

    models: number of models that it takes; 0: any number from two on.
    of_changes: whether it merges changes from a base.
    """

    models: ClassVar[int] = 0
    of_changes: ClassVar[bool] = False

    def tensor(self, path: str, values: Sequence[np.ndarray], base: np.ndarray | None) -> np.ndarray:
        """One tensor of the result, computed in float64."""
        raise NotImplementedError

    def check(self, count: int) -> None:
        """Raise UserError if this number of models cannot be merged in this way."""
        if count < 2 or (self.models and count != self.models):
            raise UserError(f"{type(self).__name__.lower()} merges {self.models or 'two or more'} models, got {count}")


MERGINGS: Registry[Merging] = Registry("merge method")


def _weights(weights: Sequence[float], count: int) -> tuple[float, ...]:
    if weights and len(weights) != count:
        raise UserError(f"{len(weights)} weights for {count} models: give one for each")
    return tuple(weights) or (1.0 / count,) * count


@MERGINGS.register("linear")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Merging):
    """A weighted sum.

    Attributes:
      weights: weights of the models; none: equal weights with sum 1.
      blocks: pairs (pattern of paths, weights) for parameters with other weights.
    """

    weights: tuple[float, ...] = ()
    blocks: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def tensor(self, path, values, base):
        own = next((weights for pattern, weights in self.blocks if re.search(pattern, path)), self.weights)
        return sum(w * value for w, value in zip(_weights(own, len(values)), values, strict=True))

    def check(self, count):
        super().check(count)
        for weights in (self.weights, *(weights for _, weights in self.blocks)):
            _weights(weights, count)


@MERGINGS.register("slerp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Slerp(Merging):
    """Spherical interpolation of two models; linear for tensors that are almost parallel.

    Attributes:
      share: share of the second model.
    """

    models: ClassVar[int] = 2

    share: Annotated[float, TIME] = 0.5

    def tensor(self, path, values, base):
        first, second = values
        lengths = np.linalg.norm(first) * np.linalg.norm(second)
        cosine = np.clip(np.vdot(first, second) / lengths, -1.0, 1.0) if lengths else 1.0
        angle = np.arccos(cosine)
        if np.sin(angle) < 1e-6:
            return (1 - self.share) * first + self.share * second
        return (np.sin((1 - self.share) * angle) * first + np.sin(self.share * angle) * second) / np.sin(angle)


@MERGINGS.register("ties")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties(Merging):
    """TIES: trim the changes, elect a sign for each number, and average the changes with that sign.

    Attributes:
      density: share of each tensor's changes that is kept, the largest ones.
      scale: scale of the merged change.
    """

    of_changes: ClassVar[bool] = True

    density: Annotated[float, KEPT_SHARE] = 0.2
    scale: Annotated[float, ANY] = 1.0

    def tensor(self, path, values, base):
        changes = np.stack([_trimmed(value - base, self.density) for value in values])
        sign = np.sign(changes.sum(axis=0))
        agree = (np.sign(changes) == sign) & (changes != 0)
        return base + self.scale * np.where(agree, changes, 0).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


def _trimmed(change: np.ndarray, density: float) -> np.ndarray:
    kept = max(1, round(density * change.size)) if change.size else 0
    if kept >= change.size:
        return change
    least = np.partition(np.abs(change).reshape(-1), change.size - kept)[change.size - kept]
    return np.where(np.abs(change) >= least, change, 0.0)


@MERGINGS.register("dare")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dare(Merging):
    """DARE: random changes are dropped and the others scaled up, so that their mean stays the same.

    Attributes:
      drop: share of the changes that is dropped.
      weights: weights of the models' changes; none: equal weights with sum 1.
      seed: seed of the random choice.
    """

    of_changes: ClassVar[bool] = True

    drop: Annotated[float, SHARE_BELOW_1] = 0.5
    weights: tuple[float, ...] = ()
    seed: int = 0

    def tensor(self, path, values, base):
        total = base.copy()
        for index, (w, value) in enumerate(zip(_weights(self.weights, len(values)), values, strict=True)):
            rng = np.random.default_rng((self.seed, index, zlib.crc32(path.encode())))
            kept = rng.random(base.shape) >= self.drop
            total += w * np.where(kept, value - base, 0.0) / (1.0 - self.drop)
        return total

    def check(self, count):
        super().check(count)
        _weights(self.weights, count)


@MERGINGS.register("add_difference")
@dataclasses.dataclass(frozen=True, kw_only=True)
class AddDifference(Merging):
    """The first model plus `scale` times the difference between the second and the third.

    Attributes:
      scale: scale of the difference.
    """

    models: ClassVar[int] = 3

    scale: Annotated[float, ANY] = 1.0

    def tensor(self, path, values, base):
        first, second, third = values
        return first + self.scale * (second - third)


def merge_models(method: Merging, models: Sequence[PyTree], base: PyTree | None = None) -> PyTree:
    """One tree of parameters from several of the same form, with the first one's types; other values than floats must
    agree.

    Raises:
      UserError: another number of models than the method takes, models of different forms, no base where it needs one,
        or a result that is not finite.
    """
    method.check(len(models))
    if method.of_changes and base is None:
        raise UserError(f"{type(method).__name__.lower()} merges changes from a base: name the model they come from")
    trees = [_flat(model) for model in (*models, *([] if base is None else [base]))]
    _require_alike(trees)
    found = {}
    for path, first in trees[0].items():
        tensors = [np.asarray(tree[path]) for tree in trees]
        if not jnp.issubdtype(first.dtype, jnp.floating):
            if any((tensor != tensors[0]).any() for tensor in tensors[1:]):
                raise UserError(f"{path} is not a float and differs between the models")
            found[path] = tensors[0]
            continue
        wide = [tensor.astype(np.float64) for tensor in tensors]
        merged = method.tensor(path, wide[: len(models)], None if base is None else wide[-1])
        if not np.isfinite(merged).all():
            raise UserError(f"{path} of the merged model is not finite")
        found[path] = merged.astype(tensors[0].dtype)
    return unflatten_dict({tuple(path.split("//")): value for path, value in found.items()})


def _flat(tree: PyTree) -> dict[str, Any]:
    return {"//".join(path): leaf for path, leaf in flatten_dict(tree).items()}


def _require_alike(trees: Sequence[Mapping[str, Any]]) -> None:
    first = {path: tuple(leaf.shape) for path, leaf in trees[0].items()}
    for number, tree in enumerate(trees[1:], 2):
        other = {path: tuple(leaf.shape) for path, leaf in tree.items()}
        different = sorted({path for path, _ in set(first.items()) ^ set(other.items())})
        if different:
            there = f"{different[0]}: {first.get(different[0], 'missing')} and {other.get(different[0], 'missing')}"
            raise UserError(f"model {number} differs in form from the first, at {len(different)} places: {there}")
