"""Blocks that U-Nets share: residual, attention, and the transformers that attend to a context."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.cross_attention import Beside, CrossAttention, Mask
from diffusion_jax.models.dit import checkpointed
from diffusion_jax.models.layers import QKV, Conv, Dense, Dropout, at_least_float32, resample
from diffusion_jax.models.network import Network

Image = Float[Array, "batch height width channels"]
Direction = Literal["up", "down"] | None
Modulation = Literal["add", "scale_shift", "double_norm"]

# Glorot's rule, uniform: DDPM's initialisation of everything but zeros.
_glorot = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
# Three [C, C] kernels side by side have twice the mean fan of one: scale 2 gives each its own variance.
_glorot_qkv = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
_zeros = nn.initializers.zeros


class ResBlock(nn.Module, kw_only=True):
    """norm, SiLU, conv, + time; norm, SiLU, dropout, conv; + shortcut.

    Attributes:
      features: channels of the output.
      dropout: rate before the second convolution.
      norm: makes a group norm.
      dtype: type of the computation.
      modulation: time is added before the second norm ("add"), or scales and shifts its result: by 1 + scale in
        "scale_shift" (ADM), or by scale and shift of unit mean square in "double_norm", which bounds derivatives in
        time (adaptive double normalization, Lu & Song 2024, arXiv:2410.11081, section 4.1).
      direction: "up" or "down" changes the resolution, between the first SiLU and convolution and on the shortcut.
      taps: the filter of the change of resolution.
      project: whether a shortcut that changes the resolution always has a convolution, as in score SDE.
      residual_scale: scale of the sum; 1/sqrt(2) in score SDE.
      init: initialiser of the kernels.
      last_init: initialiser of the second convolution.
    """

    features: int
    dropout: float
    norm: functools.partial
    dtype: DTypeLike
    modulation: Modulation = "add"
    direction: Direction = None
    taps: tuple[float, ...] = (1, 1)
    project: bool = False
    residual_scale: float = 1.0
    init: nn.initializers.Initializer = _glorot
    last_init: nn.initializers.Initializer = _zeros

    @nn.compact
    def __call__(
        self, x: Image, embedding: Float[Array, "batch dim"], dropout_keys: Key[Array, " batch"] | None
    ) -> Image:
        conv = functools.partial(Conv, self.features, (3, 3), padding=1, dtype=self.dtype)
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.init)

        h = nn.silu(self.norm(name="norm_0")(x))
        if self.direction:
            h, x = (resample(v, self.direction, self.taps) for v in (h, x))
        h = conv(kernel_init=self.init, name="conv_0")(h)
        vector = dense(self.features * (1 if self.modulation == "add" else 2), name="time")(embedding)[:, None, None]
        if self.modulation == "add":
            h = self.norm(name="norm_1")(h + vector)
        else:
            scale, shift = jnp.split(vector, 2, axis=-1)
            scale, shift = (1 + scale, shift) if self.modulation == "scale_shift" else map(pixel_norm, (scale, shift))
            h = self.norm(name="norm_1")(h) * scale + shift
        h = Dropout(rate=self.dropout, name="dropout")(nn.silu(h), dropout_keys)
        h = conv(kernel_init=self.last_init, name="conv_1")(h)
        if x.shape[-1] != self.features or (self.direction and self.project):
            x = dense(self.features, name="shortcut")(x)
        return scaled(x + h, self.residual_scale)


def pixel_norm(x: Image) -> Image:
    """Divide every position by the root mean square of its channels (Karras et al. 2018, arXiv:1710.10196)."""
    wide = x.astype(at_least_float32(x.dtype))
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-8)).astype(x.dtype)


def scaled(x: Image, factor: float) -> Image:
    """factor * x; x itself for 1."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


class AttentionBlock(nn.Module, kw_only=True):
    """Self-attention over all positions, on a residual branch."""

    num_heads: int
    norm: functools.partial | None
    dtype: DTypeLike
    residual_scale: float = 1.0
    init: nn.initializers.Initializer = _glorot_qkv
    last_init: nn.initializers.Initializer = _zeros

    @nn.compact
    def __call__(self, x: Image) -> Image:
        batch, height, width, channels = x.shape
        h = self.norm(name="norm")(x) if self.norm else x
        h = h.reshape(batch, height * width, channels)
        qkv = QKV(features=channels, dtype=self.dtype, kernel_init=self.init, name="qkv")(h)
        h = self_attention(qkv, self.num_heads).reshape(x.shape)
        h = Dense(channels, dtype=self.dtype, kernel_init=self.last_init, name="out")(h)
        return scaled(x + h, self.residual_scale)


class TransformerBlock(nn.Module, kw_only=True):
    """Self-attention, attention to the context, gated MLP (GEGLU), each on a residual branch after a layer norm.

    Attributes:
      num_heads: attention heads.
      dtype: type of the computation.
      only_cross: whether the first attention is also to the context (the x4 upscaler of Stable Diffusion).
    """

    num_heads: int
    dtype: DTypeLike
    only_cross: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        context: Float[Array, "batch context width"],
        mask: Mask | None = None,
        beside: Beside = (),
    ) -> Float[Array, "batch tokens dim"]:
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_glorot)
        first = (context, mask) if self.only_cross else ()
        x += CrossAttention(num_heads=self.num_heads, dtype=self.dtype, name="self")(norm(name="norm_0")(x), *first)
        cross = CrossAttention(num_heads=self.num_heads, dtype=self.dtype, name="cross")
        x += cross(norm(name="norm_1")(x), context, mask, beside)
        h, gate = jnp.split(dense(8 * x.shape[-1], name="mlp_in")(norm(name="norm_2")(x)), 2, axis=-1)
        return x + dense(x.shape[-1], name="mlp_out")(h * nn.gelu(gate, approximate=False))


class SpatialTransformer(nn.Module, kw_only=True):
    """Transformer blocks over all positions, between two linear maps, on a residual branch (latent diffusion).

    Attributes:
      num_heads: attention heads.
      depth: blocks.
      norm: makes the group norm.
      dtype: type of the computation.
      only_cross: see `TransformerBlock`.
      scanned: whether the blocks are one scan over stacked parameters, "blocks", or modules "block_0", "block_1", ...
      remat: what the backward pass keeps of a block in the scan, see `dit.checkpointed`.
    """

    num_heads: int
    depth: int
    norm: functools.partial
    dtype: DTypeLike
    only_cross: bool = False
    scanned: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        x: Image,
        context: Float[Array, "batch context width"],
        mask: Mask | None = None,
        beside: tuple[tuple[Float[Array, "batch depth tokens dim"], Float[Array, "batch depth tokens dim"]], ...] = (),
    ) -> Image:
        """`beside`: keys and values of pictures for every block, see `CrossAttention`."""
        batch, height, width, channels = x.shape
        by_block = jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), beside)
        h = self.norm(name="norm")(x).reshape(batch, height * width, channels)
        h = Dense(channels, dtype=self.dtype, kernel_init=_glorot, name="in")(h)
        fields = {"num_heads": self.num_heads, "dtype": self.dtype, "only_cross": self.only_cross}
        if self.scanned:
            block = checkpointed(TransformerBlock, self.remat)(**fields, name="blocks")
            loop = nn.scan(
                lambda block, h, own: (block(h, context, mask, own), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            h, _ = loop(block, h, by_block)
        else:
            for layer in range(self.depth):
                own = jax.tree.map(lambda v, layer=layer: v[layer], by_block)
                h = TransformerBlock(**fields, name=f"block_{layer}")(h, context, mask, own)
        return x + Dense(channels, dtype=self.dtype, kernel_init=_zeros, name="out")(h).reshape(x.shape)


def require_halvings(network: Network, levels: int, patch_size: int = 1) -> int:
    """The number of halvings in a network with so many levels; UserError if there is no level, or if `image_size` does
    not divide accordingly.
    """
    if not levels:
        raise UserError(f"{type(network).__name__} needs at least one level: channel_multipliers is empty")
    halvings, size = levels - 1, network.image_size
    divisor = patch_size * 2**halvings
    if size % divisor:
        patches = f" of {patch_size}x{patch_size} patches" if patch_size > 1 else ""
        raise UserError(
            f"{type(network).__name__} halves images{patches} {halvings} times: image_size={size} is not divisible by "
            f"{divisor}; pad the images or give fewer channel_multipliers"
        )
    return halvings
