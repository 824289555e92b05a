"""Vision transformers with published weights: DINOv2, and the image encoders of CLIP and SigLIP.

DINOv2 (Oquab et al. 2023, arXiv:2304.07193)   layer scale, exact GELU, a table of positions that is resampled
CLIP (Radford et al. 2021, arXiv:2103.00020)   a layer norm before the blocks too, x sigmoid(1.702 x) for GELU
SigLIP (Zhai et al. 2023, arXiv:2303.15343)    no class token; one learned query attends to all for the vector
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import attention, split_heads
from diffusion_jax.models.dit import patchify
from diffusion_jax.models.encoders.blocks import (
    ACTIVATIONS,
    Activation,
    Hidden,
    PreNormBlock,
    Tokens,
    scanned,
    with_first,
)
from diffusion_jax.models.layers import QKV, Dense, at_least_float32

# DINOv2 adds this to the number of patches before it computes the resampling factor of its table of positions.
_POSITION_OFFSET = 0.1


class VisionStates(NamedTuple):
    """The outputs of a picture encoder; at least float32. Tokens are a class token, if there is one, and the patches,
    row by row.

    Attributes:
      hidden: [depth + 1, batch, tokens, width], the input of the first block and the output of each block.
      last: [batch, tokens, width], the last of them after the last norm.
      pooled: [batch, width], the class token of `last`, or the result of the pooling head.
      projected: [batch, projection]; None where there is no projection.
    """

    hidden: Hidden
    last: Tokens
    pooled: Float[Array, "batch width"]
    projected: Float[Array, "batch projection"] | None

    @property
    def vector(self) -> Float[Array, "batch channels"]:
        """One vector for a picture: projected, if there is a projection."""
        return self.pooled if self.projected is None else self.projected


class VisionTransformer(nn.Module, kw_only=True):
    """Maps pictures, normalised as the weights require, to states.

    Attributes:
      patch_size: side of a patch, in pixels.
      grid: patches per side of the pictures that the table of positions is for; for others it is resampled.
      width, depth: of the transformer.
      num_heads, hidden_units: of its attention and its MLPs; 0: one head per 64 channels, and 4 times the width.
      projection: channels of the projected vector; 0: there is none.
      layer_scale, first_norm, patch_bias: whether there is a scale after each branch, a norm before the first block, a
        bias in the embedding of patches.
      class_token: whether there is a class token to pool; without it a learned query pools.
      activation: activation of the MLPs.
      norm_eps: epsilon of the layer norms.
      dtype: type in which activations are computed; parameters are float32 always.
    """

    patch_size: int
    grid: int
    width: int
    depth: int
    num_heads: int = 0
    hidden_units: int = 0
    projection: int = 0
    layer_scale: bool = False
    first_norm: bool = False
    patch_bias: bool = True
    class_token: bool = True
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @property
    def image_size(self) -> int:
        """Height and width of the pictures that the table of positions is for."""
        return self.grid * self.patch_size

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.num_heads or self.width // 64

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]) -> VisionStates:
        """The states of pictures, whose sides divide by the patch.

        Raises:
          UserError: they do not divide.
        """
        if images.shape[1] % self.patch_size or images.shape[2] % self.patch_size:
            raise UserError(
                f"pictures of {images.shape[1]}x{images.shape[2]} cannot be cut into patches of {self.patch_size}"
            )
        wide = at_least_float32(self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, use_fast_variance=False)
        draw = nn.initializers.normal(0.02)
        x = patchify(images, self.patch_size)
        x = Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, name="patch_embedding")(x)
        if self.class_token:
            first = self.param("class_token", draw, (self.width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.width)), x], axis=1)
        table = self.param("position", draw, (int(self.class_token) + self.grid**2, self.width))
        x += self._positions(table, images.shape[1:3]).astype(x.dtype)
        if self.first_norm:
            x = norm(dtype=self.dtype, name="first_norm")(x)
        fields = {
            "num_heads": self.heads,
            "hidden_units": self.hidden_units or 4 * self.width,
            "activation": self.activation,
            "norm_eps": self.norm_eps,
            "dtype": self.dtype,
        }
        blocks = scanned(PreNormBlock, self.depth)(**fields, layer_scale=self.layer_scale, name="blocks")
        h, states = blocks(x, None)
        last = norm(dtype=wide, name="norm")(h)
        pooled = last[:, 0] if self.class_token else PoolingHead(**{**fields, "dtype": wide}, name="head")(last)
        projected = None
        if self.projection:
            projected = Dense(self.projection, use_bias=False, dtype=wide, name="projection")(pooled)
        return VisionStates(with_first(x, states).astype(wide), last, pooled, projected)

    def _positions(self, table: Float[Array, "tokens width"], size: tuple[int, int]) -> Float[Array, "tokens2 width"]:
        rows, columns = (side // self.patch_size for side in size)
        if (rows, columns) == (self.grid, self.grid):
            return table
        skipped = int(self.class_token)
        grid = table[skipped:].reshape(self.grid, self.grid, -1)
        down, across = (bicubic_matrix(self.grid, n, (n + _POSITION_OFFSET) / self.grid) for n in (rows, columns))
        patches = jnp.einsum("ih,hwc,jw->ijc", jnp.asarray(down), grid, jnp.asarray(across))
        return jnp.concatenate([table[:skipped], patches.reshape(-1, table.shape[-1])])


class PoolingHead(nn.Module, kw_only=True):
    """SigLIP's pooling: a learned query attends to all tokens, and an MLP follows on a residual branch."""

    num_heads: int
    hidden_units: int
    activation: Activation
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "batch width"]:
        width = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype)
        probe = self.param("probe", nn.initializers.normal(1.0), (width,)).astype(x.dtype)
        # One matrix holds the projections of query, key and value; only the probe needs the query's.
        project = QKV(features=width, dtype=self.dtype, name="qkv")
        query = project(jnp.broadcast_to(probe, (len(x), 1, width)))[0]
        _, key, value = project(x)
        heads = (split_heads([part], self.num_heads)[0] for part in (query, key, value))
        h = dense(width, name="attention_out")(attention(*heads).reshape(len(x), 1, width))
        norm = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, use_fast_variance=False, name="norm")
        y = ACTIVATIONS[self.activation](dense(self.hidden_units, name="mlp_in")(norm(h)))
        return (h + dense(width, name="mlp_out")(y))[:, 0]


def bicubic_matrix(old: int, new: int, factor: float) -> Float[np.ndarray, "new old"]:
    """Bicubic interpolation of a row as in PyTorch without a filter: a = -3/4, borders repeated.

    Pixel i of the result is at (i + 1/2) / factor - 1/2; `factor` need not be new / old.
    """
    source = (np.arange(new) + 0.5) / factor - 0.5
    low = np.floor(source).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        x, a = np.abs(source - (low + tap)), -0.75
        inner = ((a + 2) * x - (a + 3)) * x * x + 1
        outer = a * (((x - 5) * x + 8) * x - 4)
        np.add.at(matrix, (np.arange(new), np.clip(low + tap, 0, old - 1)), np.where(x <= 1, inner, outer))
    return matrix.astype(np.float32)
