"""Scenes as bytes: a ground with anti-aliased shapes on it."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion_jax.data.scenes.composing import Arrangement
from diffusion_jax.data.scenes.draws import Draws
from diffusion_jax.data.scenes.graph import Scene
from diffusion_jax.data.scenes.vocabulary import COLOURS, SHAPES, TEXTURES, stamp

CONTROLS = ("edges", "masks", "depth")


def paint(scenes: Arrangement, sides: tuple[int, int] | None = None) -> UInt8[np.ndarray, "n height width 3"]:
    """The pictures of these scenes; of other `sides`, height and width, where they are as `stretched` has them."""
    options = scenes.options
    ground = np.rint(_grounds(scenes, sides or (options.size, options.size))).astype(np.uint8)
    images = np.repeat(ground[..., None], 3, axis=-1)
    palette = np.array([COLOURS[name] for name in options.colours], np.float32)
    parts = (scenes.count, scenes.shape, scenes.colour, scenes.side, scenes.left, scenes.top)
    for image, count, *objects in zip(images, *(part.tolist() for part in parts), strict=True):
        for _, shape, colour, side, left, top in zip(range(count), *objects, strict=False):
            covered = stamp(options.shapes[shape], side)[..., None]
            under = image[top : top + side, left : left + side]
            under[...] = under + covered * (palette[colour] - under) + np.float32(0.5)
    return images


def stretched(scenes: Arrangement, sides: tuple[int, int]) -> Arrangement:
    """The same scenes in pictures whose shorter side is that of the square: what is where is a share of each side.

    Objects keep their sizes and move apart along the longer side. So every caption stays true: relations, thirds of the
    picture, and which boxes do not overlap are all of one side at a time.
    """
    size = scenes.options.size
    moved = []
    for corner, side in ((scenes.top, sides[0]), (scenes.left, sides[1])):
        centre = (corner + scenes.side / 2) * side / size
        moved.append(np.floor(centre - scenes.side / 2 + 0.5).astype(np.int64))
    return dataclasses.replace(scenes, top=moved[0], left=moved[1])


def masks(scene: Scene) -> Bool[np.ndarray, "objects size size"]:
    """The pixels that each object covers at least half."""
    found = np.zeros((len(scene.objects), scene.picture, scene.picture), bool)
    for mask, one in zip(found, scene.objects, strict=True):
        left, top, right, bottom = one.box
        mask[top:bottom, left:right] = stamp(one.shape, right - left) >= 0.5
    return found


def control_picture(scene: Scene, kind: str) -> UInt8[np.ndarray, "size size 3"]:
    """A control picture, which is exact because the scene is known.

    edges  white where a pixel of an object lies beside a pixel outside it
    masks  every object in the colour that belongs to its shape in the list of all shapes
    depth  the painting order of the objects: the last one, nearest to the eye, is white, the ground black
    """
    owner = np.full((scene.picture, scene.picture), -1)
    for number, covered in enumerate(masks(scene)):
        owner[covered] = number
    found = np.zeros((*owner.shape, 3), np.uint8)
    if kind == "edges":
        around = np.pad(owner, 1, constant_values=-1)
        sides = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
        found[(owner >= 0) & np.any([owner != side for side in sides], axis=0)] = 255
        return found
    for number, one in enumerate(scene.objects):
        place = SHAPES.index(one.shape) + 1
        colour = [255 * (place >> bit & 1) for bit in range(3)] if place < 8 else [128, 128, 64 * (place % 4)]
        found[owner == number] = colour if kind == "masks" else 255 * (number + 1) // len(scene.objects)
    return found


def _grounds(scenes: Arrangement, sides: tuple[int, int]) -> Float[np.ndarray, "n height width"]:
    """Grey levels in 0..255."""
    height, width = sides
    down, across = (np.arange(height) + 0.5)[None, :, None], (np.arange(width) + 0.5)[None, None, :]
    grounds = np.tile(scenes.level[:, None, None], (1, height, width))
    for kind, name in enumerate(TEXTURES):
        rows = np.flatnonzero(scenes.texture == kind)
        if name == "plain" or not len(rows):
            continue
        upright = scenes.upright[rows, None, None]
        contrast, period, phase = (
            values[rows, None, None] for values in (scenes.contrast, scenes.period, scenes.phase)
        )
        if name == "striped":
            pattern = _square_wave(np.where(upright, across, down) / period + phase)
        elif name == "checked":
            pattern = _square_wave(across / period + phase) * _square_wave(down / period + phase)
        elif name == "speckled":
            pattern = 2 * Draws.of(0, 0, scenes.speckle[rows]).uniform(height, width) - 1
        else:
            pattern = 2 * np.where(upright, across / width, down / height) - 1
        grounds[rows] += contrast * pattern
    return grounds


def _square_wave(turns: np.ndarray) -> np.ndarray:
    return np.where(turns % 1 < 0.5, -1.0, 1.0)
