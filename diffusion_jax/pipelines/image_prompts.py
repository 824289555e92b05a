"""IP-Adapters of a pipeline: loading files, weighting by block, and turning pictures into conditions.

Keys and values of the pictures depend on neither the noise nor the time: they are computed once for a call and are
arguments of its program, so that another picture, another scale or another adapter of the same shapes compiles nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from PIL import Image

from diffusion_jax.data.model_pictures import EncoderPictures
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded
from diffusion_jax.models.conditional_encoder import Stage
from diffusion_jax.models.encoders.vision import VisionTransformer
from diffusion_jax.models.image_prompt import ATTENTION, PROJECTION, keys_and_values, together
from diffusion_jax.pipelines import pictures
from diffusion_jax.weights.components import Part, read_part
from diffusion_jax.weights.ip_adapter import IpAdapterFile, read_ip_adapter, require_unet

Pixels = Float[np.ndarray, "n height width 3"]
BlockScales = float | Mapping[str, Any]
"""s: a number for all blocks, or as diffusers says it, {"down": {"block_2": [0.0, 1.0]}, "up": 0.5, "mid": 1.0}, where
what is not named has 0. "style" and "layout" name the one block of SDXL that carries each (InstantStyle, Wang et al.
2024, arXiv:2404.02733, section 3.2)."""
_NAMED_BLOCKS = {"style": ("up", 0, 1), "layout": ("down", 2, 1)}
ENCODER_FOLDER = "image_encoder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePrompts:
    """The IP-Adapters of a pipeline, all of one image encoder.

    Attributes:
      encoder: the encoder of the pictures.
      prepare: from pictures to the encoder's input.
      adapters: as they were read.
      scales: each adapter's scale, by transformer.
    """

    encoder: Part | None = None
    prepare: EncoderPictures = dataclasses.field(default_factory=EncoderPictures)
    adapters: tuple[IpAdapterFile, ...] = ()
    scales: tuple[Mapping[str, float], ...] = ()

    def scaled(self, scale: BlockScales | Sequence[BlockScales], network: Any) -> "ImagePrompts":
        """The adapters with other scales, one for all or one for each.

        Raises:
          UserError: there is no adapter, not one scale per adapter, or a block that the network does not have.
        """
        if not self.adapters:
            raise UserError("there is no IP-Adapter to scale: call load_ip_adapter first")
        several = list(scale) if isinstance(scale, list | tuple) else [scale] * len(self.adapters)
        if len(several) != len(self.adapters):
            raise UserError(f"{len(several)} scales for {len(self.adapters)} IP-Adapters: give one for each")
        return dataclasses.replace(self, scales=tuple(scales_of(one, network) for one in several))

    def told(self, images: Any, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The slot "image_prompt" for `rows` pictures to draw: with the given pictures, and without any.

        Args:
          images: a picture for a single adapter, or a list with an entry for each adapter; an entry may be a list of
            pictures, which are used together.
          rows: number of pictures to draw.

        Raises:
          UserError: there is no picture, or not one entry per adapter.
        """
        count = len(self.adapters)
        each = images if isinstance(images, list | tuple) else [images]
        if len(each) != count:
            adapters = "1 IP-Adapter" if count == 1 else f"{count} IP-Adapters"
            raise UserError(
                f"ip_adapter_image has {len(each)} entries for {adapters}: give one for each; several pictures of one "
                "adapter are a list in that list"
            )
        asked, nothing = [], []
        for adapter, scales, one in zip(self.adapters, self.scales, each, strict=True):
            pixels = self._pixels(one)
            found = _prompts(self.encoder.module, adapter.projection, self.encoder.params, adapter.own,
                             jnp.asarray(pixels), {n: jnp.float32(s) for n, s in scales.items()}, rows)  # fmt: skip
            asked.append(found[0])
            nothing.append(found[1])
        return together(asked), together(nothing)

    def _pixels(self, given: Any) -> Pixels:
        """Pictures in the encoder's input form; an array with numbers outside of [0, 1] already has this form, in any
        layout."""
        array = given if isinstance(given, np.ndarray | jax.Array) else None
        if array is not None and array.ndim == 4 and array.dtype.kind == "f":
            pixels = np.asarray(array, np.float32)
            pixels = np.moveaxis(pixels, 1, -1) if pixels.shape[1] == 3 and pixels.shape[-1] != 3 else pixels
            if pixels.size and (pixels.min() < 0 or pixels.max() > 1 or not np.isfinite(pixels).all()):
                side = self.encoder.module.image_size
                if pixels.shape[1:] != (side, side, 3) or not np.isfinite(pixels).all():
                    raise UserError(
                        f"ip_adapter_image must be pictures, or finite numbers [n, {side}, {side}, 3] that are "
                        f"normalised for the image encoder; it is {list(pixels.shape)}"
                    )
                return pixels
        several = pictures.listed(given, "ip_adapter_image")
        if not several:
            raise UserError("ip_adapter_image is an empty list: give a picture")
        return self.prepare([_bytes(image) for image in several])


def _bytes(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def load(paths: Sequence[Path | str], network: Any, encoder: Path | str | None) -> ImagePrompts:
    """The adapters of files, with the encoder of a folder, at scale 1.

    Raises:
      UserError: a file is for another base, there is no encoder, or its states do not fit the adapter.
    """
    require_unet(network)
    files = tuple(read_ip_adapter(path, network) for path in paths)
    if encoder is None:
        raise UserError(
            f"an IP-Adapter reads pictures by an image encoder, and there is none: give image_encoder_folder=FOLDER "
            f"(published beside the adapters as {ENCODER_FOLDER})"
        )
    folder = expanded(encoder)
    if not folder.is_dir():
        raise UserError(f"there is no image encoder {folder}: no such folder")
    part = read_part(folder, network.dtype, held_in=network.dtype)
    if not isinstance(part.module, VisionTransformer):
        raise UserError(f"{folder} is not a picture encoder: it is a {type(part.module).__name__}")
    part = dataclasses.replace(part, params=jax.tree.map(jnp.asarray, part.params))
    side = part.module.image_size
    for path, file in zip(paths, files, strict=True):
        found = jax.eval_shape(
            lambda params, x, read=file.projection.features: read(part.module.apply({"params": params}, x)),
            part.params, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
        ).shape[-1]  # fmt: skip
        if found != file.features:
            raise UserError(
                f"{path} reads {file.features} channels of an image encoder, but {folder} gives {found}: the adapter "
                "needs another encoder"
            )
    here = (folder / "preprocessor_config.json").is_file()
    prepare = EncoderPictures.of_folder(folder) if here else EncoderPictures(size=side, crop=(side, side))
    return ImagePrompts(encoder=part, prepare=prepare, adapters=files).scaled(1.0, network)


def files_of(path: Path | str, subfolder: str = "", weight_name: str = "") -> tuple[Path, Path]:
    """The file of an adapter, and the folder that it is in.

    Raises:
      UserError: there is no such file, or several.
    """
    path = expanded(path)
    folder = path / subfolder if subfolder else path
    if not folder.is_dir():
        if subfolder or weight_name:
            raise UserError(f"there is no folder {folder} with an IP-Adapter")
        return folder, folder.parent
    if weight_name:
        return folder / weight_name, folder
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:6]) or "none"
        raise UserError(f"{folder} must hold one file of an IP-Adapter; it has {names}: give weight_name=FILE")
    return found[0], folder


def scales_of(scale: BlockScales, network: Any) -> dict[str, float]:
    """The scale of each transformer.

    Raises:
      UserError: the network lacks a block, or a scale is not a finite number.
    """
    stages, levels = network.transformers(), len(network.channels)
    if not isinstance(scale, Mapping):
        return dict.fromkeys((stage.attention_name for stage in stages), _number(scale, "the scale"))
    places = {stage.attention_name: _place(stage, levels) for stage in stages}
    found = dict.fromkeys(places, 0.0)
    for name, value in scale.items():
        if name in _NAMED_BLOCKS:
            wanted = [one for one, place in places.items() if place == _NAMED_BLOCKS[name]]
            if not wanted or levels != 3:
                raise UserError(f"{name!r} names a block of SDXL, which this network is not: name its blocks")
            found[wanted[0]] = _number(value, name)
            continue
        if name not in ("down", "mid", "up"):
            raise UserError(f"a scale by blocks names 'down', 'mid', 'up', 'style' or 'layout', not {name!r}")
        inside = {one: place for one, place in places.items() if place[0] == name}
        found |= _by_block(value, name, inside)
    return found


def _by_block(value: Any, side: str, places: Mapping[str, tuple[str, int, int]]) -> dict[str, float]:
    if not places:
        raise UserError(f"the network has no attention to a text in {side!r}: leave its scale out")
    if not isinstance(value, Mapping):
        numbers = value if isinstance(value, list | tuple) else [value] * len(places)
        if len(numbers) != len(places):
            raise UserError(f"{side!r} has {len(places)} transformers, but {len(numbers)} scales")
        return {name: _number(one, side) for name, one in zip(places, numbers, strict=True)}
    found, blocks = {}, sorted({place[1] for place in places.values()})
    for block, given in value.items():
        inner = [name for name, place in places.items() if f"block_{place[1]}" == block]
        if not inner:
            known = ", ".join(f"block_{number}" for number in blocks)
            raise UserError(f"{side!r} has transformers in {known}, and none in {block!r}")
        numbers = given if isinstance(given, list | tuple) else [given] * len(inner)
        if len(numbers) != len(inner):
            raise UserError(f"{side!r} {block} has {len(inner)} transformers, but {len(numbers)} scales")
        found |= {name: _number(one, block) for name, one in zip(inner, numbers, strict=True)}
    return found


def _place(stage: Stage, levels: int) -> tuple[str, int, int]:
    """The place of a transformer in diffusers: side, block, and index in the block."""
    side, *numbers = stage.name.split("_")
    if side == "middle":
        return "mid", 0, 0
    level, block = int(numbers[0]), int(numbers[1])
    return side, level if side == "down" else levels - 1 - level, block


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise UserError(f"{what} of an IP-Adapter must be a finite number, it is {value!r}")
    return float(value)


@functools.partial(jax.jit, static_argnames=("encoder", "projection", "rows"))
def _prompts(
    encoder: VisionTransformer, projection: nn.Module, params: PyTree, own: Mapping[str, PyTree], pixels: Array,
    scales: Mapping[str, Array], rows: int,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Keys and values for all pictures together, and for no picture."""
    with jax.default_matmul_precision("highest"):
        features = projection.features(encoder.apply({"params": params}, pixels))
        nothing = jnp.zeros_like(features)
        if projection.reads_patches:  # of a picture whose normalised pixels are all 0
            nothing = projection.features(encoder.apply({"params": params}, jnp.zeros_like(pixels)))

        def prompt(features: Array) -> dict[str, Any]:
            tokens = projection.apply({"params": own[PROJECTION]}, features)
            tokens = jnp.broadcast_to(tokens.reshape(1, -1, tokens.shape[-1]), (rows, *_flat(tokens)))
            return keys_and_values(own[ATTENTION], tokens, scales)

        return prompt(features), prompt(nothing)


def _flat(tokens: Array) -> tuple[int, int]:
    return tokens.shape[0] * tokens.shape[1], tokens.shape[2]
