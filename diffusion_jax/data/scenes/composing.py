"""The content of scenes as a function of (options, split, index), for many scenes at once."""

import dataclasses
import functools
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_jax.data.scenes.draws import Draws
from diffusion_jax.data.scenes.graph import Scene, SceneObject
from diffusion_jax.data.scenes.vocabulary import (
    COLOURS,
    CONTRAST,
    GROUNDS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Colour,
    Density,
    Shape,
    sides,
)
from diffusion_jax.domains import Bounds, check_arguments
from diffusion_jax.errors import UserError

PictureSize = Annotated[int, Bounds(low=24, high=2048)]
MaxObjects = Annotated[int, Bounds(low=1, high=4)]
HeldOutShare = Annotated[float, Bounds(low=0, high=0.5)]
Count = Annotated[int, Bounds(low=1, high=2**31 - 1)]

_COPY = 0.3  # probability that an object repeats the shape and colour of the one before
_TEXTURED = 0.5  # share of scenes with a textured ground, if textures are on
EDGE = 1  # pixels between a box and the edge of the picture
_ROUNDS, _CANDIDATES = 6, 12  # attempts at a layout, and places that each object tries in one


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Options of scenes.

    Attributes:
      size: side of the square pictures in pixels.
      max_objects: a scene has 1 to this many objects, each number equally often.
      density: how much captions say: "label", one object; "sentence", all objects, their number and often a relation;
        "description", also sizes, places and the ground; "mixed", each of these in a third of the examples.
      textured: whether half of the grounds have a texture.
      held_out: the share of the pairs (shape, colour) that only the split "held_out" shows.
      shapes, colours: the shapes and colours to use.
      num_examples: examples in the split "train".
      num_test: examples in every other split.
      seed: seed of the scenes; the held-out pairs do not depend on it.

    Raises:
      UserError: a value has a wrong type or is out of bounds, a shape or a colour is named twice, or so much is held
        out that the training would not show each shape and each colour.
    """

    size: PictureSize = 32
    max_objects: MaxObjects = 3
    density: Density = "mixed"
    textured: bool = True
    held_out: HeldOutShare = 0.125
    shapes: tuple[Shape, ...] = SHAPES
    colours: tuple[Colour, ...] = tuple(COLOURS)
    num_examples: Count = 50_000
    num_test: Count = 2_000
    seed: int = 0

    def __post_init__(self):
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check_arguments("dataset 'scenes'", type(self), values)
        for name in ("shapes", "colours"):
            if not values[name] or len(set(values[name])) < len(values[name]):
                raise UserError(f"dataset 'scenes': {name} must be one or several names, each once")
        shown = training_pairs(self)
        missing = [
            *(shape for i, shape in enumerate(self.shapes) if i not in shown[:, 0]),
            *(colour for i, colour in enumerate(self.colours) if i not in shown[:, 1]),
        ]
        if missing:
            table = f"{len(self.shapes)} shapes in {len(self.colours)} colours"
            raise UserError(
                f"dataset 'scenes': with held_out={self.held_out:g} of {table} the training would show nothing that is "
                f"{missing[0]}: hold out less"
            )

    def length(self, split: str) -> int:
        """The number of examples of a split."""
        return self.num_examples if split == "train" else self.num_test

    @property
    def gap(self) -> int:
        """The least distance between two boxes, in pixels."""
        return max(2, round(self.size / 16))


@functools.lru_cache(maxsize=64)
def _pairs(options: SceneOptions) -> tuple[np.ndarray, np.ndarray]:
    """All (shape, colour) pairs as numbers: those of the training, and those held out.

    They are held out along the diagonals of the table of shapes and colours, so that every shape and every colour loses
    almost equally many.
    """
    pairs = [(i, j) for i in range(len(options.shapes)) for j in range(len(options.colours))]
    diagonals = max(len(options.shapes), len(options.colours))
    pairs.sort(key=lambda pair: ((pair[0] + pair[1] - 3) % diagonals, pair))
    count = round(options.held_out * len(pairs))
    out, shown = pairs[:count], sorted(pairs[count:])
    return np.array(shown, np.int64).reshape(-1, 2), np.array(sorted(out), np.int64).reshape(-1, 2)


def training_pairs(options: SceneOptions) -> Int[np.ndarray, "pairs 2"]:
    """The pairs (shape, colour) in training, validation and test, as positions in options.shapes and .colours."""
    return _pairs(options)[0]


def held_out_pairs(options: SceneOptions) -> Int[np.ndarray, "pairs 2"]:
    """The held-out pairs, which none of these splits shows."""
    return _pairs(options)[1]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Arrangement:
    """Many scenes as arrays; objects beyond `count` do not exist.

    Attributes:
      options: options of the scenes.
      count: objects in each scene.
      shape, colour: positions in options.shapes and options.colours.
      size: position in `SIZES`.
      side, left, top: sides and positions of boxes, in pixels.
      ground, level: position in `GROUNDS`, and the grey value.
      texture: position in `TEXTURES`.
      period, phase, contrast: parameters of the texture; periods in pixels, phases in periods.
      upright: whether stripes are vertical, and shades run from left to right.
      speckle: seed of the speckles.
    """

    options: SceneOptions
    count: Int[np.ndarray, " n"]
    shape: Int[np.ndarray, "n objects"]
    colour: Int[np.ndarray, "n objects"]
    size: Int[np.ndarray, "n objects"]
    side: Int[np.ndarray, "n objects"]
    left: Int[np.ndarray, "n objects"]
    top: Int[np.ndarray, "n objects"]
    ground: Int[np.ndarray, " n"]
    level: Float[np.ndarray, " n"]
    texture: Int[np.ndarray, " n"]
    period: Float[np.ndarray, " n"]
    phase: Float[np.ndarray, " n"]
    contrast: Float[np.ndarray, " n"]
    upright: Bool[np.ndarray, " n"]
    speckle: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.count)

    def scene(self, row: int) -> Scene:
        """The graph of one scene."""
        sizes, options = tuple(SIZES), self.options
        objects = []
        for m in range(self.count[row]):
            left, top, side = (int(values[row, m]) for values in (self.left, self.top, self.side))
            objects.append(
                SceneObject(
                    shape=options.shapes[self.shape[row, m]],
                    colour=options.colours[self.colour[row, m]],
                    size=sizes[self.size[row, m]],
                    box=(left, top, left + side, top + side),
                )
            )
        ground, texture = tuple(GROUNDS)[self.ground[row]], TEXTURES[self.texture[row]]
        return Scene(picture=options.size, objects=tuple(objects), ground=ground, texture=texture)


def check_split(options: SceneOptions, split: str) -> None:
    """Raise UserError unless there is such a split."""
    if split not in SPLITS:
        raise UserError(f"dataset 'scenes' has the splits {', '.join(SPLITS)}, not {split!r}")
    if split == "held_out" and not len(held_out_pairs(options)):
        raise UserError(
            f"dataset 'scenes': the split 'held_out' is empty with held_out={options.held_out:g}: hold out some pairs"
        )


def draws_of(options: SceneOptions, split: str, indices: Int[np.ndarray, " n"]) -> Draws:
    """The random numbers for these examples."""
    return Draws.of(options.seed, SPLITS.index(split), indices)


def compose(options: SceneOptions, split: str, indices: Int[np.ndarray, " n"]) -> tuple[Arrangement, Draws]:
    """The scenes `indices` of a split, and the rest of their random numbers, for the wording.

    Scenes of the split "held_out" have at least one pair that the training never shows.
    """
    draws = draws_of(options, split, indices)
    most = options.max_objects
    count = 1 + draws.below(most)
    shown, out = _pairs(options)
    pairs = shown[draws.below(len(shown), most)]
    copied, new, slot = draws.uniform(most) < _COPY, draws.uniform(), draws.below(count)
    if split == "held_out":
        pairs[np.arange(len(count)), slot] = out[(new * len(out)).astype(np.int64)]
        copied[np.arange(len(count)), slot] = False
    for m in range(1, most):
        pairs[copied[:, m], m] = pairs[copied[:, m], m - 1]
    return arrange(options, draws, count, pairs), draws


def arrange(
    options: SceneOptions, draws: Draws, count: Int[np.ndarray, " n"], pairs: Int[np.ndarray, "n objects 2"]
) -> Arrangement:
    """Scenes with given objects, whose sizes, places and grounds are drawn."""
    size, side, left, top = _layout(options, draws, count)
    ground = draws.below(len(GROUNDS))
    levels = np.array(list(GROUNDS.values()))[ground]
    level = levels[:, 0] + draws.uniform() * (levels[:, 1] - levels[:, 0])
    textured, kind = draws.uniform() < _TEXTURED, 1 + draws.below(len(TEXTURES) - 1)
    low, high = CONTRAST
    return Arrangement(
        options=options,
        count=count,
        shape=pairs[..., 0],
        colour=pairs[..., 1],
        size=size,
        side=side,
        left=left,
        top=top,
        ground=ground,
        level=level,
        texture=np.where(textured, kind, 0) if options.textured else np.zeros_like(kind),
        period=options.size * (0.12 + 0.18 * draws.uniform()),
        phase=draws.uniform(),
        contrast=low + (high - low) * draws.uniform(),
        upright=draws.uniform() < 0.5,
        speckle=draws.below(2**31),
    )


def _layout(options: SceneOptions, draws: Draws, count: np.ndarray) -> tuple[np.ndarray, ...]:
    """Size, side, left and top of every box, all boxes `gap` apart.

    Each object takes the first free one of its candidate places. If an object finds none, the scene is tried again with
    one half of its objects one size smaller, then the other half. In the end small objects take a quarter of the
    picture each, which always succeeds.
    """
    n, most = len(count), options.max_objects
    drawn, share = draws.below(len(SIZES), most), draws.uniform(most)
    size, side, left, top = (np.zeros((n, most), np.int64) for _ in range(4))
    waiting = np.arange(n)
    for attempt in range(_ROUNDS):
        places = draws.only(waiting).uniform(most, _CANDIDATES, 2) if len(waiting) else None
        draws.position += most * _CANDIDATES * 2  # even if no scene waits, so that later draws have a fixed position
        if places is None:
            continue
        smaller = np.maximum(drawn[waiting] - (attempt + np.arange(most) % 2) // 2, 0)
        sides_here = _sides(options, smaller, share[waiting])
        corners, found = _first_free(options, sides_here, places, count[waiting])
        done = waiting[found]
        size[done], side[done] = smaller[found], sides_here[found]
        left[done], top[done] = corners[found, :, 0], corners[found, :, 1]
        waiting = waiting[~found]
    quarter, jitter = np.argsort(draws.uniform(4), axis=1, kind="stable")[:, :most], draws.uniform(most, 2)
    side[waiting] = _sides(options, size[waiting], share[waiting])
    room = (options.size - 2 * EDGE - options.gap) // 2
    within = (jitter[waiting] * (room + 1 - side[waiting])[..., None]).astype(np.int64)
    left[waiting] = EDGE + (quarter[waiting] % 2) * (room + options.gap) + within[..., 0]
    top[waiting] = EDGE + (quarter[waiting] // 2) * (room + options.gap) + within[..., 1]
    return size, side, left, top


def _sides(options: SceneOptions, size: np.ndarray, share: np.ndarray) -> np.ndarray:
    ends = np.array([sides(name, options.size) for name in SIZES])[size]
    return ends[..., 0] + (share * (ends[..., 1] - ends[..., 0] + 1)).astype(np.int64)


def _first_free(
    options: SceneOptions, side: np.ndarray, places: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Corners (left, top) [n, objects, 2] at the first free candidates, and which scenes placed all their objects."""
    room = options.size - 2 * EDGE + 1 - side
    corners = EDGE + (places * room[..., None, None]).astype(np.int64)
    chosen, found = np.zeros((*side.shape, 2), np.int64), np.ones(len(side), bool)
    for m in range(side.shape[1]):
        free = np.ones(corners.shape[:1] + corners.shape[2:3], bool)
        for k in range(m):
            ahead = corners[:, m] >= (chosen[:, k] + side[:, k, None] + options.gap)[:, None]
            behind = corners[:, m] + (side[:, m] + options.gap)[:, None, None] <= chosen[:, k, None]
            free &= (ahead | behind).any(-1) | (k >= count)[:, None]
        first = free.argmax(1)
        chosen[:, m] = np.take_along_axis(corners[:, m], first[:, None, None], axis=1)[:, 0]
        found &= free.any(1) | (m >= count)
    return chosen, found
