"""Image transforms in numpy and PIL: crops to a target size, flips, and the map between uint8 and [-1, 1].

Crops are deterministic, image [height, width, channels] -> image; they run once per example if the data fits into
memory. Published FID references differ in the crop (test a model with its own):
  adm   "center_crop_arr" of Dhariwal & Nichol 2021 (arXiv:2105.05233), also DiT: halve with a box filter while the
        short side is at least twice the target, resize the short side to the target (bicubic), cut the centre;
  edm   "center-crop" of Karras et al. 2022 (arXiv:2206.00364): cut the central square, resize it (Lanczos).
The random transform, a flip, takes a batch and 64 random bits per example, so that it depends on nothing else.
"""

import dataclasses
from typing import Protocol

import numpy as np
import PIL.Image
from jaxtyping import Float, Shaped, UInt8, UInt64

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.specs import DataSpec

Image = UInt8[np.ndarray, "height width channels"]


class Crop(Protocol):
    """Brings any image to size x size; leaves an image of that size as it is.

    `start`, which only networks with this condition need, gives the number of pixels cut off at the top and left of the
    resized image, for the height and width of the original image.
    """

    size: int | None

    def __call__(self, image: Image) -> Image: ...

    def start(self, height: int, width: int) -> tuple[int, int]: ...


crops: Registry[Crop] = Registry("crop")


@crops.register("none")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoCrop:
    """Leaves images as they are; with a `size`, refuses any other."""

    size: int | None = None

    def __call__(self, image: Image) -> Image:
        if self.size is not None and image.shape[:2] != (self.size, self.size):
            raise UserError(
                f"an image is {image.shape[0]}x{image.shape[1]}, not {self.size}x{self.size}: "
                f"choose a crop ({', '.join(name for name in crops if name != 'none')})"
            )
        return image

    def start(self, height: int, width: int) -> tuple[int, int]:
        return 0, 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cover:
    """Brings any image to height x width: box halving and bicubic until it just covers them, and the middle of it."""

    height: int
    width: int

    def __call__(self, image: Image) -> Image:
        if image.shape[:2] == (self.height, self.width):
            return image
        picture = to_pil(image)
        halved, (height, width) = self._sizes(*image.shape[:2])
        for shape in halved:
            picture = picture.resize(shape[::-1], PIL.Image.Resampling.BOX)
        resized = from_pil(picture.resize((width, height), PIL.Image.Resampling.BICUBIC))
        top, left = self.start(*image.shape[:2])
        return resized[top : top + self.height, left : left + self.width]

    def start(self, height: int, width: int) -> tuple[int, int]:
        height, width = self._sizes(height, width)[1]
        return (height - self.height) // 2, (width - self.width) // 2

    def _sizes(self, height: int, width: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Heights and widths of the halved images, and of the resized one."""
        halved = []
        while height >= 2 * self.height and width >= 2 * self.width:
            height, width = height // 2, width // 2
            halved.append((height, width))
        scale = max(self.height / height, self.width / width)
        return halved, (max(self.height, round(height * scale)), max(self.width, round(width * scale)))


@crops.register("adm", example={"size": 4})
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdmCrop:
    """Box halving, bicubic to the short side, central square (ADM, DiT, EDM2)."""

    size: int

    def __call__(self, image: Image) -> Image:
        return self._cover(image)

    def start(self, height: int, width: int) -> tuple[int, int]:
        return self._cover.start(height, width)

    @property
    def _cover(self) -> Cover:
        return Cover(height=self.size, width=self.size)


@crops.register("edm", example={"size": 4})
@dataclasses.dataclass(frozen=True, kw_only=True)
class EdmCrop:
    """Central square, then Lanczos (EDM)."""

    size: int

    def __call__(self, image: Image) -> Image:
        if image.shape[:2] == (self.size, self.size):
            return image
        height, width = image.shape[:2]
        side = min(height, width)
        square = image[(height - side) // 2 : (height + side) // 2, (width - side) // 2 : (width + side) // 2]
        return from_pil(to_pil(square).resize((self.size, self.size), PIL.Image.Resampling.LANCZOS))

    def start(self, height: int, width: int) -> tuple[int, int]:
        scale = self.size / min(height, width)
        return round((height - min(height, width)) // 2 * scale), round((width - min(height, width)) // 2 * scale)


@crops.register("pad", example={"size": 12})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pad:
    """Adds a black border of equal width on all sides (28 -> 32 for MNIST)."""

    size: int

    def __call__(self, image: Image) -> Image:
        missing = [self.size - side for side in image.shape[:2]]
        if min(missing) < 0:
            raise UserError(f"crop 'pad' to {self.size}: an image of {image.shape[0]}x{image.shape[1]} is larger")
        return np.pad(image, [*((m // 2, m - m // 2) for m in missing), (0, 0)])

    def start(self, height: int, width: int) -> tuple[int, int]:
        return 0, 0


def to_pil(image: Image) -> PIL.Image.Image:
    """A grey ([h, w, 1]) or RGB ([h, w, 3]) PIL image."""
    if image.dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise UserError(f"crops need uint8 images of 1 or 3 channels, not {image.dtype} of shape {image.shape}")
    return PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(picture: PIL.Image.Image) -> Image:
    """The array [h, w, 1 or 3] of a PIL image of mode L or RGB."""
    array = np.asarray(picture, np.uint8)
    return array[..., None] if array.ndim == 2 else array


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey to RGB by repetition, RGB to grey by ITU-R 601-2 luma (PIL), alpha on white; unchanged if it fits."""
    if image.shape[-1] == channels or image.dtype != np.uint8:
        return image
    if channels == 3 and image.shape[-1] == 1:
        return np.repeat(image, 3, axis=-1)
    if image.shape[-1] == 4:
        picture = PIL.Image.fromarray(image)
        white = PIL.Image.new("RGB", picture.size, "white")
        image = from_pil(PIL.Image.composite(picture.convert("RGB"), white, picture.getchannel("A")))
    return from_pil(to_pil(image).convert("L" if channels == 1 else "RGB"))


def random_flip(
    images: Shaped[np.ndarray, "batch height width channels"], bits: UInt64[np.ndarray, " batch"]
) -> Shaped[np.ndarray, "batch height width channels"]:
    """Mirror left and right the images whose highest random bit is set (probability 1/2)."""
    flip = (bits >> np.uint64(63)).astype(bool)
    return np.where(flip[:, None, None, None], images[:, :, ::-1], images)


def to_unit_range(images: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """uint8 0..255 -> float32 [-1, 1] by x / 127.5 - 1."""
    scaled = images.astype(np.float32)
    scaled /= np.float32(127.5)
    scaled -= np.float32(1)
    return scaled


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """[-1, 1] -> uint8: round((x + 1) * 127.5), clipped; the exact inverse of `to_unit_range`."""
    scaled = (np.asarray(images, np.float32) + np.float32(1)) * np.float32(127.5)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def as_stored(spec: DataSpec, examples: np.ndarray) -> np.ndarray:
    """Examples of a batch in the form in which they are stored and shown: pixels as uint8, others unchanged."""
    return to_uint8(examples) if spec.kind == "pixels" else examples
