"""A decoder run in tiles, which gives what it gives of the whole, with bounded memory.

A decoder is a chain of stages. A stage sees further than a pixel in two ways only: its convolutions reach some pixels,
so that a tile is computed with a border that is thrown away; and its norms have statistics of the whole map. These are
summed first, norm by norm, each with those before it known:

    for norm n:  moments_n = mean over the map of (x, x^2),  x the input of n, computed tile by tile with moments_<n

so that no seam is left and nothing need be blended. A stage with n norms is computed about n / 2 times for that. What
enters and leaves a stage is kept whole: of a decoder that doubles sides, a quarter and less of what is inside it.
Stages that attend to all positions are run whole: they are those of the lowest resolutions.
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
      run: from statistics of norms and a part of the map to that part of the result, and the inputs of the norms, trees
        by the norms' paths.
      factor: by how much a side of the result is longer.
      reach: how many pixels of the result away it can depend on what is given.
      norms: paths of the norms with statistics over the map, in their order; their inputs are as large as the result.
      whole: whether it must be run on the whole map.
    """

    run: Run
    factor: int = 1
    reach: int = 0
    norms: tuple[str, ...] = ()
    whole: bool = False


def tiled(stages: Sequence[Stage], z: Map, tile: int) -> Map:
    """The result of all stages one after the other.

    Args:
      stages: of a decoder.
      z: what enters the first.
      tile: side of a tile, in pixels of a stage's result, without its border.

    Raises:
      UserError: no size of a tile.
    """
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise UserError(f"a tile has a side of a whole number of pixels above 0, not {tile!r}")
    h = z
    for stage in stages:
        fits = max(h.shape[1:3]) * stage.factor <= tile
        h = stage.run({}, h)[0] if stage.whole or fits else _in_tiles(stage, h, tile)
    return h


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cut:
    """Tiles along one side.

    Attributes:
      side: of the map; `core` of a tile, `window` of a tile with its border.
      fresh, start, opened: of each tile, where what is in no tile before it begins, where it and its window begin.
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
    """The result, of which every tile is written at its place."""
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
    """Which rows (or columns) of a window's result are its tile's and no other's."""
    place = opened[axis] * factor + jnp.arange(cut.window * factor)
    return (place >= fresh[axis] * factor) & (place < (start[axis] + cut.core) * factor)


def _input_of(inputs: Mapping[str, PyTree], name: str) -> Map:
    found = inputs
    for part in name.split("/"):
        found = found[part]
    return found["x"][0]
