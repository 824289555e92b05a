"""Reads a picture file as the array that a person sees: rotated, opaque, in sRGB, with 8 bits per channel.

    orientation   EXIF's orientation is applied
    transparency  the picture is laid on white, so that colours hidden under it do not count
    colour        an embedded ICC profile, or a PNG's gamma, is converted to sRGB; without either it is sRGB already
    frames        a file with several (an animation, pages) is refused; of an MPO, a camera's JPEG with previews, the
                  first is used
    depth         more than 8 bits per channel are refused

A profile that is damaged, or for other channels than the picture's, is ignored, as by viewers. A profile that moves no
colour by more than 2 of 255 counts as a copy of sRGB, and values stay as they are.
"""

import contextlib
import functools
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

from diffusion_jax.data import transforms
from diffusion_jax.data.sources import storage_failed
from diffusion_jax.errors import UserError
from diffusion_jax.files import regular_file

warnings.filterwarnings("ignore", module=r"PIL\.")  # for damaged files, which are errors here, and for broken EXIF

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
"""The formats that are read, and the endings by which they are found; Pillow's other decoders are never used."""

_TIFF = PIL.ExifTags.Base
_SRGB_GAMMA = 0.45455  # value of a PNG's gAMA
_SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # values of its cHRM
_CLOSE = 2  # of 255: a profile that moves no colour further is sRGB
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}  # mode -> colour space of a profile

_DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
    ZeroDivisionError, MemoryError, RuntimeError, AssertionError, struct.error, zlib.error,
    PIL.Image.DecompressionBombError, PIL.ImageCms.PyCMSError,
)  # fmt: skip
"""The exceptions of Pillow's decoders for files that are damaged or lie about their size."""


def read_image(path: str, channels: int = 3) -> transforms.Image:
    """Decode one file to uint8 [height, width, channels], RGB or (channels=1) grey.

    Raises:
      UserError: the file is missing, no image or damaged, or has several frames or more than 8 bits per channel.
      OSError: the storage failed; the next attempt may succeed.
    """
    with _opened(path) as picture:
        return _decoded(picture, path, channels)


def decode_image(content: bytes, origin: str, channels: int = 3) -> transforms.Image:
    """Decode the bytes of one file to uint8 [height, width, channels]; `origin` is what an error names.

    Raises:
      UserError: the bytes are no image, or one that `read_image` refuses.
    """
    try:
        with PIL.Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as picture:
            return _decoded(picture, origin, channels)
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"cannot decode the image {origin}: {_reason(error)}; repair or remove it") from error


def read_size(path: str) -> tuple[int, int]:
    """Height and width of what `read_image` gives, from the beginning of the file.

    Raises:
      UserError, OSError: as `read_image`, as far as the beginning shows it.
    """
    with _opened(path) as picture:
        width, height = picture.size
        if picture.format == "TIFF":  # Pillow says the size after the turn
            width, height = (int(picture.tag_v2[tag]) for tag in (_TIFF.ImageWidth, _TIFF.ImageLength))
        lies = picture.getexif().get(_TIFF.Orientation, 1) in (5, 6, 7, 8)
        return (width, height) if lies else (height, width)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[PIL.Image.Image]:
    """The picture of a file, not decoded yet; what goes wrong with it is an error that names the file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            regular_file(path)  # reports what it is instead
        with PIL.Image.open(path, formats=tuple(FORMATS)) as picture:
            yield picture
    except UserError:
        raise
    except _DAMAGED as error:
        if storage_failed(error):
            raise
        regular_file(path)  # missing, or a pointer of Git LFS
        raise UserError(f"cannot decode the image {path}: {_reason(error)}; repair or remove the file") from error


def _decoded(picture: PIL.Image.Image, origin: str, channels: int) -> transforms.Image:
    _check(picture, origin)
    picture.load()
    PIL.ImageOps.exif_transpose(picture, in_place=True)
    return transforms.from_pil(_opaque(picture).convert("RGB" if channels == 3 else "L"))


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _check(picture: PIL.Image.Image, path: str) -> None:
    """Refuse pictures that the array could not represent faithfully."""
    deep = picture.format in ("PNG", "TIFF") and ";16" in str(picture.tile)
    if deep or picture.mode.startswith(("I", "F")):
        mode = f"{picture.mode}, 16 bits" if deep else picture.mode
        raise UserError(f"{path}: only images with 8 bits per channel are supported, but this one has mode {mode}")
    frames = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1
    if frames != 1:
        raise UserError(f"{path} has {frames} frames, but a picture has one: save each as a file, or remove it")
    if picture.info.get("icc_profile") or "srgb" in picture.info:
        return
    primaries = picture.info.get("chromaticity", _SRGB_CHROMATICITY)
    if np.abs(np.subtract(primaries, _SRGB_CHROMATICITY)).max() > 0.01:
        raise UserError(f"{path} has primaries {primaries} (PNG's cHRM), which are not those of sRGB: convert it")


def _opaque(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture in sRGB, laid on white where it is transparent; of mode L or RGB."""
    grey = picture.mode in ("1", "L", "LA", "La")
    if not picture.has_transparency_data:
        plain = picture if picture.mode in _SPACES else picture.convert("L" if grey else "RGB")
        return _in_srgb(plain, picture.info).convert("L" if grey else "RGB")
    layered = picture.convert("LA" if grey else "RGBA")
    colours = _in_srgb(layered.convert("L" if grey else "RGB"), picture.info)
    white = PIL.Image.new(colours.mode, colours.size, "white")
    return PIL.Image.composite(colours, white, layered.getchannel("A"))


def _in_srgb(picture: PIL.Image.Image, info: Mapping[str, Any]) -> PIL.Image.Image:
    """The picture after conversion from its profile or gamma."""
    if profile := info.get("icc_profile"):
        converted = _conversion(profile, picture.mode)
        return PIL.ImageCms.applyTransform(picture, converted) if converted else picture  # RGB, also from grey
    gamma = info.get("gamma", _SRGB_GAMMA)
    if "srgb" in info or not gamma > 0 or abs(gamma - _SRGB_GAMMA) < 0.01:
        return picture
    table = np.rint(255 * (np.arange(256) / 255) ** (_SRGB_GAMMA / gamma)).astype(int).tolist()
    return picture.point(table * len(picture.getbands()))


@functools.lru_cache(maxsize=64)
def _conversion(profile: bytes, mode: str) -> PIL.ImageCms.ImageCmsTransform | None:
    """The conversion from an ICC profile to sRGB, for pictures of `mode`; None if none is needed."""
    try:
        found = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if found.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        conversion = PIL.ImageCms.buildTransform(found, PIL.ImageCms.createProfile("sRGB"), mode, "RGB")
    except (PIL.ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode not in ("L", "RGB"):
        return conversion
    values = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "RGB":
        values = np.stack(np.meshgrid(values, values, values, indexing="ij"), -1).reshape(-1, 3)
    moved = np.asarray(PIL.ImageCms.applyTransform(PIL.Image.fromarray(values[None]), conversion), int)[0]
    return None if np.abs(moved - values.reshape(len(values), -1)).max() <= _CLOSE else conversion
