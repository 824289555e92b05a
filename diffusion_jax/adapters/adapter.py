"""Adapters: a small tree of own parameters that changes the computation of a frozen network.

    parameters of the network = apply(base, own)

For each path of a parameter, `own` has the leaves of one form (`forms.py`). It is an argument of the program, so
another adapter of the same shapes, or the same adapter at another weight, needs no new compilation. A path begins with
the name of a group ("network/blocks/qkv/kernel", "conditioning/context/..."), so one adapter may change several
networks.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key, PyTree

from diffusion_jax.adapters.forms import SCALE, Leaves, apply_form, num_layers_axes
from diffusion_jax.counter_prng import counter_key
from diffusion_jax.domains import NOT_NEGATIVE
from diffusion_jax.errors import UserError
from diffusion_jax.models import is_frozen
from diffusion_jax.models.adapted import AdaptedKernel
from diffusion_jax.registry import Registry
from diffusion_jax.rng import fold_name

Own = Mapping[str, Leaves]
"""An adapter's parameters, by the path of the parameter that they change."""
Weights = float | Mapping[str, float | Sequence[float]]
"""The weight of an adapter: one number, or for each pattern of paths a number or one number per layer of a scan."""
ATTENTION = (r"network/.*/(\w*qkv|query|key|value|\w*attention_out|out)/kernel",)
"""The kernels of attention, which adapters change by default."""
PARTS = {"qkv": 3}
"""Layers that consist of several layers side by side, by the ends of their names in networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """The initial form of an adapter; its effect follows from its parameters.

    Attributes:
      name: name of its group of parameters, "adapters/<name>".
      targets: patterns of the paths that it changes; a pattern must match the whole path.
      weight: strength of its effect.
      changes_parameters: whether it changes parameters of the model rather than the network's conditions.
      is_folder: whether other programs store it as a folder rather than a file.
    """

    changes_parameters: ClassVar[bool] = True
    is_folder: ClassVar[bool] = False

    name: str = "adapter"
    targets: tuple[str, ...] = ATTENTION
    weight: Annotated[float, NOT_NEGATIVE] = 1.0

    def init(self, key: Key[Array, ""], base: Mapping[str, PyTree]) -> dict[str, dict[str, Array]]:
        """Parameters that leave the network unchanged; `base` is groups of parameters.

        Raises:
          UserError: a pattern matches nothing, or a parameter that this adapter cannot change.
        """
        found = {}
        for path, leaf in targeted(base, self.targets).items():
            own = self.init_leaf(fold_name(key, path), path, leaf)
            scale = jnp.full(own.pop(SCALE), self.scale * self.weight, jnp.float32)
            found[path] = {**own, SCALE: scale}
        return found

    @property
    def scale(self) -> float:
        """s at weight 1."""
        return 1.0

    def of_word(self, word: str, tokens: Sequence[int]) -> "Adapter":
        """The adapter for the trigger word, which the tokenizer reads as these tokens.

        Raises:
          UserError: the adapter cannot belong to that word.
        """
        return self

    @property
    def share_dropped(self) -> float:
        """Share of the inputs of its low-rank terms that is zeroed in training."""
        return 0.0

    def init_leaf(self, key: Key[Array, ""], path: str, leaf: Array) -> dict[str, Any]:
        """The leaves for one parameter; under the name of the scale, its shape [*layers, parts]."""
        raise NotImplementedError


ADAPTERS: Registry[Adapter] = Registry("adapter")


def apply(base: Mapping[str, PyTree], owns: Iterable[Own]) -> dict[str, PyTree]:
    """Groups of parameters changed by adapters, one after the other; a pure function.

    Kernels of dense layers with low-rank terms come in parts (`models/adapted.py`).

    Raises:
      UserError: the base lacks a path.
    """
    flat = _flat(base)
    for own in owns:
        unknown = sorted(set(own) - set(flat))
        if unknown:
            raise UserError(f"the adapter changes {', '.join(unknown[:4])}, but there is no such parameter")
        for path, leaves in own.items():
            flat[path] = apply_form(leaves, flat[path])
    return _nested(flat, base)


def with_dropout(
    changed: Mapping[str, PyTree], share: float, keys: Key[Array, " batch"], before: Mapping[str, PyTree]
) -> dict[str, PyTree]:
    """Groups that `apply` made of `before`; their new low-rank terms zero a share of their inputs.

    The mask of an example is drawn from its own key, folded with the path of the kernel and the number of the layer.

    Raises:
      UserError: another adapter has changed a kernel in the same way.
    """
    flat, old = _flat(changed), _flat(before)
    keys = counter_key(keys)
    for path, leaf in flat.items():
        if not isinstance(leaf, AdaptedKernel) or leaf is old[path]:
            continue
        if isinstance(old[path], AdaptedKernel):
            raise UserError(f"{path} has two adapters, and one of them has dropout: set its dropout to 0")
        layers = leaf.kernel.shape[: num_layers_axes(leaf.kernel.shape)]
        own = jax.vmap(fold_name, in_axes=(0, None))(keys, path)
        if layers:
            by_layer = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)), in_axes=(None, 0))
            own = by_layer(own, jnp.arange(layers[0]))
        flat[path] = leaf.replace(keys=own, dropout=share)
    return _nested(flat, changed)


def merge(base: Mapping[str, PyTree], owns: Iterable[Own]) -> dict[str, PyTree]:
    """The same as `apply`, as plain arrays of the base's types: a network without adapters."""
    changed = apply(base, owns)
    return jax.tree.map(lambda old, new: jnp.asarray(new).astype(old.dtype), dict(base), changed)


def unmerge(merged: Mapping[str, PyTree], owns: Iterable[Own]) -> dict[str, PyTree]:
    """Undo `merge`, up to rounding.

    Raises:
      UserError: the adapter does not remember what it replaced; keep the base instead.
    """
    flat = _flat(merged)
    for own in reversed(list(owns)):
        for path, leaves in own.items():
            if "magnitude" in leaves or "rows" in leaves:
                raise UserError(
                    f"{path}: merged, this adapter cannot restore what it replaced (a length, or rows): keep the base"
                )
            flat[path] = jnp.asarray(apply_form({**leaves, SCALE: -leaves[SCALE]}, flat[path]))
    return _nested(flat, merged)


def weighted(own: Own, weight: Weights) -> dict[str, dict[str, Array]]:
    """The adapter at another weight; patterns of paths that match nothing are errors.

    A mapping gives a weight to the paths that a pattern matches, where the first match counts; the others keep their
    weight.

    Raises:
      UserError: a pattern matches nothing, or the number of weights differs from the number of layers.
    """
    if not isinstance(weight, Mapping):
        return {path: {**leaves, SCALE: leaves[SCALE] * weight} for path, leaves in own.items()}
    unused, found = set(weight), {}
    for path, leaves in own.items():
        pattern = next((p for p in weight if re.search(p, path)), None)
        factor = 1.0 if pattern is None else weight[pattern]
        unused.discard(pattern)
        found[path] = {**leaves, SCALE: leaves[SCALE] * _by_layer(factor, leaves[SCALE], path)}
    if unused:
        raise UserError(f"weights of an adapter: it changes no parameter that matches {', '.join(sorted(unused))}")
    return found


def _by_layer(factor: float | Sequence[float], scale: Array, path: str) -> Any:
    if isinstance(factor, int | float):
        return factor
    if scale.ndim != 2 or len(factor) != scale.shape[0]:
        layers = scale.shape[0] if scale.ndim == 2 else "no"
        raise UserError(f"{len(factor)} weights for {path}, which has {layers} layers")
    return np.asarray(factor, np.float32)[:, None]


def count(own: PyTree) -> int:
    """The number of trained parameters of any adapter."""
    return sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(own) if not is_frozen(path))


def targeted(base: Mapping[str, PyTree], patterns: Sequence[str]) -> dict[str, Any]:
    """The parameters whose whole path matches one of the patterns.

    Raises:
      UserError: a pattern is invalid, or matches nothing.
    """
    flat, found = _flat(base), {}
    for pattern in patterns:
        try:
            matched = {path: leaf for path, leaf in flat.items() if re.fullmatch(pattern, path)}
        except re.error as error:
            raise UserError(f"{pattern!r} is not a pattern of parameters: {error}") from None
        if not matched:
            raise UserError(
                f"no parameter matches {pattern!r}, which an adapter should change; there are: "
                f"{', '.join([path for path in flat if path.endswith('/kernel')][:4] or list(flat)[:4])} ..."
            )
        found |= matched
    return found


def _flat(groups: Mapping[str, PyTree]) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in flatten_dict(dict(groups)).items()}


def _nested(flat: Mapping[str, Any], like: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Rebuild the tree; names of groups contain slashes themselves."""
    return unflatten_dict({path: flat["/".join(path)] for path in flatten_dict(dict(like))})
