"""Judges of edits: was the instruction carried out, did the rest stay, and did the picture move?

    done         a reader of scenes, which makes no mistake on true ones, finds what the instruction requires
    untouched    peak signal-to-noise ratio of the pixels that the true edit leaves as they were, in dB
    moved        shift in pixels, and zoom, of one picture against another, on some of its pixels

The shift is found from a picture's first-order expansion (Lucas & Kanade 1981, IJCAI, extended by a scale). With the
gradient (gx, gy) of the reference R and coordinates (x, y) from the middle, it is the least squares solution of

    (1)   I - R = -(gx dx + gy dy + (gx x + gy y) z)

over pixels and channels, repeated a few times with the reference resampled in between. It is accurate for shifts up to
about a pixel, the most that an edit may be off by. Flat regions carry no information; the result for a flat picture is
nan.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion_jax.data.scenes.edits import Edit
from diffusion_jax.data.scenes.reading import read
from diffusion_jax.data.scenes.vocabulary import GROUNDS
from diffusion_jax.errors import UserError

Pictures = UInt8[np.ndarray, "n height width 3"]
_GREY = 12  # of 255: a pixel with less chroma belongs to the background
_ROUNDS = 4  # rounds of eq. (1)
MOST_DB = 99.0
"""The value for equal pixels, whose ratio is infinite."""


def done(images: Pictures, edits: Sequence[Edit]) -> Bool[np.ndarray, " n"]:
    """Whether each picture is what its instruction makes of the one before: objects, places and background.

    Raises:
      UserError: pictures that the reader does not accept, or another number of edits.
    """
    if len(images) != len(edits):
        raise UserError(f"{len(images)} pictures for {len(edits)} edits: give one for each")
    seen = zip(images, read(images), edits, strict=True)
    return np.array(
        [edit.requirement.holds(scene) and ground(image) == edit.after.ground for image, scene, edit in seen]
    )


def ground(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """The name of the background nearest to the grey pixels, by their median; "" if none is grey."""
    grey = image[np.ptp(image, axis=-1) < _GREY]
    if not len(grey):
        return ""
    level = float(np.median(grey))
    return min(GROUNDS, key=lambda name: max(GROUNDS[name][0] - level, level - GROUNDS[name][1]))


def untouched(before: Pictures, after: Pictures) -> Bool[np.ndarray, "n height width"]:
    """The pixels that the true edits leave unchanged."""
    return (before == after).all(-1)


def kept(images: Pictures, before: Pictures, where: Bool[np.ndarray, "n height width"]) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of these pixels in dB, at most `MOST_DB`; nan if there are none."""
    errors = (images.astype(np.float64) - before) ** 2
    found = []
    for error, chosen in zip(errors, where, strict=True):
        mean = error[chosen].mean() if chosen.any() else np.nan
        found.append(MOST_DB if mean == 0 else np.minimum(MOST_DB, 10 * np.log10(255**2 / mean)))
    return np.array(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """How far a picture has moved relative to another: to the right and down in pixels, and the factor of its size."""

    right: float
    down: float
    zoom: float

    @property
    def offset(self) -> float:
        """The length of the shift in pixels."""
        return float(np.hypot(self.right, self.down))


def moved(
    image: UInt8[np.ndarray, "height width channels"],
    reference: UInt8[np.ndarray, "height width channels"],
    where: Bool[np.ndarray, "height width"] | None = None,
) -> Motion:
    """The motion of a picture relative to a reference, eq. (1), from the pixels `where`, by default all."""
    from scipy import ndimage

    seen, still = image.astype(np.float64), reference.astype(np.float64)
    height, width = still.shape[:2]
    inner = np.zeros((height, width), bool)
    inner[2:-2, 2:-2] = True
    chosen = inner if where is None else inner & ndimage.binary_erosion(where, np.ones((3, 3)), border_value=1)
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    total = np.zeros(3)
    for _ in range(_ROUNDS):
        right, down, zoom = total
        source = [(y - down) / (1 + zoom) + (height - 1) / 2, (x - right) / (1 + zoom) + (width - 1) / 2]
        warped = np.stack(
            [ndimage.map_coordinates(still[..., c], source, order=3, mode="nearest") for c in range(still.shape[-1])],
            axis=-1,
        )
        down_slope, across_slope = np.gradient(warped, axis=(0, 1))
        columns = (across_slope, down_slope, across_slope * x[..., None] + down_slope * y[..., None])
        design = -np.stack([column[chosen].ravel() for column in columns], axis=-1)
        if not len(design) or np.linalg.matrix_rank(design, tol=1e-6) < 3:
            return Motion(right=np.nan, down=np.nan, zoom=np.nan)
        step, *_ = np.linalg.lstsq(design, (seen - warped)[chosen].ravel(), rcond=None)
        total = total + step
    return Motion(right=float(total[0]), down=float(total[1]), zoom=float(1 + total[2]))
