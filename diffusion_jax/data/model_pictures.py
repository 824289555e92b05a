"""Pictures prepared for published models: resized by Pillow, as in the models' training, and normalised.

encoders     the shorter side resized, bicubic, the middle cut out, (x / 255 - mean) / deviation
first stages resized to a height and a width, Lanczos, x / 127.5 - 1
masks        grey, resized to a height and a width, 1 where at least half white, else 0
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

from diffusion_jax.domains import shown
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json

Picture = UInt8[np.ndarray, "height width channels"]
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_UNREAD = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "do_convert_rgb"),
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "return_tensors", "data_format", "device"),
    *("input_data_format", "default_to_square", "do_pad", "pad_size", "disable_grouping", "image_seq_length"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderPictures:
    """A folder's preprocessor_config.json for the pictures of an encoder.

    Attributes:
      size: size of the shorter side, or height and width; None: it stays.
      crop: height and width that are cut out of the middle; None: nothing is cut.
      resample: Pillow's number of the filter; 3 is bicubic.
      factor: factor on the values; None: they stay from 0 to 255.
      mean, deviation: values for each channel; None: no normalisation.
    """

    size: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    resample: int = 3
    factor: float | None = 1 / 255
    mean: tuple[float, ...] | None = _CLIP_MEAN
    deviation: tuple[float, ...] | None = _CLIP_STD

    @classmethod
    def of_folder(cls, folder: Path | str) -> "EncoderPictures":
        """Read a folder's file.

        Raises:
          UserError: there is no such file, or it has an unknown field or value.
        """
        return cls.of_config(read_json(Path(folder).expanduser() / "preprocessor_config.json"))

    @classmethod
    def of_config(cls, said: Mapping[str, Any]) -> "EncoderPictures":
        """Read the fields of preprocessor_config.json."""
        read = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
        for name, value in said.items():
            if name not in read and name not in _UNREAD and value is not None:
                raise UserError(f"preprocessor_config.json says {name} = {shown(value)}: there is no such field here")
        normalised = said.get("do_normalize", True)
        factor = said.get("rescale_factor", 1 / 255)
        return cls(
            size=_side(said.get("size", 224)) if said.get("do_resize", True) else None,
            crop=_box(said.get("crop_size", 224)) if said.get("do_center_crop", True) else None,
            resample=int(said.get("resample", 3)),
            factor=float(factor) if said.get("do_rescale", True) else None,
            mean=tuple(said.get("image_mean") or _CLIP_MEAN) if normalised else None,
            deviation=tuple(said.get("image_std") or _CLIP_STD) if normalised else None,
        )

    def __call__(self, pictures: Sequence[Picture]) -> Float[np.ndarray, "n height width 3"]:
        """The prepared pictures, all of one size.

        Raises:
          UserError: a picture is smaller than the crop, or does not have 3 channels.
        """
        return np.stack([self._one(picture) for picture in pictures])

    def _one(self, picture: Picture) -> Float[np.ndarray, "height width 3"]:
        image = _image(picture)
        if self.size is not None:
            image = image.resize(self._resized(*image.size), resample=self.resample)
        x = np.asarray(image)
        if self.crop is not None:
            (height, width), (rows, columns) = x.shape[:2], self.crop
            if height < rows or width < columns:
                raise UserError(f"a picture of {height}x{width} is too small for a crop of {rows}x{columns}")
            top, left = (height - rows) // 2, (width - columns) // 2
            x = x[top : top + rows, left : left + columns]
        x = x.astype(np.float32) if self.factor is None else (x.astype(np.float64) * self.factor).astype(np.float32)
        if self.mean is None:
            return x
        return (x - np.asarray(self.mean, np.float32)) / np.asarray(self.deviation, np.float32)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size[::-1]
        short, long = sorted((width, height))
        other = int(self.size * long / short)
        return (self.size, other) if width <= height else (other, self.size)


def codec_pixels(pictures: Sequence[Picture], height: int, width: int) -> Float[np.ndarray, "n height width 3"]:
    """Pictures for a first stage in [-1, 1], resized if their size differs."""
    return np.stack([_to_size(_image(picture), height, width).astype(np.float32) / 127.5 - 1 for picture in pictures])


def mask_pixels(masks: Sequence[Picture], height: int, width: int) -> Float[np.ndarray, "n height width 1"]:
    """Masks, resized if their size differs: 1 where something is to be drawn, 0 where the picture is kept."""
    grey = [_to_size(_image(mask).convert("L"), height, width).astype(np.float32) / 255 for mask in masks]
    return (np.stack(grey)[..., None] >= 0.5).astype(np.float32)


def _image(picture: Picture) -> PIL.Image.Image:
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise UserError(
            f"a picture must have 8 bits, [height, width, 3]; this one is {picture.dtype} {list(picture.shape)}"
        )
    image = PIL.Image.fromarray(picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
    return image if picture.ndim == 2 else image.convert("RGB")


def _to_size(image: PIL.Image.Image, height: int, width: int) -> np.ndarray:
    same = image.size == (width, height)
    return np.asarray(image if same else image.resize((width, height), resample=PIL.Image.Resampling.LANCZOS))


def _side(value: Any) -> int | tuple[int, int]:
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        value = value["shortest_edge"]
    return value if isinstance(value, int) else _box(value)


def _box(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        return value["height"], value["width"]
    raise UserError(f"preprocessor_config.json says a size {shown(value)}, which is not known")
