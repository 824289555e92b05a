"""T5's encoder, version 1.1 (Raffel et al. 2020, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202), and ByT5.

    x += attention(rms_norm(x)),  x += wo (gelu(wi_0 h) * wi_1 h) with h = rms_norm(x);  last = rms_norm(x)

Logits are not divided by sqrt(d). A learned number for the distance between key and query is added to them. Distances
are sorted into buckets, in either direction: exact ones up to a quarter of the number of buckets, then logarithmic ones
up to a largest distance. The first block's table serves all blocks. There are no biases.
"""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models.attention import attention
from diffusion_jax.models.encoders.blocks import ACTIVATIONS, Activation, Tokens, scanned
from diffusion_jax.models.layers import QKV, Dense, at_least_float32


class T5Block(nn.Module, kw_only=True):
    """Attention with a bias of relative positions and a gated MLP, each after an RMS norm; for use in a scan."""

    num_heads: int
    head_channels: int
    hidden_units: int
    gated: bool
    activation: Activation
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Tokens, bias: Float[Array, "heads tokens tokens"], mask: Bool[Array, "batch tokens"] | None
    ) -> tuple[Tokens, None]:
        batch, length, width = x.shape
        inner = self.num_heads * self.head_channels
        dense = functools.partial(Dense, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.RMSNorm, epsilon=self.norm_eps, dtype=self.dtype)
        qkv = QKV(features=inner, use_bias=False, dtype=self.dtype, name="qkv")(norm(name="norm_1")(x))
        query, key, value = (part.reshape(batch, length, self.num_heads, -1) for part in qkv)
        query = query * np.asarray(math.sqrt(self.head_channels), query.dtype)  # which `attention` divides by
        h = attention(query, key, value, mask=mask, bias=bias).reshape(batch, length, inner)
        x += dense(width, name="attention_out")(h)
        y = norm(name="norm_2")(x)
        h = dense(self.hidden_units, name="mlp_in")(y)
        act = ACTIVATIONS[self.activation]
        h = act(dense(self.hidden_units, name="gate")(y)) * h if self.gated else act(h)
        return x + dense(width, name="mlp_out")(h), None


class T5Encoder(nn.Module, kw_only=True):
    """Maps texts to one vector for each token.

    Attributes:
      vocabulary: number of tokens.
      width, depth, num_heads, head_channels, hidden_units: of the transformer and its MLPs.
      buckets, max_distance: buckets of relative positions, and the largest distance.
      gated: whether the MLP is a product of two branches (version 1.1).
      activation: activation of the MLPs.
      norm_eps: epsilon of the RMS norms.
      dtype: type in which activations are computed; parameters are float32 always.
    """

    vocabulary: int
    width: int
    depth: int
    num_heads: int
    head_channels: int
    hidden_units: int
    buckets: int = 32
    max_distance: int = 128
    gated: bool = True
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length width"]:
        """The vectors of all tokens; `mask` says which tokens are attended to, all of them by default."""
        table = jnp.asarray(self.param("embedding", nn.initializers.normal(1.0), (self.vocabulary, self.width)))
        positions = self.param("position", nn.initializers.normal(0.1), (self.buckets, self.num_heads))
        buckets = relative_buckets(tokens.shape[1], self.buckets, self.max_distance)
        bias = jnp.moveaxis(jnp.asarray(positions)[buckets], -1, 0)
        blocks = scanned(T5Block, self.depth)(
            num_heads=self.num_heads,
            head_channels=self.head_channels,
            hidden_units=self.hidden_units,
            gated=self.gated,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            name="blocks",
        )
        x, _ = blocks(table[tokens].astype(self.dtype), bias, None if mask is None else mask.astype(bool))
        return nn.RMSNorm(epsilon=self.norm_eps, dtype=at_least_float32(self.dtype), name="norm")(x)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "queries keys"]:
    """The bucket of each pair of positions: half for keys after the query, half for keys at or before it."""
    places = np.arange(length)
    offset = places[None, :] - places[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)
