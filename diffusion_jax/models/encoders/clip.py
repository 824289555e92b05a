"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020) in the sizes L, H and bigG, for image generators.

    x_0 = tokens + positions,  x_i = block_i(x_{i-1}) under a causal mask,  last = norm(x_depth)

Stable Diffusion 1 reads the last state after the final norm; SDXL and SD3 read an earlier one before it. Pooled is
`last` at the token that ends the text, and projected is a linear map of it. There is no mask: tokens after the end of a
text are attended to only by later tokens, and generators attend to all of them.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import causal
from diffusion_jax.models.encoders.blocks import Activation, Hidden, PreNormBlock, Tokens, scanned, with_first
from diffusion_jax.models.layers import Dense, at_least_float32


class TextStates(NamedTuple):
    """The outputs of a text encoder; at least float32.

    Attributes:
      hidden: [depth + 1, batch, length, width], the embeddings first, all of them before the final norm.
      last: [batch, length, width], the last of them after the final norm.
      pooled: [batch, width], `last` at the end of the text.
      projected: [batch, projection]; None where the encoder has no projection.
    """

    hidden: Hidden
    last: Tokens
    pooled: Float[Array, "batch width"]
    projected: Float[Array, "batch projection"] | None


class ClipText(nn.Module, kw_only=True):
    """Maps texts to CLIP's states.

    Attributes:
      vocabulary: number of tokens.
      length: number of positions.
      width, depth, num_heads, hidden_units: of the transformer and its MLPs.
      projection: channels of the projected vector; 0: there is none.
      activation: activation of the MLPs.
      norm_eps: epsilon of the layer norms.
      end_token: the token whose first occurrence is pooled; None: the position of the highest token of a text. A
        published config with `eos_token_id: 2` means the latter, whatever its tokens are.
      dtype: type in which activations are computed; parameters are float32 always.
    """

    vocabulary: int
    length: int
    width: int
    depth: int
    num_heads: int
    hidden_units: int
    projection: int = 0
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    end_token: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"]) -> TextStates:
        """The states of texts.

        Raises:
          UserError: a text has more tokens than there are positions.
        """
        length = tokens.shape[1]
        if length > self.length:
            raise UserError(
                f"the texts have {length} tokens, but the text encoder has {self.length} positions: cut them"
            )
        draw, wide = nn.initializers.normal(0.02), at_least_float32(self.dtype)
        x = jnp.asarray(self.param("token", draw, (self.vocabulary, self.width)))[tokens]
        x += self.param("position", draw, (self.length, self.width))[:length]
        x = x.astype(self.dtype)
        blocks = scanned(PreNormBlock, self.depth)(
            num_heads=self.num_heads,
            hidden_units=self.hidden_units,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            name="blocks",
        )
        h, states = blocks(x, causal(length))
        last = nn.LayerNorm(epsilon=self.norm_eps, dtype=wide, use_fast_variance=False, name="norm")(h)
        pooled = last[jnp.arange(len(tokens)), self._ends(tokens)]
        projected = None
        if self.projection:
            projected = Dense(self.projection, use_bias=False, dtype=wide, name="projection")(pooled)
        return TextStates(with_first(x, states).astype(wide), last, pooled, projected)

    def _ends(self, tokens: Int[Array, "batch length"]) -> Int[Array, " batch"]:
        return jnp.argmax(tokens if self.end_token is None else tokens == self.end_token, axis=1)
