"""Augmentations whose parameters the network receives, so that it learns from them without imitating them.

Karras et al. 2022 (EDM, arXiv:2206.00364, appendix F.2, table 6): each transformation is applied with the same
probability, and the network receives its parameters beside the noise level. In sampling all of them are zero, which
means no augmentation. With c the centre, an output pixel y shows the input at

    x = c + S(1/s) R(w) [R(-r) S(1/a, a) R(r)] (y - c - d)                                                 (1)

    s = 2^{0.2 z}  scaling, z ~ N(0, 1)          a = 2^{0.2 z}  stretching along a random direction r, or r = 0
    w ~ U(-pi, pi) rotation                      d = 0.125 z size  shift, z ~ N(0, I)

after mirroring. The image is reflected at its border, doubled in size by the Symlet-6 filter, sampled bilinearly at
(1), and halved by the same filter, as in the authors' code; reflecting and filtering are one matrix for each axis.

An augmentation takes a batch and random words for each example, so that it depends on nothing else (see `pipeline.py`).
"""

import dataclasses
import functools
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt64
from scipy import ndimage, special

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry

Images = Float[np.ndarray, "batch height width channels"]
WORDS = 16  # random words of 64 bits that an augmentation may use for an example

# Daubechies' least asymmetric wavelet of 6 vanishing moments (1992, table 6.3).
_SYMLET_6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
_MARGIN = len(_SYMLET_6) // 4  # pixels around the output that its last filter reads


class Augmentation(Protocol):
    """Changes images and reports how."""

    @property
    def num_labels(self) -> int:
        """Number of parameters that the network receives for an image; 0: none."""

    def __call__(
        self, images: Images, words: UInt64[np.ndarray, "batch words"]
    ) -> tuple[Images, Float[np.ndarray, "batch labels"]]:
        """Augmented images and their labels, float32; zeros mean no augmentation."""


augmentations: Registry[Augmentation] = Registry("augmentation")


@augmentations.register("none")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAugmentation:
    """Leaves images as they are."""

    num_labels = 0

    def __call__(self, images, words):
        return images, np.zeros((len(images), 0), np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Transformations:
    """The transformations of n images; zeros change nothing.

    Attributes:
      mirror, flip: whether left and right, and top and bottom, are exchanged (0 or 1).
      scale: z of s in (1).
      rotation: w, in radians.
      stretch, direction: z of a, and r in radians.
      shift: (x, y), z of d.
    """

    mirror: Float[np.ndarray, " n"]
    flip: Float[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    rotation: Float[np.ndarray, " n"]
    stretch: Float[np.ndarray, " n"]
    direction: Float[np.ndarray, " n"]
    shift: Float[np.ndarray, "n 2"]

    def matrices(self, size: int) -> Float[np.ndarray, "n 2 3"]:
        """The map (1) of (x, y, 1), coordinates relative to the centre, for images of height and width `size`."""
        linear = _scaling(2.0 ** (-0.2 * self.scale), 2.0 ** (-0.2 * self.scale)) @ _rotation(self.rotation)
        stretch = 2.0 ** (0.2 * self.stretch)
        linear = linear @ _rotation(-self.direction) @ _scaling(1 / stretch, stretch) @ _rotation(self.direction)
        return np.concatenate([linear, -linear @ (0.125 * size * self.shift)[..., None]], axis=-1)

    def labels(self, *, vertical_flip: bool, rotation: bool) -> Float[np.ndarray, "n labels"]:
        """The network's input: the parameters of the transformations in use, with angles as points on a circle."""
        parts = [self.mirror, *([self.flip] if vertical_flip else []), self.scale]
        if rotation:
            parts += [np.cos(self.rotation) - 1, np.sin(self.rotation)]
        parts += [self.stretch * np.cos(self.direction), self.stretch * np.sin(self.direction), *self.shift.T]
        return np.stack(parts, axis=-1).astype(np.float32)


@augmentations.register("edm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EdmAugmentation:
    """EDM's augmentation with the paper's strengths; half of the images are mirrored, whatever the probability.

    Attributes:
      probability: probability of each other transformation; the paper's is 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2.
      vertical_flip, rotation: whether these are used (MeanFlow on CIFAR-10 leaves both out).
    """

    probability: float = 0.12
    vertical_flip: bool = True
    rotation: bool = True

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise UserError(f"the probability of an augmentation is in [0, 1], got {self.probability}")

    @property
    def num_labels(self) -> int:
        return 6 + self.vertical_flip + 2 * self.rotation

    def __call__(self, images, words):
        if images.shape[1] != images.shape[2]:
            raise UserError(f"augmentation 'edm' needs square images, not {images.shape[1]}x{images.shape[2]}")
        chosen = self.draw(words)
        labels = chosen.labels(vertical_flip=self.vertical_flip, rotation=self.rotation)
        return transformed(images, chosen), labels

    def draw(self, words: UInt64[np.ndarray, "n words"]) -> Transformations:
        """The transformations that the random words encode."""
        uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53  # in (0, 1)
        uniforms = iter(uniform.T)

        def gated(draw):
            gate = next(uniforms) < self.probability
            return gate, np.where(gate, draw(next(uniforms)), 0.0)

        def angle(u):
            return (2 * u - 1) * np.pi

        mirror = (next(uniforms) < 0.5).astype(np.float64)
        _, flip = gated(lambda u: (u < 0.5).astype(np.float64))
        _, scale = gated(special.ndtri)
        _, rotation = gated(angle)
        _, stretch = gated(special.ndtri)
        direction = np.where(next(uniforms) < 0.5, angle(next(uniforms)), 0.0)
        shifted, x = gated(special.ndtri)
        y = np.where(shifted, special.ndtri(next(uniforms)), 0.0)
        return Transformations(
            mirror=mirror,
            flip=flip if self.vertical_flip else np.zeros_like(flip),
            scale=scale,
            rotation=rotation if self.rotation else np.zeros_like(rotation),
            stretch=stretch,
            direction=direction,
            shift=np.stack([x, y], axis=-1),
        )


def transformed(images: Images, chosen: Transformations) -> Images:
    """The transformed images; images that are not moved skip the filters, which would return them unchanged."""
    out = np.where((chosen.mirror > 0)[:, None, None, None], images[:, :, ::-1], images)
    out = np.where((chosen.flip > 0)[:, None, None, None], out[:, ::-1], out)
    causes = (chosen.scale, chosen.rotation, chosen.stretch, *chosen.shift.T)
    moved = np.flatnonzero(np.any([cause != 0 for cause in causes], axis=0))
    out[moved] = warp(out[moved], chosen.matrices(images.shape[1])[moved])
    return out


def warp(images: Images, matrices: Float[np.ndarray, "batch 2 3"]) -> Images:
    """Images that show at (x, y) what the given ones show at matrix (x, y, 1); square, with any number of channels.

    Coordinates are in pixels, relative to the centre. The image is mirrored at its border, and is zero beyond its
    mirror image.
    """
    size = images.shape[1]
    doubling, halving = _doubling(size), _halving(size)
    planes = np.moveaxis(images, -1, 1).astype(np.float32)
    fine = doubling @ planes @ doubling.T
    side, points = fine.shape[-1], halving.shape[1]
    axis = np.arange(points) + 0.5 - points / 2
    target = np.stack([*np.meshgrid(axis, axis), np.ones((points, points))]).reshape(3, -1)
    # At twice the size, relative to the centre: the filter's own centre is off by half a fine pixel.
    offset = 2 * matrices[:, :, 2] + 0.5 * matrices[:, :, :2].sum(-1) - 0.5
    source = np.concatenate([matrices[:, :, :2], offset[..., None]], axis=-1) @ target + side / 2 - 0.5
    sampled = np.empty((*planes.shape[:2], points * points), np.float32)
    for image, (x, y), out in zip(fine, source, sampled, strict=True):
        for plane, values in zip(image, out, strict=True):
            ndimage.map_coordinates(plane, (y, x), output=values, order=1, mode="grid-constant")
    warped = halving @ sampled.reshape(*planes.shape[:2], points, points) @ halving.T
    return np.moveaxis(warped, 1, -1).astype(images.dtype)


@functools.lru_cache(maxsize=8)
def _doubling(size: int) -> Float[np.ndarray, "fine size"]:
    """The matrix from a row of pixels to the row reflected on both sides and doubled."""
    reflected = np.concatenate([np.arange(size - 1, 0, -1), np.arange(size), np.arange(size - 2, -1, -1)])
    taps = np.arange(2 * len(reflected))[:, None] - 2 * np.arange(len(reflected)) + 5
    return (_taps(taps) @ np.eye(size)[reflected]).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _halving(size: int) -> Float[np.ndarray, "size fine"]:
    """The matrix from a row of twice the size, with its margin, to `size` pixels."""
    return _taps(np.arange(2 * (size + 2 * _MARGIN)) - 2 * np.arange(size)[:, None] - 1).astype(np.float32)


def _taps(index):
    inside = (index >= 0) & (index < len(_SYMLET_6))
    return np.where(inside, _SYMLET_6[np.clip(index, 0, len(_SYMLET_6) - 1)], 0.0)


def _scaling(x, y):
    zero = np.zeros_like(x)
    return np.stack([np.stack([x, zero], -1), np.stack([zero, y], -1)], -2)


def _rotation(angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
