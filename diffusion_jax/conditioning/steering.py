"""Pictures as conditions: a control picture in its own size, and a picture that is a prompt, as an encoder reads it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.conditioning.conditioner import Batch, Conditioner, Conditions, Form
from diffusion_jax.counter_prng import counter_key
from diffusion_jax.data.model_pictures import EncoderPictures
from diffusion_jax.errors import UserError
from diffusion_jax.specs import CONTROL, ConditionSpec

CONTROL_IMAGE, REFERENCE = "control_image", "reference"
_PICTURES = EncoderPictures()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlPicture(Conditioner):
    """A control picture for another picture of the same size, in [0, 1]; black if there is none.

    Attributes:
      side: height and width in pixels.
      channels: channels of the picture.
    """

    side: int
    channels: int = 3

    @property
    def fields(self) -> Mapping[str, Form]:
        return {CONTROL: ((self.side, self.side, self.channels), "uint8")}

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        return {CONTROL_IMAGE: ConditionSpec(shape=(self.side, self.side, self.channels), role="told")}

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Check pictures of bytes and stack them.

        Raises:
          UserError: a picture of another size.
        """
        wanted = (self.side, self.side, self.channels)
        for picture in raw[CONTROL]:
            if np.shape(picture) != wanted or np.asarray(picture).dtype != np.uint8:
                raise UserError(f"a control picture must be bytes {list(wanted)}, it is {list(np.shape(picture))}")
        return {CONTROL: np.stack([np.asarray(picture) for picture in raw[CONTROL]])}

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        if CONTROL not in batch:
            return self.null(params, size)
        return {CONTROL_IMAGE: batch[CONTROL].astype(jnp.float32) / 255.0}

    def null(self, params: PyTree, size: int) -> Conditions:
        return {CONTROL_IMAGE: jnp.zeros((size, self.side, self.side, self.channels), jnp.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferencePicture(Conditioner):
    """A picture as a frozen CLIP encoder reads it; the null condition is zeros, or the states of an empty picture.

    Attributes:
      pictures: the encoder.
      features: channels of its vector, or of its states.
      rows: vectors per picture: 1, or one for each state.
      of_patches: whether the last but one states are used instead of the vector.
    """

    pictures: nn.Module
    features: int
    rows: int = 1
    of_patches: bool = False

    @property
    def fields(self) -> Mapping[str, Form]:
        side = self.pictures.image_size
        return {REFERENCE: ((side, side, 3), "uint8")}

    @property
    def prepares(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        return {REFERENCE: ConditionSpec(shape=(self.rows, self.features))}

    def init_params(self, key: Key[Array, ""]) -> PyTree:
        side = self.pictures.image_size
        return self.pictures.init({"params": counter_key(key)}, jnp.zeros((1, side, side, 3), jnp.float32))["params"]

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Resize pictures of bytes to the encoder's size, cropped as in its training."""
        side = self.pictures.image_size
        cut = EncoderPictures(size=side, crop=(side, side), factor=None, mean=None, deviation=None)
        return {REFERENCE: cut([np.asarray(picture) for picture in raw["image"]]).astype(np.uint8)}

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        if REFERENCE not in batch:
            return self.null(params, size)
        x = batch[REFERENCE].astype(jnp.float32) * _PICTURES.factor
        normalised = (x - jnp.asarray(_PICTURES.mean)) / jnp.asarray(_PICTURES.deviation)
        return {REFERENCE: self._read(params, normalised)}

    def null(self, params: PyTree, size: int) -> Conditions:
        shape = (size, self.rows, self.features)
        if not self.of_patches:
            return {REFERENCE: jnp.zeros(shape, jnp.float32)}
        side = self.pictures.image_size
        empty = self._read(params, jnp.zeros((1, side, side, 3), jnp.float32))
        return {REFERENCE: jnp.broadcast_to(empty, shape)}

    def _read(self, params: PyTree, x: Float[Array, "n height width 3"]) -> Float[Array, "n rows features"]:
        states = self.pictures.apply({"params": params}, x)
        return states.hidden[-2] if self.of_patches else states.vector[:, None]
