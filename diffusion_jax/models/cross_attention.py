"""Attention of one sequence's tokens to another sequence's; a mask can exclude some of those.

Keys and values of pictures may be added to the context; each is attended to separately (IP-Adapter, Ye et al. 2023,
arXiv:2308.06721, eq. 5):

    out = Attention(Q, K, V) + sum_i Attention(Q, K_i, s_i V_i)
"""

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from diffusion_jax.models.attention import attention
from diffusion_jax.models.layers import Dense

Mask = Bool[Array, "batch context"]
Beside = tuple[tuple[Float[Array, "batch tokens dim"], Float[Array, "batch tokens dim"]], ...]
"""Pairs (K_i, s_i V_i), already projected; the values include the scale."""

_glorot = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class CrossAttention(nn.Module, kw_only=True):
    """Attention of tokens to a context or to themselves; only the last layer has a bias (Rombach et al. 2022, 3.3).

    Attributes:
      num_heads: attention heads.
      dtype: type of the computation.
      last_init: initialiser of the last layer's kernel.
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
        beside: Beside = (),
    ) -> Float[Array, "batch tokens dim"]:
        context = x if context is None else context
        dim = x.shape[-1]

        def split(v):
            return v.reshape(*v.shape[:2], self.num_heads, dim // self.num_heads)

        def heads(v, name):
            return split(Dense(dim, use_bias=False, dtype=self.dtype, kernel_init=_glorot, name=name)(v))

        query = heads(x, "query")
        h = attention(query, heads(context, "key"), heads(context, "value"), mask=mask)
        for key, value in beside:
            h += attention(query, split(key.astype(self.dtype)), split(value.astype(self.dtype)))
        return Dense(dim, dtype=self.dtype, kernel_init=self.last_init, name="out")(h.reshape(x.shape))
