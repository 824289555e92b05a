"""Pairs of scenes that differ by one edit, with its instruction; both pictures are known exactly.

    add        "add a small blue ring at the top left"        resize   "make the red star large"
    remove     "take the red star away"                       ground   "give it a dark ground"
    recolour   "make the star green"                          nothing  "leave everything as it is"
    move       "move the red star to the left"
    replace    "turn the red star into a blue ring"

An instruction determines the picture after it. Anything that is added or moved is placed in the middle of its cell of
thirds, as far as the edge allows, and sizes are the middle ones of their names. An object is called by its shape if
that is unique; otherwise, or half of the time, also by its colour. An object with a twin is not mentioned. All other
bytes stay.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8

from diffusion_jax.data.scenes.captions import SIZE_WORDS, Choices, named, place_words, the, wanted_of
from diffusion_jax.data.scenes.composing import (
    EDGE,
    Arrangement,
    Count,
    HeldOutShare,
    MaxObjects,
    PictureSize,
    SceneOptions,
    check_split,
    compose,
    held_out_pairs,
    training_pairs,
)
from diffusion_jax.data.scenes.draws import Draws
from diffusion_jax.data.scenes.graph import Requirement, Scene, Wanted, place_of
from diffusion_jax.data.scenes.painting import paint
from diffusion_jax.data.scenes.vocabulary import COLOURS, GROUNDS, SHAPES, SIZES, Colour, Shape, sides
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets
from diffusion_jax.errors import UserError
from diffusion_jax.specs import DataSpec

EditKind = Literal["add", "remove", "recolour", "move", "replace", "resize", "ground", "nothing"]
EDITS: tuple[EditKind, ...] = ("add", "remove", "recolour", "move", "replace", "resize", "ground", "nothing")
VERSION = 1
"""The generator's version, which changes with its bytes; part of the fingerprint."""
_DRAWS = 40  # random numbers of one edit
_WORDINGS: dict[EditKind, tuple[str, ...]] = {
    "add": ("add {thing} {place}", "draw {thing} {place}", "put {thing} {place}"),
    "remove": ("remove {one}", "take {one} away", "erase {one}", "delete {one}"),
    "recolour": ("make {one} {colour}", "paint {one} {colour}", "change the colour of {one} to {colour}"),
    "move": ("move {one} to the {side}", "shift {one} to the {side}", "put {one} at the {side}"),
    "replace": ("replace {one} with {thing}", "turn {one} into {thing}", "swap {one} for {thing}"),
    "resize": ("make {one} {size}", "let {one} be {size}", "change the size of {one} to {size}"),
    "ground": ("make the ground {ground}", "change the ground to {ground}", "give it a {ground} ground"),
    "nothing": ("change nothing", "leave everything as it is", "keep the picture as it is"),
}
Pictures = UInt8[np.ndarray, "n size size 3"]
_SIDES = {"left": (0, 0), "right": (0, 2), "top": (1, 0), "bottom": (1, 2)}  # (axis, cell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit.

    Attributes:
      kind: one of `EDITS`.
      instruction: the instruction.
      before, after: the graphs of both pictures.
      requirement: what the picture after it must show: every object with its colour and place, and the size if the
        instruction asks for it.
    """

    kind: EditKind
    instruction: str
    before: Scene
    after: Scene
    requirement: Requirement


@dataclasses.dataclass(frozen=True)
class EditSource:
    """Pairs with instructions: {"source": uint8 [size, size, 3], "image": the same after the edit, "text": str}."""

    options: SceneOptions
    split: str
    kinds: tuple[EditKind, ...] = EDITS

    def __len__(self) -> int:
        return self.options.length(self.split)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[Example]:
        """Read many at once; raises IndexError if an index is not in 0..len - 1."""
        before, after, edits = self._made(indices)
        pairs = zip(paint(before), paint(after), edits, strict=True)
        return [{"image": image, "source": source, "text": edit.instruction} for source, image, edit in pairs]

    def texts(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[str]:
        """The instructions; nothing is painted."""
        return [edit.instruction for edit in self.described(indices)]

    def described(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[Edit]:
        """Descriptions of these edits."""
        return self._made(indices)[2]

    def _made(self, indices) -> tuple[Arrangement, Arrangement, list[Edit]]:
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"scene_edits, split {self.split!r}, has {len(self)} examples")
        before, draws = compose(self.options, self.split, indices)
        after, edits = self._edited(before, draws)
        return before, after, edits

    def _edited(self, before: Arrangement, draws: Draws) -> tuple[Arrangement, list[Edit]]:
        numbers = draws.uniform(_DRAWS).tolist()
        names = [field.name for field in dataclasses.fields(before) if field.name != "options"]
        after = dataclasses.replace(before, **{name: getattr(before, name).copy() for name in names})
        pairs = held_out_pairs(self.options) if self.split == "held_out" else training_pairs(self.options)
        edits = [
            _Editor(before, after, row, Choices(iter(numbers[row])), pairs).edit(self.kinds)
            for row in range(len(before))
        ]
        return after, edits

    def sessions(
        self, indices: Sequence[int] | Int[np.ndarray, " n"], turns: int
    ) -> tuple[Pictures, list[tuple[list[Edit], Pictures]]]:
        """The pictures before, and for each turn the edits and the true pictures after them.

        The first turn is that of `described`.
        """
        scenes, draws = compose(self.options, self.split, np.asarray(indices, np.int64).reshape(-1))
        first, found = paint(scenes), []
        for _ in range(turns):
            scenes, edits = self._edited(scenes, draws)
            found.append((edits, paint(scenes)))
        return first, found


@dataclasses.dataclass(frozen=True)
class _Editor:
    """Changes one row of an arrangement; `pairs` are the shapes and colours allowed for new objects."""

    before: Arrangement
    after: Arrangement
    row: int
    choose: Choices
    pairs: np.ndarray

    def edit(self, kinds: Sequence[EditKind]) -> Edit:
        """The first of the kinds, in random order, that is possible in the scene."""
        kinds, scene = list(kinds), self.before.scene(self.row)
        while True:
            kind = kinds.pop(int(next(self.choose.numbers) * len(kinds))) if kinds else "nothing"
            said = getattr(self, f"_{kind}")(scene)
            if said is not None:
                break
        after = self.after.scene(self.row)
        wanted = tuple(
            dataclasses.replace(wanted_of(one), place=place_of(one, after.picture), size=self._size(kind, one, scene))
            for one in after.objects
        )
        instruction = self.choose.one_of(_WORDINGS[kind]).format(**said)
        return Edit(
            kind=kind, instruction=instruction, before=scene, after=after, requirement=Requirement(objects=wanted)
        )

    def _size(self, kind, one, scene):
        """The requested size, for the object that has it."""
        return one.size if kind == "resize" and one not in scene.objects else None

    def _named(self, scene: Scene) -> list[int]:
        """The objects that words can distinguish from the others."""
        kinds = [(one.shape, one.colour) for one in scene.objects]
        return [m for m, kind in enumerate(kinds) if kinds.count(kind) == 1]

    def _words(self, scene: Scene, m: int) -> str:
        alone = sum(one.shape == scene.objects[m].shape for one in scene.objects) == 1
        return the(wanted_of(scene.objects[m], colours=not (alone and self.choose.happens(0.5))))

    def _some(self, scene: Scene) -> int | None:
        known = self._named(scene)
        return self.choose.one_of(known) if known else None

    def _is_free(self, box: tuple[int, int, int], but: int | None) -> bool:
        """Whether a box (left, top, side) keeps its distance from all objects but one."""
        left, top, side = box
        gap, most = self.before.options.gap, self.before.options.size
        if min(left, top) < EDGE or max(left, top) + side > most - EDGE:
            return False
        for m in range(self.before.count[self.row]):
            other, ahead, across = (int(v[self.row, m]) for v in (self.before.side, self.before.left, self.before.top))
            apart = left >= ahead + other + gap or left + side + gap <= ahead
            apart |= top >= across + other + gap or top + side + gap <= across
            if m != but and not apart:
                return False
        return True

    def _centred(self, cell: int, side: int) -> int:
        """Where a box of this side begins if it is centred in a third."""
        most = self.before.options.size
        return min(max(round((cell + 0.5) / 3 * most - side / 2), EDGE), most - EDGE - side)

    def _set(self, m: int, **values: int) -> None:
        for name, value in values.items():
            getattr(self.after, name)[self.row, m] = value

    def _thing(self, pair: np.ndarray, adjective: str = "") -> str:
        options = self.before.options
        wanted = Wanted(shape=options.shapes[pair[0]], colour=options.colours[pair[1]])
        return named(wanted, adjective=adjective)

    def _add(self, scene):
        m, options = len(scene.objects), self.before.options
        if m == options.max_objects:
            return None
        size, pair = int(next(self.choose.numbers) * len(SIZES)), self.choose.one_of(self.pairs)
        cells = [(column, row) for column in range(3) for row in range(3)]
        for _ in range(4):
            cell = self.choose.one_of(cells)
            side = middle(tuple(SIZES)[size], options.size)
            left, top = (self._centred(third, side) for third in cell)
            if self._is_free((left, top, side), None):
                break
            size = max(size - 1, 0)
        else:
            return None
        self._set(m, shape=pair[0], colour=pair[1], size=size, side=side, left=left, top=top)
        self.after.count[self.row] += 1
        words = self.choose.one_of(SIZE_WORDS[tuple(SIZES)[size]])
        return {"thing": self._thing(pair, words), "place": place_words(cell)}

    def _remove(self, scene):
        m = self._some(scene)
        if m is None or len(scene.objects) == 1:
            return None
        for values in (
            self.after.shape,
            self.after.colour,
            self.after.size,
            self.after.side,
            self.after.left,
            self.after.top,
        ):
            values[self.row, m:-1] = values[self.row, m + 1 :].copy()
        self.after.count[self.row] -= 1
        return {"one": self._words(scene, m)}

    def _recolour(self, scene):
        m = self._some(scene)
        if m is None:
            return None
        shape, colour = self.before.shape[self.row, m], self.before.colour[self.row, m]
        others = [pair[1] for pair in self.pairs if pair[0] == shape and pair[1] != colour]
        if not others:
            return None
        new = self.choose.one_of(others)
        self._set(m, colour=new)
        return {"one": self._words(scene, m), "colour": self.before.options.colours[new]}

    def _move(self, scene):
        m = self._some(scene)
        if m is None:
            return None
        side = int(self.before.side[self.row, m])
        corner = [int(self.before.left[self.row, m]), int(self.before.top[self.row, m])]
        place = place_of(scene.objects[m], scene.picture)
        free = []
        for name, (axis, cell) in _SIDES.items():
            there = list(corner)
            there[axis] = self._centred(cell, side)
            if place[axis] != cell and self._is_free((*there, side), m):
                free.append((name, there))
        if not free:
            return None
        name, (left, top) = self.choose.one_of(free)
        self._set(m, left=left, top=top)
        moved = place_of(self.after.scene(self.row).objects[m], scene.picture)
        if Wanted(place=moved).fits(scene.objects[m], scene.picture):  # too near to be told from where it was
            self._set(m, left=corner[0], top=corner[1])
            return None
        return {"one": self._words(scene, m), "side": name}

    def _replace(self, scene):
        m = self._some(scene)
        if m is None:
            return None
        shape = self.before.shape[self.row, m]
        pair = self.choose.one_of([pair for pair in self.pairs if pair[0] != shape] or [None])
        if pair is None:
            return None
        self._set(m, shape=pair[0], colour=pair[1])
        return {"one": self._words(scene, m), "thing": self._thing(pair)}

    def _resize(self, scene):
        m = self._some(scene)
        if m is None:
            return None
        own, options = int(self.before.side[self.row, m]), self.before.options
        corner = (int(self.before.left[self.row, m]), int(self.before.top[self.row, m]))
        free = []
        for number, size in enumerate(SIZES):
            side = middle(size, options.size)
            left, top = (min(max(at + (own - side) // 2, EDGE), options.size - EDGE - side) for at in corner)
            if number != self.before.size[self.row, m] and self._is_free((left, top, side), m):
                free.append((number, side, left, top))
        if not free:
            return None
        number, side, left, top = self.choose.one_of(free)
        self._set(m, size=number, side=side, left=left, top=top)
        return {"one": self._words(scene, m), "size": self.choose.one_of(SIZE_WORDS[tuple(SIZES)[number]])}

    def _ground(self, scene):
        new = self.choose.one_of([name for name in GROUNDS if name != scene.ground])
        self.after.ground[self.row] = tuple(GROUNDS).index(new)
        self.after.level[self.row] = sum(GROUNDS[new]) / 2
        return {"ground": new}

    def _nothing(self, scene):
        return {}


def middle(size: str, picture: int) -> int:
    """The middle side in pixels of boxes of a size."""
    return sum(sides(size, picture)) // 2


@datasets.register("scene_edits", example={"num_examples": 8, "num_test": 4, "size": 24})
def open_scene_edits(
    *,
    split: str = "train",
    data_dir: str | None = None,
    size: PictureSize = 32,
    max_objects: MaxObjects = 3,
    textured: bool = True,
    held_out: HeldOutShare = 0.125,
    shapes: tuple[Shape, ...] = SHAPES,
    colours: tuple[Colour, ...] = tuple(COLOURS),
    kinds: tuple[EditKind, ...] = EDITS,
    num_examples: Count = 50_000,
    num_test: Count = 2_000,
    seed: int = 0,
) -> Dataset:
    """Scenes before and after an edit, with the instruction; the other arguments are those of `SceneOptions`.

    Splits are those of the data set scenes: new objects in the split "held_out" have pairs of shape and colour that the
    other splits never show. `data_dir` is not used.

    Args:
      size: side of the square pictures in pixels.
      max_objects: most objects of a scene.
      textured: whether half of the grounds have a texture.
      held_out: share of the pairs (shape, colour) that only the split "held_out" shows.
      shapes, colours: names of the existing ones.
      kinds: names of the edits to use; if none is possible in a scene, nothing is changed.
      num_examples: examples of the split "train".
      num_test: examples of every other split.

    Raises:
      UserError: see `SceneOptions`; an unknown split, or a kind named twice or none.
    """
    options = SceneOptions(
        size=size,
        max_objects=max_objects,
        textured=textured,
        held_out=held_out,
        shapes=shapes,
        colours=colours,
        num_examples=num_examples,
        num_test=num_test,
        seed=seed,
    )
    if not kinds or len(set(kinds)) < len(kinds):
        raise UserError("dataset 'scene_edits': kinds must be one or several names, each once")
    check_split(options, split)
    source = EditSource(options, split, kinds)
    info = DatasetInfo(
        name="scene_edits",
        split=split,
        num_examples=len(source),
        spec=DataSpec(kind="pixels", shape=(size, size, 3)),
        fingerprint=hashlib.sha256(f"{VERSION} {source!r}".encode()).hexdigest(),
        fields=("text", "source"),
    )
    return Dataset(info=info, source=source, edits=source)
