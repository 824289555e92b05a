"""The transformer block of published text and picture encoders: attention and MLP, each after a layer norm."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.layers import QKV, Dense

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
Tokens = Float[Array, "batch tokens width"]
Hidden = Float[Array, "states batch tokens width"]

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
}


class PreNormBlock(nn.Module, kw_only=True):
    """Attention and MLP, each behind a layer norm on a residual branch; in the form that a scan needs.

    Attributes:
      num_heads: attention heads.
      hidden_units: hidden units of the MLP.
      activation: activation of the MLP.
      norm_eps: epsilon of the layer norms.
      layer_scale: whether a scale follows each branch (DINOv2).
      dtype: type of the computation.
    """

    num_heads: int
    hidden_units: int
    activation: Activation
    norm_eps: float
    layer_scale: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, bias: Float[Array, "heads_or_1 tokens tokens"] | None) -> tuple[Tokens, Tokens]:
        width = x.shape[-1]
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype, use_fast_variance=False)
        dense = functools.partial(Dense, dtype=self.dtype)

        def scaled(y: Tokens, name: str) -> Tokens:
            return y * self.param(name, nn.initializers.ones, (width,)).astype(y.dtype) if self.layer_scale else y

        qkv = QKV(features=width, dtype=self.dtype, name="qkv")(norm(name="norm_1")(x))
        h = dense(width, name="attention_out")(self_attention(qkv, self.num_heads, bias=bias))
        x += scaled(h, "scale_1")
        h = ACTIVATIONS[self.activation](dense(self.hidden_units, name="mlp_in")(norm(name="norm_2")(x)))
        x += scaled(dense(width, name="mlp_out")(h), "scale_2")
        return x, x


def with_first(x: Tokens, states: Float[Array, "depth batch tokens width"]) -> Hidden:
    """The input of the first block and the outputs of all blocks, as one array."""
    return jnp.concatenate([x[None], states])


def scanned(block: type[nn.Module], depth: int) -> type[nn.Module]:
    """Blocks of equal shape as one scan over stacked parameters; their further inputs are the same for all."""
    return nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=depth)


def stack_shapes(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> dict:
    """The parameters of a module called with such inputs, as ShapeDtypeStruct."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
