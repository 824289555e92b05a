"""First stages that are trained here: their sizes and networks, and latents of unit variance.

The networks are those of `coder.py`. Shift and scale (`autoencoder.py`) are 0 and 1 in training and are measured
afterwards (`LearnedCodec.standardised`), so that what is diffused has mean 0 and variance 1. Published models have one
number for all channels, 0.18215 for Stable Diffusion's.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.domains import SIZE
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders.autoencoder import SCALE, SHIFT, Autoencoder, Latents
from diffusion_jax.models.autoencoders.coder import Decoder, Encoder
from diffusion_jax.models.autoencoders.tiling import Stage
from diffusion_jax.models.layers import Conv, depth_to_space, space_to_depth
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import fold_name

SHORTCUT, BASIS = "shortcut", "frozen_basis"
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


@functools.partial(jax.tree_util.register_dataclass, meta_fields=[], data_fields=["x", "hidden", "penalty", "observed"])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A batch after encoding and decoding, as the training of a first stage needs it.

    Attributes:
      x: the reconstruction.
      hidden: the input of the decoder's last convolution.
      penalty: the regularisation of the latents, for each example and per value of the data.
      observed: further scalars to log.
    """

    x: Float[Array, "batch height width channels"]
    hidden: Float[Array, "batch height width features"]
    penalty: Float[Array, " batch"]
    observed: Mapping[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedCodec(Autoencoder):
    """A convolutional autoencoder of pictures.

    Attributes:
      size: name in `SIZES`, which gives the next three fields where they are not set.
      channels: channels of the levels; every level but the first has half the resolution of the one before it.
      num_res_blocks: residual blocks of a level.
      latent_channels: channels of the latents.
      patch_size: the networks take squares with this side in pixels as one position, and return such squares: the
        levels count from there, and each costs 1 / patch_size^2 as much.
      shortcut: whether linear maps are added to the networks, from the square of pixels of a latent to the latent, and
        back, so that a network learns only the rest (residual autoencoding, Chen et al. 2024, arXiv:2410.10733, where
        the maps are averages and copies).
      whiten: whether the latents are rotated to their principal directions before they are scaled, so that what is
        diffused has unit covariance, z = (h - shift) basis * scale: noise then does not hide details of small variance
        earlier than the rest.

    Raises:
      UserError: there is no such size.
    """

    size: str = "f8"
    channels: tuple[int, ...] | None = None
    num_res_blocks: int | None = None
    latent_channels: int | None = None
    patch_size: Annotated[int, SIZE] = 1
    shortcut: bool = False
    whiten: bool = False

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
        """The ratio between a side of the data and a side of the latents."""
        return self.patch_size * 2 ** (len(self.channels) - 1)

    @property
    def has_stages(self) -> bool:
        return self.patch_size == 1 and not self.shortcut

    @property
    def encoded_channels(self) -> int:
        """Channels of the encoder's output."""
        return self.latent_channels

    @property
    def diffused_channels(self) -> int:
        return self.latent_channels

    @property
    def encoder(self) -> Encoder:
        """The network from pictures to the latents' parameters."""
        return Encoder(
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
            out_channels=self.encoded_channels,
            patch_size=self.patch_size,
            dtype=self.dtype,
        )

    @property
    def decoder(self) -> Decoder:
        """The network from latents to pictures."""
        return Decoder(
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
            out_channels=self.data_channels,
            patch_size=self.patch_size,
            dtype=self.dtype,
        )

    def init_params(self, key: Key[Array, ""]) -> dict[str, Any]:
        params = super().init_params(key)
        if self.shortcut:
            params[SHORTCUT] = self._init_shortcut(key)
        if self.whiten:
            params[BASIS] = jnp.eye(self.latent_channels)
        return params

    def stages(self, params: PyTree) -> tuple[Stage, ...]:
        if not self.has_stages:
            return super().stages(params)
        decoder, variables = self.decoder, params["decoder"]

        def run_of(stage: int):
            def run(statistics: PyTree, h: Array) -> tuple[Array, PyTree]:
                found = {"params": variables, "statistics": statistics}
                (x, _), kept = decoder.apply(found, h, (stage,), mutable=["inputs"])
                return x, kept.get("inputs", {})

            return run

        first = Stage(run=run_of(0), whole=True)
        levels = len(self.decoder.channels)
        return first, *(
            Stage(
                run=run_of(stage),
                factor=2,
                reach=decoder.stage_reach(stage),
                norms=decoder.stage_norms(stage),
                whole=levels - 1 - stage in decoder.attention_levels,
            )
            for stage in range(1, levels)
        )

    def standardised(self, params: PyTree, mean: Array, std: Array, covariance: Array | None = None) -> dict[str, Any]:
        """Parameters with which latents of mean `mean` and standard deviation `std` get mean 0 and standard deviation
        1.

        Args:
          params: parameters whose shift and scale are replaced.
          mean, std: for each channel (or for all), measured with shift 0 and scale 1.
          covariance: covariance of the channels, measured likewise; needed and used only for whitening.

        Raises:
          UserError: a standard deviation is zero or not finite, so that channel carries no information.
        """
        shape = (self.latent_channels,)
        mean, std = (jnp.broadcast_to(jnp.asarray(value, jnp.float32), shape) for value in (mean, std))
        bad = [i for i in range(self.latent_channels) if not (0 < float(std[i]) < float("inf"))]
        if bad:
            raise UserError(f"channels {', '.join(map(str, bad))} of the latents are constant or not finite")
        if not self.whiten:
            return {**params, SHIFT: mean, SCALE: 1.0 / std}
        if covariance is None:
            raise UserError("latents that are whitened need the covariance of their channels")
        variances, basis = np.linalg.eigh(np.asarray(covariance, np.float64))
        if not variances[0] > 0:
            raise UserError("a direction of the latents is constant: give the first stage fewer channels")
        scale = jnp.asarray(1.0 / np.sqrt(variances), jnp.float32)
        return {**params, SHIFT: mean, SCALE: scale, BASIS: jnp.asarray(basis, jnp.float32)}

    def autoencode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None) -> Reconstruction:
        """Encode and decode, as in training; without keys no noise is drawn."""
        raise NotImplementedError

    def last_layer(self, kernel: Array, params: PyTree, hidden: Array) -> Array:
        """The decoder's last convolution with another kernel, at which adversarial weights are measured."""
        conv = Conv(self.data_channels * self.patch_size**2, (3, 3), padding=1, dtype=self.dtype)
        y = conv.apply({"params": {**params["decoder"]["conv_out"], "kernel": kernel}}, hidden)
        return depth_to_space(y, self.patch_size)

    def _encoded(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None) -> Latents:
        return self._features(params, x)

    def _decoded(self, params: PyTree, h: Latents) -> tuple[Array, Array]:
        return self._made(params, self._quantised(params, h))

    def _scaled(self, params: PyTree, h: Latents) -> Latents:
        turned = (h - params[SHIFT]) @ params[BASIS] if self.whiten else h - params[SHIFT]
        return turned * params[SCALE]

    def _spread(self, params: PyTree, std: Latents) -> Latents:
        if self.whiten:  # of each direction alone: noise of two directions is a little correlated, which is not kept
            std = jnp.sqrt(jnp.square(std) @ jnp.square(params[BASIS]))
        return std * params[SCALE]

    def _unscaled(self, params: PyTree, z: Latents) -> Latents:
        h = z / params[SCALE]
        return (h @ params[BASIS].T if self.whiten else h) + params[SHIFT]

    def _features(self, params: PyTree, x: Array) -> Latents:
        """The latents' parameters."""
        h = self.encoder.apply({"params": params["encoder"]}, x)
        if not self.shortcut:
            return h
        straight = space_to_depth(x, self.factor).astype(h.dtype) @ params[SHORTCUT]["encoder"]
        return h.at[..., : self.latent_channels].add(straight)

    def _made(self, params: PyTree, q: Latents) -> tuple[Array, Array]:
        """Pictures for the decoder's input, and the input of the last convolution."""
        y, hidden = self.decoder.apply({"params": params["decoder"]}, q)
        if not self.shortcut:
            return y, hidden
        return y + depth_to_space(q.astype(y.dtype) @ params[SHORTCUT]["decoder"], self.factor), hidden

    def _init_shortcut(self, key: Key[Array, ""]) -> dict[str, Array]:
        """Both maps: initially a random projection of the pixels, and its transpose for the way back."""
        pixels, latent = self.data_channels * self.factor**2, self.latent_channels
        tall = (max(pixels, latent), min(pixels, latent))
        basis, _ = jnp.linalg.qr(jax.random.normal(fold_name(key, SHORTCUT), tall))
        basis = basis if pixels >= latent else basis.T
        return {"encoder": basis, "decoder": basis.T}
