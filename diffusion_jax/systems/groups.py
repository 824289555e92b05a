"""Parameters in groups: which groups are trained, and how the frozen ones are identified.

Parameters are a mapping from the name of a group to its tree: "network", "codec", "objective", and, for parts of which
there may be several, "conditioning/<slot>" and the like. Patterns of such names say which groups are trained. The other
groups are frozen: they come from a source and never change, so a run stores their fingerprint instead of them.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.errors import UserError

Params = dict[str, PyTree]


def under(kind: str, parts: Mapping[str, PyTree]) -> Params:
    """The groups of several parts of one kind: {"text": tree} of conditioning is {"conditioning/text": tree}."""
    return {f"{kind}/{name}": tree for name, tree in parts.items()}


def within(kind: str, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The inverse of `under`: the parts of one kind by name."""
    start = f"{kind}/"
    return {name.removeprefix(start): tree for name, tree in params.items() if name.startswith(start)}


def split_groups(params: Mapping[str, PyTree], trained: Sequence[str]) -> tuple[Params, Params]:
    """The groups whose whole name matches one of the patterns, and the rest.

    Raises:
      UserError: a pattern is invalid.
    """
    try:
        chosen = {name for name in params if any(re.fullmatch(pattern, name) for pattern in trained)}
    except re.error as error:
        raise UserError(
            f"one of the patterns of trained groups, {', '.join(map(repr, trained))}, is invalid: {error}"
        ) from None
    return (
        {name: tree for name, tree in params.items() if name in chosen},
        {name: tree for name, tree in params.items() if name not in chosen},
    )


def fingerprint(tree: PyTree) -> str:
    """A hash over the names, shapes, types and bits of all leaves."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{path} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
