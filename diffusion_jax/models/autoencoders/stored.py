"""Latents that a first stage has computed before: mean and standard deviation of each, side by side as channels."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders.autoencoder import Autoencoder
from diffusion_jax.models.autoencoders.codec import Codec, drawn
from diffusion_jax.specs import DataSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredLatents(Codec):
    """Turns an example's stored values, [rows, columns, 2 x latent], into its latent; the first stage decodes it to
    pixels.

    Attributes:
      first_stage: computed the stored values; `decode` takes its parameters.
    """

    learned: ClassVar[bool] = True

    first_stage: Autoencoder

    @property
    def factor(self) -> int:
        return self.first_stage.factor

    @property
    def of_pictures(self) -> Codec:
        return self.first_stage

    def spec(self, data: DataSpec) -> DataSpec:
        if data.kind != "latents" or data.shape[-1] != 2 * self.first_stage.diffused_channels:
            raise UserError(
                f"stored latents of this first stage have {2 * self.first_stage.diffused_channels} channels, mean and "
                f"spread; the data is {data.kind} {list(data.shape)}"
            )
        return dataclasses.replace(data, shape=(*data.shape[:-1], self.first_stage.diffused_channels))

    def shown(self, data: DataSpec) -> DataSpec:
        """Pictures."""
        height, width = (side * self.first_stage.factor for side in data.shape[:2])
        return DataSpec(kind="pixels", shape=(height, width, self.first_stage.data_channels))

    def init_params(self, key: Key[Array, ""]) -> PyTree:
        return self.first_stage.init_params(key)

    def encode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None = None) -> Array:
        return drawn(*self.posterior(params, x), keys)

    def posterior(self, params: PyTree, x: Array) -> tuple[Array, Array]:
        mean, std = jnp.split(x, 2, axis=-1)
        return mean, std

    def decode(self, params: PyTree, z: Array) -> Array:
        return self.first_stage.decode(params, z)


def stored(mean: Array, std: Array) -> Array:
    """The values to store for a batch."""
    return jax.numpy.concatenate([mean, std], axis=-1)
