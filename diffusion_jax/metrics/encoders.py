"""The transformers behind FD-DINOv2, CMMD and the CLIP score: vision transformers, and CLIP's encoder of texts.

    DINOv2 (Oquab et al. 2023, arXiv:2304.07193)   layer scale, exact GELU, a table of positions that is resampled
    CLIP (Radford et al. 2021, arXiv:2103.00020)   a layer norm before the blocks too, x sigmoid(1.702 x) for GELU

In all sizes of both that are read here a head has 64 channels.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.models.attention import split_heads
from diffusion_jax.models.dit import patchify
from diffusion_jax.models.layers import QKV

HEAD_CHANNELS = 64
Activation = Literal["gelu", "quick_gelu"]
Tokens = Float[Array, "batch tokens dim"]

_ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
# What DINOv2 adds to the number of patches before it takes the factor by which its table of positions is resampled.
_POSITION_OFFSET = 0.1


class EncoderBlock(nn.Module, kw_only=True):
    """Attention and MLP, each after a layer norm; in the form that scan wants."""

    activation: Activation
    norm_eps: float
    layer_scale: bool
    causal: bool

    @nn.compact
    def __call__(self, x: Tokens, _: None = None) -> tuple[Tokens, None]:
        dim = x.shape[-1]
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, use_fast_variance=False)

        def scaled(y, name):
            return y * self.param(name, nn.initializers.ones, (dim,)) if self.layer_scale else y

        qkv = QKV(features=dim, name="qkv")(norm(name="norm_1")(x))
        h = jax.nn.dot_product_attention(*split_heads(qkv, dim // HEAD_CHANNELS), is_causal=self.causal)
        x += scaled(nn.Dense(dim, name="attention_out")(h.reshape(x.shape)), "scale_1")
        h = nn.Dense(4 * dim, name="mlp_in")(norm(name="norm_2")(x))
        x += scaled(nn.Dense(dim, name="mlp_out")(_ACTIVATIONS[self.activation](h)), "scale_2")
        return x, None


def _blocks(x: Tokens, depth: int, **fields) -> Tokens:
    scan = nn.scan(EncoderBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth)
    return scan(name="blocks", **fields)(x, None)[0]


class VisionTransformer(nn.Module, kw_only=True):
    """Images to one vector each: the class token after the last norm, projected where there is a projection.

    Attributes:
      patch_size: side of a patch, in pixels.
      grid: patches along a side of the images that the table of positions is for; for others it is resampled.
      hidden_size, depth: of the transformer.
      projection: channels of the result; 0: the class token as it is.
      layer_scale, first_norm, patch_bias: whether there is a scale after each branch, a norm before the first block, a
        bias in the embedding of patches.
      activation: of the MLPs.
      norm_eps: of the layer norms.
    """

    patch_size: int
    grid: int
    hidden_size: int
    depth: int
    projection: int = 0
    layer_scale: bool = False
    first_norm: bool = False
    patch_bias: bool = True
    activation: Activation = "gelu"
    norm_eps: float = 1e-6

    @property
    def image_size(self) -> int:
        """Height and width of the images that the table of positions is for."""
        return self.grid * self.patch_size

    @nn.compact
    def __call__(
        self, images: Float[Array, "n height width 3"], *, patches: bool = False
    ) -> Float[Array, "n channels"] | Float[Array, "n tokens hidden_size"]:
        """With `patches`, the vectors of all patches after the last norm, row by row."""
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, use_fast_variance=False)
        draw = nn.initializers.normal(0.02)
        tokens = patchify(images, self.patch_size)
        x = nn.Dense(self.hidden_size, use_bias=self.patch_bias, name="patch_embedding")(tokens)
        first = self.param("class_token", draw, (self.hidden_size,))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.hidden_size)), x], axis=1)
        x += self._positions(self.param("position", draw, (1 + self.grid**2, self.hidden_size)), images.shape[1:3])
        if self.first_norm:
            x = norm(name="first_norm")(x)
        x = _blocks(
            x,
            self.depth,
            activation=self.activation,
            norm_eps=self.norm_eps,
            layer_scale=self.layer_scale,
            causal=False,
        )
        x = norm(name="norm")(x[:, 1:] if patches else x[:, 0])
        if patches:
            return x
        return nn.Dense(self.projection, use_bias=False, name="projection")(x) if self.projection else x

    def _positions(self, table: Float[Array, "tokens dim"], size: tuple[int, int]) -> Float[Array, "tokens2 dim"]:
        rows, columns = (side // self.patch_size for side in size)
        if (rows, columns) == (self.grid, self.grid):
            return table
        grid = table[1:].reshape(self.grid, self.grid, -1)
        down, across = (bicubic_matrix(self.grid, n, (n + _POSITION_OFFSET) / self.grid) for n in (rows, columns))
        patches = jnp.einsum("ih,hwc,jw->ijc", jnp.asarray(down), grid, jnp.asarray(across))
        return jnp.concatenate([table[:1], patches.reshape(-1, table.shape[-1])])


class TextTransformer(nn.Module, kw_only=True):
    """CLIP's texts to one vector each: the token that ends the text, after the last norm, projected.

    Attributes:
      vocabulary: number of tokens.
      length: positions that there are.
      hidden_size, depth, projection, activation, norm_eps: as in `VisionTransformer`.
    """

    vocabulary: int
    length: int
    hidden_size: int
    depth: int
    projection: int
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(self, tokens: Int[Array, "n length"]) -> Float[Array, "n channels"]:
        """`tokens` end with the token of the highest number, the mark of a text's end, and may repeat it."""
        draw = nn.initializers.normal(0.02)
        x = self.param("token", draw, (self.vocabulary, self.hidden_size))[tokens]
        x += self.param("position", draw, (self.length, self.hidden_size))[: tokens.shape[1]]
        x = _blocks(x, self.depth, activation=self.activation, norm_eps=self.norm_eps, layer_scale=False, causal=True)
        x = nn.LayerNorm(epsilon=self.norm_eps, use_fast_variance=False, name="norm")(x)
        x = x[jnp.arange(len(x)), jnp.argmax(tokens, axis=1)]
        return nn.Dense(self.projection, use_bias=False, name="projection")(x)


def bicubic_matrix(old: int, new: int, factor: float) -> Float[np.ndarray, "new old"]:
    """Bicubic interpolation of a row as PyTorch does it without a filter: a = -3/4, borders repeated.

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
