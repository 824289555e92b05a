"""A decoder run in tiles: it gives the same result as on the whole map, with bounded memory.

A decoder is a chain of stages. An output pixel of a stage depends on distant inputs in two ways only. Its convolutions
reach some pixels, so a tile is computed with a border that is then discarded. Its norms have statistics of the whole
map. These are summed first, norm by norm, each with those before it known:

    for norm n:  moments_n = mean over the map of (x, x^2),  x the input of n, computed tile by tile with moments_<n

so that there is no seam and nothing need be blended. This computes a stage with n norms about n / 2 times. The input
and output of a stage are kept whole; for a decoder that doubles sides they are at most a quarter of what is inside it.
Stages that attend to all positions run whole: they are those of the lowest resolutions.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, Int, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers import at_least_float32

Map = Float[Array, "batch rows columns channels"]
Run = Callable[[PyTree, Map], tuple[Map, PyTree]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A part of a decoder.

    Attributes:
      run: maps statistics of norms and a part of the map to that part of the result and the inputs of the norms, as
        trees by the norms' paths.
      factor: the ratio between a side of the result and a side of the input.
      reach: distance in pixels of the result up to which it can depend on the input.
      norms: paths of the norms with statistics over the map, in order; their inputs are as large as the result.
      whole: whether it must run on the whole map.
    """

    run: Run
    factor: int = 1
    reach: int = 0
    norms: tuple[str, ...] = ()
    whole: bool = False


def tiled(stages: Sequence[Stage], z: Map, tile: int) -> Map:
    """The result of applying all stages in order.

    Args:
      stages: stages of a decoder.
      z: input of the first stage.
      tile: side of a tile, in pixels of a stage's result, without its border.

    Raises:
      UserError: `tile` is no valid size.
    """
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise UserError(f"the side of a tile must be a whole number of pixels above 0, not {tile!r}")
    h = z
    for stage in stages:
        fits = max(h.shape[1:3]) * stage.factor <= tile
        h = stage.run({}, h)[0] if stage.whole or fits else _in_tiles(stage, h, tile)
    return h


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cut:
    """The tiles along one side.

    Attributes:
      side: side of the map; `core` of a tile, `window` of a tile with its border.
      fresh, start, opened: for each tile, where the part that no earlier tile has begins, and where the tile and its
        window begin.
    """

    side: int
    core: int
    window: int
    fresh: Int[np.ndarray, " tiles"]
    start: Int[np.ndarray, " tiles"]
    opened: Int[np.ndarray, " tiles"]

    @classmethod
    def of(cls, side: int, core: int, border: int) -> "_Cut":
        core = min(core, side)
        window = min(core + 2 * border, side)
        fresh = np.arange(0, side, core)
        start = np.minimum(fresh, side - core)
        opened = np.clip(start - border, 0, side - window)
        return cls(side=side, core=core, window=window, fresh=fresh, start=start, opened=opened)


def _in_tiles(stage: Stage, x: Map, tile: int) -> Map:
    factor, border = stage.factor, -(-stage.reach // stage.factor)
    rows, columns = (_Cut.of(side, max(1, tile // factor), border) for side in x.shape[1:3])
    grid = [
        tuple(np.stack(np.broadcast_arrays(a[:, None], b[None]), -1).reshape(-1, 2))
        for a, b in ((rows.fresh, columns.fresh), (rows.start, columns.start), (rows.opened, columns.opened))
    ]
    places = tuple(jnp.asarray(np.stack(one), jnp.int32) for one in grid)  # [tiles, (row, column)] each

    def window(opened: Array) -> Map:
        sizes = (x.shape[0], rows.window, columns.window, x.shape[3])
        return jax.lax.dynamic_slice(x, (0, opened[0], opened[1], 0), sizes)

    statistics: dict[tuple[str, ...], Array] = {}
    for name in stage.norms:
        path = (*name.split("/"), "moments")
        known = unflatten_dict(statistics)

        def add(total: Array, place: tuple[Array, ...], name: str = name, known: PyTree = known) -> tuple[Array, None]:
            fresh, start, opened = place
            inputs = _input_of(stage.run(known, window(opened))[1], name)
            wide = inputs.astype(at_least_float32(inputs.dtype))
            counts = _counted(rows, 0, fresh, start, opened, factor), _counted(columns, 1, fresh, start, opened, factor)
            wide = jnp.where((counts[0][:, None] & counts[1])[..., None], wide, 0.0)
            return total + jnp.stack([wide.sum((1, 2)), jnp.square(wide).sum((1, 2))]), None

        shape = jax.eval_shape(
            lambda known=known, name=name: _input_of(stage.run(known, window(places[2][0]))[1], name)
        )
        zero = jnp.zeros((2, x.shape[0], shape.shape[-1]), at_least_float32(shape.dtype))
        total, _ = jax.lax.scan(add, zero, places)
        statistics[path] = total / (x.shape[1] * x.shape[2] * factor**2)

    return _assembled(stage, unflatten_dict(statistics), window, places, (rows, columns), x.shape[0])


def _assembled(
    stage: Stage,
    statistics: PyTree,
    window: Callable[[Array], Map],
    places: tuple[Array, ...],
    cuts: tuple[_Cut, _Cut],
    batch: int,
) -> Map:
    """The result, assembled from all tiles."""
    rows, columns = cuts
    factor = stage.factor

    def put(whole: Map, place: tuple[Array, ...]) -> tuple[Map, None]:
        _, start, opened = place
        made = stage.run(statistics, window(opened))[0]
        inside, at = (start - opened) * factor, start * factor
        sizes = (batch, rows.core * factor, columns.core * factor, made.shape[-1])
        core = jax.lax.dynamic_slice(made, (0, inside[0], inside[1], 0), sizes)
        return jax.lax.dynamic_update_slice(whole, core, (0, at[0], at[1], 0)), None

    made = jax.eval_shape(lambda: stage.run(statistics, window(places[2][0]))[0])
    empty = jnp.zeros((batch, rows.side * factor, columns.side * factor, made.shape[-1]), made.dtype)
    return jax.lax.scan(put, empty, places)[0]


def _counted(cut: _Cut, axis: int, fresh: Array, start: Array, opened: Array, factor: int) -> Array:
    """Which rows (or columns) of a window's result belong to its tile alone."""
    place = opened[axis] * factor + jnp.arange(cut.window * factor)
    return (place >= fresh[axis] * factor) & (place < (start[axis] + cut.core) * factor)


def _input_of(inputs: Mapping[str, PyTree], name: str) -> Map:
    found = inputs
    for part in name.split("/"):
        found = found[part]
    return found["x"][0]
