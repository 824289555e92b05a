"""Qwen3's decoder (Yang et al. 2025, arXiv:2505.09388) as a text encoder: Flux.2-klein, Z-Image, Ideogram 4.

    x += attention(rms_norm(x)),  x += down (silu(gate h) * up h) with h = rms_norm(x);  last = rms_norm(x)

A token attends to itself and to earlier ones; several heads of queries share one head of keys and values. Queries and
keys have their own RMS norm for each head, and are rotated by their position (Su et al. 2021, arXiv:2104.09864); the
two parts of a rotated pair are in the two halves of a head's channels.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.models.attention import attention, causal
from diffusion_jax.models.encoders.blocks import Hidden, Tokens, scanned, with_first
from diffusion_jax.models.layers import Dense, at_least_float32

Heads = Float[Array, "batch tokens heads channels"]
Waves = tuple[Float[Array, "tokens half"], Float[Array, "tokens half"]]


class DecoderStates(NamedTuple):
    """The outputs of the decoder; at least float32.

    Attributes:
      hidden: [depth + 1, batch, length, width], the embeddings first, all of them before the final norm.
      last: [batch, length, width], the last of them after the final norm.
    """

    hidden: Hidden
    last: Tokens


class Qwen3Block(nn.Module, kw_only=True):
    """Attention and a gated MLP, each behind an RMS norm; in the form that a scan needs."""

    num_heads: int
    num_key_heads: int
    head_channels: int
    hidden_units: int
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, waves: Waves, mask: Bool[Array, "batch tokens"] | None) -> tuple[Tokens, Tokens]:
        width = x.shape[-1]
        dense = functools.partial(Dense, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.RMSNorm, epsilon=self.norm_eps, dtype=self.dtype)

        def heads(name: str, count: int) -> Heads:
            return dense(count * self.head_channels, name=name)(y).reshape(*y.shape[:2], count, self.head_channels)

        y = norm(name="norm_1")(x)
        query = rotated(norm(name="query_norm")(heads("query", self.num_heads)), waves)
        key = rotated(norm(name="key_norm")(heads("key", self.num_key_heads)), waves)
        shared = self.num_heads // self.num_key_heads
        key, value = (jnp.repeat(part, shared, axis=2) for part in (key, heads("value", self.num_key_heads)))
        h = attention(query, key, value, mask=mask, bias=causal(x.shape[1]))
        x += dense(width, name="attention_out")(h.reshape(*x.shape[:2], -1))
        y = norm(name="norm_2")(x)
        h = nn.silu(dense(self.hidden_units, name="gate")(y)) * dense(self.hidden_units, name="mlp_in")(y)
        x += dense(width, name="mlp_out")(h)
        return x, x


class Qwen3(nn.Module, kw_only=True):
    """Maps texts to Qwen3's states.

    Attributes:
      vocabulary: number of tokens.
      width, depth, num_heads, num_key_heads, head_channels, hidden_units: of the transformer and its MLPs.
      theta: base of the frequencies of rotation.
      norm_eps: epsilon of the RMS norms.
      dtype: type in which activations are computed; parameters are float32 always.
    """

    vocabulary: int
    width: int
    depth: int
    num_heads: int
    num_key_heads: int
    head_channels: int
    hidden_units: int
    theta: float = 1e6
    norm_eps: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> DecoderStates:
        """The states of texts; positions count from the first token, padding or not.

        Args:
          tokens: as named.
          mask: which tokens are attended to; the outputs of the others have no meaning.
        """
        wide = at_least_float32(self.dtype)
        table = jnp.asarray(self.param("embedding", nn.initializers.normal(0.02), (self.vocabulary, self.width)))
        blocks = scanned(Qwen3Block, self.depth)(
            num_heads=self.num_heads,
            num_key_heads=self.num_key_heads,
            head_channels=self.head_channels,
            hidden_units=self.hidden_units,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            name="blocks",
        )
        x = table[tokens].astype(self.dtype)
        waves = rotations(tokens.shape[1], self.head_channels, self.theta)
        h, states = blocks(x, waves, None if mask is None else mask.astype(bool))
        last = nn.RMSNorm(epsilon=self.norm_eps, dtype=wide, name="norm")(h)
        return DecoderStates(with_first(x, states).astype(wide), last)


def rotations(length: int, channels: int, theta: float) -> Waves:
    """Cosines and sines of position * theta^(-2 i / channels), float32 products of frequencies rounded from float64."""
    frequencies = (theta ** (-np.arange(0, channels, 2) / channels)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotated(
    x: Float[Array, "batch tokens heads channels"], waves: Waves
) -> Float[Array, "batch tokens heads channels"]:
    """x with the pairs of its channels' two halves rotated by the angle of their position, at least float32."""
    cosine, sine = (wave[None, :, None] for wave in waves)
    first, second = jnp.split(x.astype(at_least_float32(x.dtype)), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
