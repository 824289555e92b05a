"""Sources of parameter groups that do not start at random: another run, or a published file.

A trained group starts from its source. A frozen group stays as its source has it: no checkpoint holds it; a run keeps
its fingerprint instead, and refuses to resume with another one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import UserError
from diffusion_jax.systems import fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One group of parameters that can be read.

    Attributes:
      where: a path or a name, for people.
      read: reads the tree of arrays.
      of_model: whether `where` is a whole model that has this group under the same name.
    """

    where: str
    read: Callable[[], Any]
    of_model: bool = False


def read_groups(sources: Mapping[str, Source], like: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read groups onto the devices, and describe them.

    Args:
      sources: sources by group; groups that `like` lacks are skipped.
      like: shapes, types and shardings, by group.

    Returns:
      The groups, and {"source": ..., "fingerprint": ...} of each.

    Raises:
      UserError: the data does not have the form that the model needs; the message names the source.
    """
    params, known = {}, {}
    for name, wanted in like.items():
        if name not in sources:
            continue
        tree = sources[name].read()
        found, needed = (_forms(part) for part in (tree, wanted))
        if found != needed:
            different = sorted(set(found) ^ set(needed)) or [leaf for leaf in needed if needed[leaf] != found[leaf]]
            first = different[0]
            raise UserError(
                f"{name} of {sources[name].where} does not fit: {first} is {found.get(first, 'missing')} there and "
                f"{needed.get(first, 'not used')} here, and {len(different) - 1} more differ"
            )
        known[name] = {"source": sources[name].where, "fingerprint": fingerprint(tree)}
        if sources[name].of_model:
            known[name]["of_model"] = True
        params[name] = jax.tree.map(
            lambda x, old: jax.device_put(jnp.asarray(x, old.dtype), old.sharding), tree, wanted
        )
    return params, known


def require_same_sources(recorded: Mapping[str, Any], now: Mapping[str, Any], where: Any) -> None:
    """Raise UserError if a frozen group is not the one that a checkpoint was trained with."""
    for name in sorted({*recorded, *now}):
        before, after = recorded.get(name), now.get(name)
        if before is None or after is None or before["fingerprint"] != after["fingerprint"]:
            shown = [part["source"] if part else "none" for part in (before, after)]
            raise UserError(
                f"{where} was trained with {name} of {shown[0]}; {name} of {shown[1]} is not the same: restore the "
                "former one, or train again"
            )


def _forms(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
