"""The codec of a first stage: what is diffused need not be the data itself (Rombach et al. 2022, arXiv:2112.10752).

    z = encode(x),    x = decode(z)

Pixels may be diffused as they are (`identity`), or as tokens, one for each of their values (`values`). An autoencoder
has parameters, and its latents are shifted and scaled to unit variance.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.specs import DataSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """Maps batches of data to batches of what is diffused, and back.

    `learned` says whether it has parameters that a first stage's training finds (`LearnedCodec`).
    """

    learned: ClassVar[bool] = False

    @property
    def factor(self) -> int:
        """By how much a side of what is diffused is shorter than that of the data."""
        return 1

    @property
    def of_pictures(self) -> "Codec":
        """The codec of pictures, where the data was encoded before; else this one."""
        return self

    def decoding_in_tiles(self) -> "Codec":
        """The same, which decodes with the memory of some tiles where it can."""
        return self

    def spec(self, data: DataSpec) -> DataSpec:
        """The form of what is diffused.

        Raises:
          UserError: this codec does not take such data.
        """
        raise NotImplementedError

    def shown(self, data: DataSpec) -> DataSpec:
        """The form of what `decode` gives: that of the data."""
        return data

    def init_params(self, key: Key[Array, ""]) -> PyTree:
        """Parameters; None if it has none."""
        return None

    def encode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None = None) -> Array:
        """Data as it is diffused: the mean, or, if a key for each example is given, a random draw."""
        raise NotImplementedError

    def decode(self, params: PyTree, z: Array) -> Array:
        """Data from what was diffused: float32 in [-1, 1] for pixels."""
        raise NotImplementedError

    def posterior(self, params: PyTree, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the draws of `encode`; the latter is zero for a codec that draws nothing."""
        mean = self.encode(params, x)
        return mean, jnp.zeros_like(mean)


CODECS: Registry[Codec] = Registry("codec")


@CODECS.register("identity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity(Codec):
    """The data itself."""

    def spec(self, data: DataSpec) -> DataSpec:
        return data

    def encode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None = None) -> Array:
        return x

    def decode(self, params: PyTree, z: Array) -> Array:
        return z


@CODECS.register("values", example={"num_values": 17})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Values(Codec):
    """Pixels as tokens: the nearest of `num_values` equally spaced values from -1 to 1.

    A mask, which is token `num_values` and may remain in an unfinished picture, is decoded as 0, half-way between black
    and white.

    Attributes:
      num_values: values that a pixel may have.
    """

    num_values: int

    def __post_init__(self):
        if self.num_values < 2:
            raise UserError(f"codec values needs num_values of at least 2, not {self.num_values}")

    def spec(self, data: DataSpec) -> DataSpec:
        if data.kind != "pixels":
            raise UserError(f"codec values needs pixels, but the data is {data.kind}: use identity")
        return DataSpec(kind="tokens", shape=data.shape, num_values=self.num_values)

    def encode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None = None) -> Int[Array, "..."]:
        return to_tokens(x, self.num_values)

    def decode(self, params: PyTree, z: Int[Array, "..."]) -> Float[Array, "..."]:
        return jnp.where(z == self.num_values, 0.0, from_tokens(z, self.num_values))


def drawn(mean: Array, std: Array, keys: Key[Array, " batch"] | None) -> Array:
    """mean + std * noise, with each example's noise from its own key; without keys, the mean."""
    if keys is None:
        return mean
    return mean + std * jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys)


def to_tokens(values: Float[Array, "..."], num_values: int) -> Int[Array, "..."]:
    """The nearest of `num_values` equally spaced values from -1 to 1."""
    return jnp.clip(jnp.round((values + 1.0) * 0.5 * (num_values - 1)), 0, num_values - 1).astype(jnp.int32)


def from_tokens(tokens: Int[Array, "..."], num_values: int) -> Float[Array, "..."]:
    """The value in [-1, 1] of every token."""
    return tokens.astype(jnp.float32) * (2.0 / (num_values - 1)) - 1.0
