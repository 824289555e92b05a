"""What learned first stages share: sizes, networks, and latents of unit variance.

    h = encoder(x),  z = (h - shift) * scale,  x' = decoder(z / scale + shift)

The networks are those of `coder.py`. `shift` and `scale`, one number for each channel, are parameters too, but no
optimizer moves them (their names begin with "frozen_"): they are 0 and 1 in training, and measured after it
(`LearnedCodec.standardised`), so that what is diffused has mean 0 and variance 1. Published models have one number for
all channels, 0.18215 for Stable Diffusion's.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.counter_prng import counter_key
from diffusion_jax.domains import SIZE
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders.codec import Codec
from diffusion_jax.models.autoencoders.coder import Decoder, Encoder
from diffusion_jax.models.layers import Conv, depth_to_space, space_to_depth
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import fold_name
from diffusion_jax.specs import DataSpec

SHIFT, SCALE, SHORTCUT = "frozen_shift", "frozen_scale", "shortcut"
# Channels of the levels, residual blocks of a level, channels of the latents. f8 is Stable Diffusion's (83,653,863
# parameters with one of Gaussians); f4 and f2 are the same with fewer levels; small ones train on a CPU in minutes.
SIZES: Mapping[str, tuple[tuple[int, ...], int, int]] = {
    "f2": ((128, 256), 2, 4),
    "f4": ((128, 256, 512), 2, 4),
    "f8": ((128, 256, 512, 512), 2, 4),
    "small_f2": ((32, 64), 1, 4),
    "small_f4": ((32, 64, 96), 1, 4),
    "small_f8": ((32, 64, 96, 128), 1, 4),
}
Latents = Float[Array, "batch rows columns latent"]


@functools.partial(jax.tree_util.register_dataclass, meta_fields=[], data_fields=["x", "hidden", "penalty", "observed"])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A batch that has gone through a first stage, as its training sees it.

    Attributes:
      x: what came out.
      hidden: the input of the decoder's last convolution.
      penalty: what holds the latents together, for each example and per number of the data.
      observed: further scalars to log.
    """

    x: Float[Array, "batch height width channels"]
    hidden: Float[Array, "batch height width features"]
    penalty: Float[Array, " batch"]
    observed: Mapping[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedCodec(Codec):
    """An autoencoder of pictures.

    Attributes:
      size: name in `SIZES`; what the next three leave out is that size's.
      channels: channels of the levels; every level but the first has half the resolution of the one before it.
      num_res_blocks: residual blocks of a level.
      latent_channels: channels of the latents.
      data_channels: channels of the pictures.
      patch_size: the networks see squares of so many pixels a side as one, and give them back: the levels count from
        there, and each costs 1 / patch_size^2 of what it did.
      shortcut: whether linear maps run beside the networks, from the square of pixels that a latent stands for to the
        latent, and back: a network then learns what they leave out (residual autoencoding, Chen et al. 2024,
        arXiv:2410.10733, where the maps are averages and copies).
      dtype: what activations are computed in.

    Raises:
      UserError: there is no such size.
    """

    learned: ClassVar[bool] = True

    size: str = "f8"
    channels: tuple[int, ...] | None = None
    num_res_blocks: int | None = None
    latent_channels: int | None = None
    data_channels: int = 3
    patch_size: Annotated[int, SIZE] = 1
    shortcut: bool = False
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.size not in SIZES:
            raise UserError(unknown_name("size of a first stage", self.size, list(SIZES)))
        names = ("channels", "num_res_blocks", "latent_channels")
        for name, usual in zip(names, SIZES[self.size], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)
        if not self.channels:
            raise UserError("a first stage needs at least one level: channels is empty")

    @property
    def factor(self) -> int:
        """By how much a side of the latents is shorter than that of the data."""
        return self.patch_size * 2 ** (len(self.channels) - 1)

    @property
    def encoded_channels(self) -> int:
        """Channels that the encoder gives."""
        return self.latent_channels

    def spec(self, data: DataSpec) -> DataSpec:
        if data.kind != "pixels":
            raise UserError(f"a first stage is of pixels, the data is {data.kind}")
        height, width, channels = data.shape
        if channels != self.data_channels:
            raise UserError(
                f"the first stage is of {self.data_channels} channels, the data has {channels}: train one for this data"
            )
        if height % self.factor or width % self.factor:
            raise UserError(
                f"the first stage makes a side {self.factor} times shorter, and {height}x{width} does not divide by "
                f"that: set data.image_size and data.crop, or give it fewer levels"
            )
        return DataSpec(kind="latents", shape=(height // self.factor, width // self.factor, self.latent_channels))

    @property
    def encoder(self) -> Encoder:
        """The network from pictures to what latents are made of."""
        return Encoder(
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
            out_channels=self.encoded_channels,
            dtype=self.dtype,
        )

    @property
    def decoder(self) -> Decoder:
        """The network from latents to pictures."""
        return Decoder(
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
            out_channels=self.data_channels * self.patch_size**2,
            dtype=self.dtype,
        )

    def init_params(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Parameters of both networks, drawn; shift 0 and scale 1."""

        @jax.jit
        def init(key: Key[Array, ""]) -> dict[str, Any]:
            x = space_to_depth(jnp.zeros((1, 2 * self.factor, 2 * self.factor, self.data_channels)), self.patch_size)
            z = jnp.zeros((1, 2, 2, self.latent_channels))
            first, second = (counter_key(one) for one in jax.random.split(key))
            return {
                "encoder": self.encoder.init({"params": first}, x)["params"],
                "decoder": self.decoder.init({"params": second}, z)["params"],
                SHIFT: jnp.zeros((self.latent_channels,)),
                SCALE: jnp.ones((self.latent_channels,)),
                **({SHORTCUT: self._init_shortcut(key)} if self.shortcut else {}),
            }

        return init(key)

    def standardised(self, params: PyTree, mean: Array, std: Array) -> dict[str, Any]:
        """Parameters of which the latents that had mean and standard deviation `mean` and `std` have 0 and 1.

        Args:
          params: their shift and scale are replaced, not composed with.
          mean, std: of each channel (or of all), with shift 0 and scale 1.

        Raises:
          UserError: a standard deviation is zero or not finite: that channel says nothing.
        """
        shape = (self.latent_channels,)
        mean, std = (jnp.broadcast_to(jnp.asarray(value, jnp.float32), shape) for value in (mean, std))
        bad = [i for i in range(self.latent_channels) if not (0 < float(std[i]) < float("inf"))]
        if bad:
            raise UserError(f"channels {', '.join(map(str, bad))} of the latents are constant or not finite")
        return {**params, SHIFT: mean, SCALE: 1.0 / std}

    def encode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None = None) -> Latents:
        return self._scaled(params, self._encoded(params, x, keys))

    def decode(self, params: PyTree, z: Latents) -> Array:
        return self._decoded(params, z / params[SCALE] + params[SHIFT])[0]

    def autoencode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None) -> Reconstruction:
        """The way there and back, as it is trained; without keys no noise is drawn."""
        raise NotImplementedError

    def last_layer(self, kernel: Array, params: PyTree, hidden: Array) -> Array:
        """The decoder's last convolution with another kernel: what adversarial weights are measured at."""
        conv = Conv(self.data_channels * self.patch_size**2, (3, 3), padding=1, dtype=self.dtype)
        y = conv.apply({"params": {**params["decoder"]["conv_out"], "kernel": kernel}}, hidden)
        return depth_to_space(y, self.patch_size)

    def _encoded(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None) -> Latents:
        """Latents before they are scaled."""
        raise NotImplementedError

    def _decoded(self, params: PyTree, h: Latents) -> tuple[Array, Array]:
        """Pictures of latents as they were before they were scaled, and the input of the last convolution."""
        y, hidden = self.decoder.apply({"params": params["decoder"]}, h)
        y = depth_to_space(y, self.patch_size)
        if self.shortcut:
            y += depth_to_space(h.astype(y.dtype) @ params[SHORTCUT]["decoder"], self.factor)
        return y, hidden

    def _features(self, params: PyTree, x: Array) -> Latents:
        """What the encoder gives, of which latents are made."""
        h = self.encoder.apply({"params": params["encoder"]}, space_to_depth(x, self.patch_size))
        if not self.shortcut:
            return h
        straight = space_to_depth(x, self.factor).astype(h.dtype) @ params[SHORTCUT]["encoder"]
        return h.at[..., : self.latent_channels].add(straight)

    def _init_shortcut(self, key: Key[Array, ""]) -> dict[str, Array]:
        """Both maps: at first the latents are a random projection of the pixels, which the way back transposes."""
        pixels, most = self.data_channels * self.factor**2, self.latent_channels
        rows = max(pixels, most)
        basis, _ = jnp.linalg.qr(jax.random.normal(fold_name(key, SHORTCUT), (rows, min(pixels, most))))
        basis = basis if pixels >= most else basis.T
        return {"encoder": basis, "decoder": basis.T}

    def _scaled(self, params: PyTree, h: Latents) -> Latents:
        return (h - params[SHIFT]) * params[SCALE]
