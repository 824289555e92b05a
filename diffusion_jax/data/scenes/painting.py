"""Scenes as bytes: a ground, and on it the shapes, whose edges are anti-aliased."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion_jax.data.scenes.composing import Arrangement
from diffusion_jax.data.scenes.draws import Draws
from diffusion_jax.data.scenes.graph import Scene
from diffusion_jax.data.scenes.vocabulary import COLOURS, TEXTURES, stamp


def paint(scenes: Arrangement) -> UInt8[np.ndarray, "n size size 3"]:
    """The pictures of these scenes."""
    options = scenes.options
    ground = np.rint(_grounds(scenes)).astype(np.uint8)
    images = np.repeat(ground[..., None], 3, axis=-1)
    palette = np.array([COLOURS[name] for name in options.colours], np.float32)
    parts = (scenes.count, scenes.shape, scenes.colour, scenes.side, scenes.left, scenes.top)
    for image, count, *objects in zip(images, *(part.tolist() for part in parts), strict=True):
        for _, shape, colour, side, left, top in zip(range(count), *objects, strict=False):
            covered = stamp(options.shapes[shape], side)[..., None]
            under = image[top : top + side, left : left + side]
            under[...] = under + covered * (palette[colour] - under) + np.float32(0.5)
    return images


def masks(scene: Scene) -> Bool[np.ndarray, "objects size size"]:
    """The pixels of which each object covers half or more."""
    found = np.zeros((len(scene.objects), scene.picture, scene.picture), bool)
    for mask, one in zip(found, scene.objects, strict=True):
        left, top, right, bottom = one.box
        mask[top:bottom, left:right] = stamp(one.shape, right - left) >= 0.5
    return found


def _grounds(scenes: Arrangement) -> Float[np.ndarray, "n size size"]:
    """Grey levels in 0..255."""
    size = scenes.options.size
    where = np.arange(size) + 0.5
    grounds = np.tile(scenes.level[:, None, None], (1, size, size))
    for kind, name in enumerate(TEXTURES):
        rows = np.flatnonzero(scenes.texture == kind)
        if name == "plain" or not len(rows):
            continue
        upright = scenes.upright[rows, None, None]
        contrast, period, phase = (
            values[rows, None, None] for values in (scenes.contrast, scenes.period, scenes.phase)
        )
        across, down = where[None, None, :], where[None, :, None]
        if name == "striped":
            pattern = _square_wave(np.where(upright, across, down) / period + phase)
        elif name == "checked":
            pattern = _square_wave(across / period + phase) * _square_wave(down / period + phase)
        elif name == "speckled":
            pattern = 2 * Draws.of(0, 0, scenes.speckle[rows]).uniform(size, size) - 1
        else:
            pattern = 2 * np.where(upright, across, down) / size - 1
        grounds[rows] += contrast * pattern
    return grounds


def _square_wave(turns: np.ndarray) -> np.ndarray:
    return np.where(turns % 1 < 0.5, -1.0, 1.0)
