"""Base of first stages with parameters: two networks, and latents of unit variance.

    h = encoder(x),  z = (h - shift) * scale,  x' = decoder(z / scale + shift)

`shift` and `scale`, one number per channel, are parameters too, but no optimizer changes them: their names begin with
"frozen_".
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.counter_prng import counter_key
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders.codec import Codec
from diffusion_jax.models.autoencoders.tiling import Stage, tiled
from diffusion_jax.specs import DataSpec

SHIFT, SCALE = "frozen_shift", "frozen_scale"
Latents = Float[Array, "batch rows columns latent"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder(Codec):
    """An autoencoder of pictures.

    Attributes:
      data_channels: channels of the pictures.
      dtype: type in which activations are computed.
    """

    learned: ClassVar[bool] = True

    data_channels: int = 3
    dtype: DTypeLike = jnp.float32

    @property
    def factor(self) -> int:
        raise NotImplementedError

    @property
    def has_stages(self) -> bool:
        """Whether the decoder can be run in tiles."""
        return False

    def decoding_in_tiles(self) -> Codec:
        return InTiles(whole=self) if self.has_stages else self

    @property
    def diffused_channels(self) -> int:
        """Channels of the scaled latents, which are diffused."""
        raise NotImplementedError

    @property
    def encoder(self) -> nn.Module:
        """The network from pictures to the latents' parameters."""
        raise NotImplementedError

    @property
    def decoder(self) -> nn.Module:
        """The network from latents to pictures."""
        raise NotImplementedError

    @property
    def decoded_channels(self) -> int:
        """Channels that the decoder takes."""
        return self.diffused_channels

    @property
    def constants(self) -> tuple[float, float]:
        """Initial shift and scale of all channels, before they are measured."""
        return 0.0, 1.0

    def spec(self, data: DataSpec) -> DataSpec:
        if data.kind != "pixels":
            raise UserError(f"a first stage needs pixels, but the data is {data.kind}")
        height, width, channels = data.shape
        if channels != self.data_channels:
            raise UserError(
                f"the first stage takes {self.data_channels} channels, but the data has {channels}: train one for "
                f"this data"
            )
        if height % self.factor or width % self.factor:
            raise UserError(
                f"the first stage makes a side {self.factor} times shorter, but {height}x{width} is not divisible by "
                f"that: set data.image_size and data.crop, or give it fewer levels"
            )
        return DataSpec(kind="latents", shape=(height // self.factor, width // self.factor, self.diffused_channels))

    def init_params(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Initial random parameters of both networks; shift and scale are the codec's own."""

        @jax.jit
        def init(key: Key[Array, ""]) -> dict[str, Any]:
            x = jnp.zeros((1, 2 * self.factor, 2 * self.factor, self.data_channels))
            z = jnp.zeros((1, 2, 2, self.decoded_channels))
            first, second = (counter_key(one) for one in jax.random.split(key))
            return {
                "encoder": self.encoder.init({"params": first}, x)["params"],
                "decoder": self.decoder.init({"params": second}, z)["params"],
                **self._init_constants(),
            }

        return init(key)

    def encode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None = None) -> Latents:
        return self._scaled(params, self._encoded(params, x, keys))

    def decode(self, params: PyTree, z: Latents) -> Array:
        return self._decoded(params, self._unscaled(params, z))[0]

    def decode_in_tiles(self, params: PyTree, z: Latents, *, tile: int = 512) -> Array:
        """The result of `decode`, with the memory of a few tiles instead of whole maps at the larger levels.

        Args:
          params, z: see `decode`.
          tile: the side of a tile in pixels of the level being computed, without the overlap.

        Raises:
          UserError: this autoencoder has no stages.
        """
        return tiled(self.stages(params), self._quantised(params, self._unscaled(params, z)), tile)

    def stages(self, params: PyTree) -> tuple[Stage, ...]:
        """The decoder as stages, each of which can run on a part of its map."""
        raise UserError(f"a first stage of kind {type(self).__name__} cannot be decoded in tiles: decode it whole")

    def _encoded(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None) -> Latents:
        """Latents before they are scaled."""
        return self.encoder.apply({"params": params["encoder"]}, x)

    def _quantised(self, params: PyTree, h: Latents) -> Latents:
        """The decoder's input for unscaled latents."""
        return h

    def _decoded(self, params: PyTree, h: Latents) -> tuple[Array, Array]:
        """Pictures for unscaled latents, and the input of the last convolution."""
        return self.decoder.apply({"params": params["decoder"]}, self._quantised(params, h))

    def _init_constants(self) -> dict[str, Array]:
        shift, scale = self.constants
        return {
            SHIFT: jnp.full((self.diffused_channels,), shift, jnp.float32),
            SCALE: jnp.full((self.diffused_channels,), scale, jnp.float32),
        }

    def _scaled(self, params: PyTree, h: Latents) -> Latents:
        return (h - params[SHIFT]) * params[SCALE]

    def _spread(self, params: PyTree, std: Latents) -> Latents:
        """Standard deviations of the scaled latents."""
        return std * params[SCALE]

    def _unscaled(self, params: PyTree, z: Latents) -> Latents:
        return z / params[SCALE] + params[SHIFT]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InTiles(Codec):
    """An autoencoder that decodes in tiles, to the same pictures (see `tiling`).

    Attributes:
      whole: the autoencoder.
      tile: side of a tile in pixels.
    """

    learned: ClassVar[bool] = True

    whole: Autoencoder
    tile: int = 512

    @property
    def factor(self) -> int:
        return self.whole.factor

    def spec(self, data: DataSpec) -> DataSpec:
        return self.whole.spec(data)

    def init_params(self, key: Key[Array, ""]) -> PyTree:
        return self.whole.init_params(key)

    def encode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None = None) -> Latents:
        return self.whole.encode(params, x, keys)

    def posterior(self, params: PyTree, x: Array) -> tuple[Latents, Latents]:
        return self.whole.posterior(params, x)

    def decode(self, params: PyTree, z: Latents) -> Array:
        return self.whole.decode_in_tiles(params, z, tile=self.tile)
