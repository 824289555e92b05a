"""Pictures with a hole: the part that a network sees, a larger canvas, and pasting of the drawn part.

A network draws pictures of one size, while a picture with a hole may have any size. A *window* with the network's
proportions is cut out around the hole, resized to the network's size, filled, resized back and pasted:

    (1)   result = (1 - mask) picture + mask drawn,        mask in [0, 1]

rounded to bytes. Where the mask is 0 the result has the bytes of the picture, where it is 1 the drawn ones. A grey
value of the mask is a share: a soft mask blends the drawn part into the picture, and everything that is not black is
drawn.
"""

import dataclasses

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from diffusion_jax.errors import UserError

Picture = UInt8[np.ndarray, "height width channels"]
Mask = UInt8[np.ndarray, "height width"]

CONTEXT = 0.25
"""The least margin of the window around the hole on each side, as a share of the hole's side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a picture; it may extend beyond the picture, whose edge is then repeated.

    Attributes:
      left, top: position of its corner, in pixels of the picture; negative beyond the edge.
      width, height: in pixels of the picture.
    """

    left: int
    top: int
    width: int
    height: int

    def cut(self, picture: Picture, height: int, width: int) -> Picture:
        """The window's part of a picture, resized to this height and width (Lanczos) if they differ from its own."""
        rows = np.clip(np.arange(self.top, self.top + self.height), 0, picture.shape[0] - 1)
        columns = np.clip(np.arange(self.left, self.left + self.width), 0, picture.shape[1] - 1)
        return resized(picture[rows][:, columns], height, width)

    def cut_mask(self, mask: Mask, height: int, width: int) -> Mask:
        """255 where any part of a pixel is to be drawn, at this height and width; 0 beyond the picture."""
        top, left = max(-self.top, 0), max(-self.left, 0)
        inside = mask[max(self.top, 0) : self.top + self.height, max(self.left, 0) : self.left + self.width] > 0
        whole = np.zeros((self.height, self.width), np.float32)
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        if whole.shape != (height, width):
            image = PIL.Image.fromarray(whole).resize((width, height), PIL.Image.Resampling.BOX)
            whole = np.asarray(image)
        return np.where(whole > 0, 255, 0).astype(np.uint8)

    def paste(self, drawn: Picture, picture: Picture, mask: Mask) -> Picture:
        """Eq. (1), for the drawn version of the part that `cut` gave."""
        drawn = resized(drawn, self.height, self.width)
        top, left = max(self.top, 0), max(self.left, 0)
        inside = drawn[top - self.top :, left - self.left :][: picture.shape[0] - top, : picture.shape[1] - left]
        whole = picture.copy()
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return blended(picture, whole, mask)


def window_around(mask: Mask, height: int, width: int) -> Window:
    """The part of a picture that a network of this height and width sees, to draw what is not black in the mask.

    It has the proportions of the network. Its scale is that of the picture (a picture smaller than the network's size
    is enlarged), unless the hole with its margin is larger than the network's size: then the window is as large as
    these. The hole is in the middle, as far as the picture allows.

    Raises:
      UserError: the mask is entirely black.
    """
    drawn = mask > 0
    if not drawn.any():
        raise UserError("the mask is all black, so nothing would be drawn: make the part to draw white")
    ends = [(np.flatnonzero(drawn.any(axis))[[0, -1]] + (0, 1)).tolist() for axis in (1, 0)]
    sizes, wanted = mask.shape, (height, width)
    needs = [
        min(most, last - first + 2 * max(1, round(CONTEXT * (last - first))))
        for (first, last), most in zip(ends, sizes, strict=True)
    ]
    native = min(1.0, max(most / side for most, side in zip(sizes, wanted, strict=True)))
    scale = max(native, *(need / side for need, side in zip(needs, wanted, strict=True)))
    found = []
    for (first, last), most, side in zip(ends, sizes, wanted, strict=True):
        own = max(1, int(np.ceil(scale * side - 1e-9)))
        start = (first + last - own) // 2
        found.append((min(max(start, 0), most - own) if own <= most else (most - own) // 2, own))
    (top, own_height), (left, own_width) = found
    return Window(left=left, top=top, width=own_width, height=own_height)


def expanded(picture: Picture, left: int, top: int, right: int, bottom: int) -> tuple[Picture, Mask]:
    """A larger canvas with the picture on it, and a mask that is white on the new part.

    Args:
      picture: the picture, whose edge is repeated over the new part.
      left, top, right, bottom: pixels to add on each side.

    Raises:
      UserError: nothing is added, or a number is negative.
    """
    if min(left, top, right, bottom) < 0 or not any((left, top, right, bottom)):
        raise UserError(f"a canvas grows by pixels on its sides, at least one in all, not by {left}, {top}, {right}, "
                        f"{bottom}")  # fmt: skip
    sides = ((top, bottom), (left, right))
    canvas = np.pad(picture, (*sides, (0, 0)), mode="edge")
    return canvas, np.pad(np.zeros(picture.shape[:2], np.uint8), sides, constant_values=255)


def blended(picture: Picture, drawn: Picture, mask: Mask) -> Picture:
    """Eq. (1) for two pictures of one size: the picture's bytes where the mask is black, the drawn ones where it is
    white."""
    share = mask[..., None].astype(np.float32) / 255
    between = np.rint((1 - share) * picture + share * drawn).astype(np.uint8)
    return np.where(mask[..., None] == 0, picture, np.where(mask[..., None] == 255, drawn, between))


def resized(picture: Picture, height: int, width: int) -> Picture:
    """A picture with this height and width (Lanczos); unchanged if it has them."""
    if picture.shape[:2] == (height, width):
        return picture
    image = PIL.Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    found = np.asarray(image.resize((width, height), PIL.Image.Resampling.LANCZOS))
    return found.reshape(height, width, picture.shape[-1])
