"""The data set "scenes": every example is made on access, from (options, split, index)."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from diffusion_jax.data.buckets import sides_of
from diffusion_jax.data.scenes.captions import NUMBER_OF_DRAWS, caption
from diffusion_jax.data.scenes.composing import (
    Count,
    HeldOutShare,
    MaxObjects,
    PictureSize,
    SceneOptions,
    check_split,
    compose,
)
from diffusion_jax.data.scenes.draws import Draws
from diffusion_jax.data.scenes.graph import Requirement, Scene
from diffusion_jax.data.scenes.painting import CONTROLS, control_picture, paint, stretched
from diffusion_jax.data.scenes.prompts import PromptSuite
from diffusion_jax.data.scenes.vocabulary import COLOURS, DENSITIES, SHAPES, SPLITS, Colour, Density, Shape
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets
from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name
from diffusion_jax.specs import CONTROL, DataSpec

_SHAPES = 64  # the first stream of the shapes of pictures, beside those of their contents
VERSION = 1
"""The generator's version, which changes with its bytes; part of the fingerprint."""


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """Pictures with captions: {"image": uint8 [size, size, 3], "text": str}."""

    options: SceneOptions
    split: str

    def __len__(self) -> int:
        return self.options.length(self.split)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[Example]:
        """Make many at once, which is cheaper than one by one.

        Raises:
          IndexError: an index is not in 0..len - 1.
        """
        arrangement, captions = self._made(indices)
        images = paint(arrangement)
        return [self._example(image, *made) for image, made in zip(images, captions, strict=True)]

    def _example(self, image: np.ndarray, scene: Scene, text: str, _: Requirement) -> Example:
        return {"image": image, "text": text}

    def texts(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[str]:
        """The captions; nothing is painted."""
        return [text for _, text, _ in self._made(indices)[1]]

    def kinds(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The numbers of the pairs (shape, colour) of their largest objects."""
        shapes, colours = SHAPES, tuple(COLOURS)
        largest = (max(scene.objects, key=lambda one: one.box[2] - one.box[0]) for scene, *_ in self.described(indices))
        numbers = [shapes.index(one.shape) * len(colours) + colours.index(one.colour) for one in largest]
        return np.array(numbers, np.int32)

    def described(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[tuple[Scene, str, Requirement]]:
        """The graphs of these examples, their captions, and what the captions require."""
        return self._made(indices)[1]

    def _made(self, indices):
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"scenes, split {self.split!r}, has {len(self)} examples")
        arrangement, draws = compose(self.options, self.split, indices)
        which, numbers = draws.below(len(DENSITIES)), draws.uniform(NUMBER_OF_DRAWS).tolist()
        captions = []
        for row in range(len(indices)):
            scene = arrangement.scene(row)
            density = DENSITIES[which[row]] if self.options.density == "mixed" else self.options.density
            captions.append((scene, *caption(scene, density, numbers[row])))
        return arrangement, captions


@dataclasses.dataclass(frozen=True)
class SteeredSceneSource(SceneSource):
    """Scenes with control pictures in addition: {"control": uint8 [size, size, 3]}."""

    control: str = "edges"

    def _example(self, image: np.ndarray, scene: Scene, text: str, _: Requirement) -> Example:
        return {"image": image, "text": text, CONTROL: control_picture(scene, self.control)}


@dataclasses.dataclass(frozen=True)
class ShapedSceneSource(SceneSource):
    """Scenes of several shapes: picture i has one of `pictures`, heights and widths, each as likely as the others."""

    pictures: tuple[tuple[int, int], ...] = ()

    def sizes(self) -> Int[np.ndarray, "examples 2"]:
        """Height and width of every picture."""
        return np.array(self.pictures)[self._which(np.arange(len(self)))]

    def __getitems__(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[Example]:
        """Many at once, in their order."""
        found: dict[int, Example] = {}
        for sides, rows, (arrangement, captions) in self._by_shape(indices):
            images = paint(stretched(arrangement, sides), sides)
            made = (self._example(image, *made) for image, made in zip(images, captions, strict=True))
            found.update(zip(rows.tolist(), made, strict=True))
        return [found[row] for row in range(len(found))]

    def described(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[tuple[Scene, str, Requirement]]:
        """As of the squares of which the pictures are stretched; boxes are in their pixels."""
        found: dict[int, tuple[Scene, str, Requirement]] = {}
        for _, rows, (_, captions) in self._by_shape(indices):
            found.update(zip(rows.tolist(), captions, strict=True))
        return [found[row] for row in range(len(found))]

    def texts(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> list[str]:
        return [text for _, text, _ in self.described(indices)]

    def _by_shape(self, indices: Sequence[int] | Int[np.ndarray, " n"]):
        """Shape by shape: the sides, which of the examples have them, and these as squares of the shorter side."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        which = self._which(indices)
        for number, sides in enumerate(self.pictures):
            if (rows := np.flatnonzero(which == number)).size:
                squares = SceneSource(dataclasses.replace(self.options, size=min(sides)), self.split)
                yield sides, rows, squares._made(indices[rows])

    def _which(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        draws = Draws.of(self.options.seed, _SHAPES + SPLITS.index(self.split), indices)
        return draws.below(len(self.pictures))


@datasets.register("scenes", example={"num_examples": 8, "num_test": 4, "size": 24})
def open_scenes(
    *,
    split: str = "train",
    data_dir: str | None = None,
    size: PictureSize = 32,
    max_objects: MaxObjects = 3,
    density: Density = "mixed",
    textured: bool = True,
    held_out: HeldOutShare = 0.125,
    shapes: tuple[Shape, ...] = SHAPES,
    colours: tuple[Colour, ...] = tuple(COLOURS),
    num_examples: Count = 50_000,
    num_test: Count = 2_000,
    seed: int = 0,
    control: Literal["none", "edges", "masks", "depth"] = "none",
    pictures: tuple[str, ...] = (),
) -> Dataset:
    """Coloured shapes on grey grounds, with captions; the arguments are those of `SceneOptions`.

    Splits: "train"; "validation" and "test", with the same pairs of shape and colour; "held_out", where every picture
    has a pair that the others never show. `data_dir` is not used.

    Args:
      size: side of the square pictures in pixels.
      max_objects: most objects of a scene.
      density: how much captions say.
      textured: whether half of the grounds have a texture.
      held_out: share of the pairs (shape, colour) that only the split "held_out" shows.
      shapes, colours: names of the existing ones.
      num_examples: examples of the split "train".
      num_test: examples of every other split.
      control: control pictures, computed exactly from each scene: "edges" of its objects, "masks" in colours by shape,
        or "depth", the painting order of its objects.
      pictures: heights and widths such as "192x320", each as likely as the others, for `data.buckets`; () for squares.

    Raises:
      UserError: see `SceneOptions`; or an unknown split.
    """
    options = SceneOptions(
        size=size,
        max_objects=max_objects,
        density=density,
        textured=textured,
        held_out=held_out,
        shapes=shapes,
        colours=colours,
        num_examples=num_examples,
        num_test=num_test,
        seed=seed,
    )
    check_split(options, split)
    if control not in ("none", *CONTROLS):
        raise UserError(unknown_name("kind of control picture", str(control), ["none", *CONTROLS]))
    source = SceneSource(options, split) if control == "none" else SteeredSceneSource(options, split, control)
    sizes = None
    if pictures:
        shaped = ShapedSceneSource(options, split, _shapes(pictures, control))
        source, sizes = shaped, shaped.sizes
    info = DatasetInfo(
        name="scenes",
        split=split,
        num_examples=len(source),
        spec=DataSpec(kind="pixels", shape=(size, size, 3)),
        fingerprint=hashlib.sha256(f"{VERSION} {source!r}".encode()).hexdigest(),
        fields=("text",) if control == "none" else ("text", CONTROL),
    )
    return Dataset(info=info, source=source, prompts=PromptSuite(options), sizes=sizes, kinds=source.kinds)


def _shapes(pictures: Sequence[str], control: str) -> tuple[tuple[int, int], ...]:
    if control != "none":
        raise UserError("dataset 'scenes': control pictures need square scenes: leave out pictures, or control")
    found = sides_of(pictures, "dataset 'scenes': pictures")
    for sides in found:
        if min(sides) < 24 or max(sides) > 2048:
            raise UserError(f"dataset 'scenes': pictures have sides of 24 to 2048 pixels, not {sides[0]}x{sides[1]}")
    return found
