"""Attention of one sequence's tokens to another sequence's; a mask leaves some of those out."""

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from diffusion_jax.models.attention import attention
from diffusion_jax.models.layers import Dense

Mask = Bool[Array, "batch context"]

_glorot = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class CrossAttention(nn.Module, kw_only=True):
    """Attention of tokens to a context or to themselves, without biases but the last (Rombach et al. 2022, 3.3).

    Attributes:
      num_heads: attention heads.
      dtype: of the computation.
      last_init: of the last layer's kernel.
    """

    num_heads: int
    dtype: DTypeLike
    last_init: nn.initializers.Initializer = _glorot

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        context: Float[Array, "batch context width"] | None = None,
        mask: Mask | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        context = x if context is None else context
        dim = x.shape[-1]

        def heads(v, name):
            v = Dense(dim, use_bias=False, dtype=self.dtype, kernel_init=_glorot, name=name)(v)
            return v.reshape(*v.shape[:2], self.num_heads, dim // self.num_heads)

        h = attention(heads(x, "query"), heads(context, "key"), heads(context, "value"), mask=mask)
        return Dense(dim, dtype=self.dtype, kernel_init=self.last_init, name="out")(h.reshape(x.shape))
