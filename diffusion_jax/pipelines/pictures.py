"""Pictures and masks as a pipeline takes and returns them, after diffusers' VaeImageProcessor.

A picture is a PIL image, or an array [height, width, 3] of bytes or of numbers in [0, 1]; several are a list or an
array with one more axis.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from diffusion_jax.data.model_pictures import codec_pixels, mask_pixels
from diffusion_jax.errors import UserError

Box = tuple[int, int, int, int]


def listed(pictures: Any, what: str) -> list[Image.Image]:
    """Pictures as PIL images.

    Raises:
      UserError: something is not a picture.
    """
    several = isinstance(pictures, list | tuple) or (isinstance(pictures, np.ndarray) and pictures.ndim == 4)
    return [_image(picture, what) for picture in (pictures if several else [pictures])]


def _image(picture: Any, what: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    array = np.asarray(picture)
    if array.dtype.kind == "f":
        if array.size and (not np.isfinite(array).all() or array.min() < 0 or array.max() > 1):
            raise UserError(f"{what} has numbers outside of [0, 1]: give bytes, or numbers from 0 to 1")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise UserError(f"{what} must be a picture [height, width, 3], it is {array.dtype} {list(array.shape)}")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def pixels(images: Sequence[Image.Image], height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Pictures as float32 [n, height, width, 3] in [-1, 1], resized by Lanczos; with a box, only that part of them."""
    return codec_pixels([_boxed(image.convert("RGB"), height, width, box) for image in images], height, width)


def masks(images: Sequence[Image.Image], height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Masks as float32 [n, height, width, 1], 1 where they are more white than black."""
    return mask_pixels([_boxed(image.convert("L"), height, width, box) for image in images], height, width)


def _boxed(image: Image.Image, height: int, width: int, box: Box | None) -> np.ndarray:
    return np.asarray(image if box is None else _filled(image.crop(box), height, width))


def _filled(image: Image.Image, height: int, width: int) -> Image.Image:
    """The whole image in the middle, with its edges stretched over the remaining area."""
    wanted, own = width / height, image.width / image.height
    inner_width = width if wanted < own else image.width * height // image.height
    inner_height = height if wanted >= own else image.height * width // image.width
    inner = image.resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    found = Image.new(image.mode, (width, height))
    found.paste(inner, (left, top))
    if wanted < own and top:
        found.paste(inner.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        found.paste(inner.resize((width, top), box=(0, inner.height, width, inner.height)), (0, top + inner_height))
    elif wanted > own and left:
        found.paste(inner.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        found.paste(inner.resize((left, height), box=(inner.width, 0, inner.width, height)), (left + inner_width, 0))
    return found


def crop_box(mask: Image.Image, height: int, width: int, padding: int) -> Box:
    """The box that holds the white part of a mask and `padding` around it, with the ratio of height and width.

    Raises:
      UserError: the mask is black.
    """
    white = np.asarray(mask.convert("L")) > 0
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    if not len(rows):
        raise UserError("padding_mask_crop needs a white part of the mask, but the mask is black")
    ends = [max(columns[0] - padding, 0), max(rows[0] - padding, 0)]
    ends += [min(columns[-1] + 1 + padding, mask.width), min(rows[-1] + 1 + padding, mask.height)]
    left, top, right, bottom = map(int, ends)
    own, wanted = (right - left) / (bottom - top), width / height
    if own > wanted:
        top, bottom = _grown(top, bottom, int((right - left) / wanted - (bottom - top)), mask.height)
    else:
        left, right = _grown(left, right, int((bottom - top) * wanted - (right - left)), mask.width)
    return left, top, right, bottom


def _grown(low: int, high: int, by: int, most: int) -> tuple[int, int]:
    low, high = low - by // 2, high + by - by // 2
    if high >= most:
        low, high = low - (high - most), most
    if low < 0:
        low, high = 0, high - low
    return low, min(high, most)


def overlaid(drawn: Image.Image, original: Image.Image, mask: Image.Image, box: Box) -> Image.Image:
    """The original with the drawn box pasted where the mask is white."""
    kept = Image.new("RGBa", original.size)
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    left, top, right, bottom = box
    base = Image.new("RGBA", original.size)
    base.paste(_cropped(drawn, bottom - top, right - left), (left, top))
    found = base.convert("RGB").convert("RGBA")
    found.alpha_composite(kept.convert("RGBA"))
    return found.convert("RGB")


def _cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    """An image that fills height and width, cut at the middle."""
    wanted, own = width / height, image.width / image.height
    inner_width = width if wanted > own else image.width * height // image.height
    inner_height = height if wanted <= own else image.height * width // image.width
    inner = image.resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    found = Image.new("RGB", (width, height))
    found.paste(inner, (width // 2 - inner_width // 2, height // 2 - inner_height // 2))
    return found


def as_images(pictures: Float[np.ndarray, "n height width 3"]) -> list[Image.Image]:
    """Numbers in [0, 1] as PIL images."""
    return [Image.fromarray(picture) for picture in np.round(np.asarray(pictures) * 255).astype(np.uint8)]
