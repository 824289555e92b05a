"""The data set "scenes": every example is made on access, from (options, split, index)."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

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
from diffusion_jax.data.scenes.graph import Requirement, Scene
from diffusion_jax.data.scenes.painting import CONTROLS, control_picture, paint
from diffusion_jax.data.scenes.prompts import PromptSuite
from diffusion_jax.data.scenes.vocabulary import COLOURS, DENSITIES, SHAPES, Colour, Density, Shape
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets
from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name
from diffusion_jax.specs import CONTROL, DataSpec

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
) -> Dataset:
    """Coloured shapes on grey grounds, with captions; the arguments are those of `SceneOptions`.

    Splits: "train"; "validation" and "test", with the same pairs of shape and colour; "held_out", where every picture
      has a
    pair that the others never show. `data_dir` is not used.

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
    info = DatasetInfo(
        name="scenes",
        split=split,
        num_examples=len(source),
        spec=DataSpec(kind="pixels", shape=(size, size, 3)),
        fingerprint=hashlib.sha256(f"{VERSION} {source!r}".encode()).hexdigest(),
        fields=("text",) if control == "none" else ("text", CONTROL),
    )
    return Dataset(info=info, source=source, prompts=PromptSuite(options))
