"""Text encoders: they map tokens to one vector each, and to one for the whole text.

    tokens [batch, length], mask [batch, length]   ->   context [batch, length, width], pooled [batch, width]

Masked tokens change nothing: they are not attended to, their own vectors are zero, and the pooled vector is the mean of
the others. Positions are fixed sines (Vaswani et al. 2017, arXiv:1706.03762, section 3.5), as large as the embeddings
of the tokens: a small network learns positions that start near zero late, if at all.
"""

import functools
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from diffusion_jax.counter_prng import counter_key
from diffusion_jax.domains import DEPTH, SIZE
from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.layers import QKV, Dense, at_least_float32, sinusoidal_embedding
from diffusion_jax.registry import Registry

Tokens = Float[Array, "batch length width"]
Mask = Bool[Array, "batch length"]
Encoded = tuple[Tokens, Float[Array, "batch width"]]

_xavier = nn.initializers.xavier_uniform()


class Encoder(nn.Module, kw_only=True):
    """Base of all text encoders: `__call__(tokens, mask)` returns context and pooled vector, both float32.

    Attributes:
      vocabulary: number of tokens.
      dtype: type in which activations are computed; parameters are float32 always.
    """

    vocabulary: int
    dtype: DTypeLike = jnp.float32

    @property
    def channels(self) -> int:
        """Width of the context and of the pooled vector."""
        raise NotImplementedError

    @property
    def source(self) -> str:
        """The folder that its parameters come from; "" if they are initialised at random."""
        return ""


TEXT_ENCODERS: Registry[Encoder] = Registry("text encoder")


def init_encoder(encoder: Encoder, key: Key[Array, ""]) -> PyTree:
    """Initial parameters, float32, as a function of the module and the key."""
    tokens, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    return encoder.init({"params": counter_key(key)}, tokens, mask)["params"]


def encode(encoder: Encoder, params: PyTree, tokens: Int[Array, "batch length"], mask: Mask) -> Encoded:
    """Context and pooled vector of each text."""
    return encoder.apply({"params": params}, tokens, mask)


class EncoderBlock(nn.Module, kw_only=True):
    """Attention and MLP, each behind a layer norm on a residual branch; in the form that a scan needs."""

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, mask: Mask) -> tuple[Tokens, None]:
        width = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        qkv = QKV(features=width, dtype=self.dtype, kernel_init=_xavier, name="qkv")(norm(name="norm_1")(x))
        x += dense(width, name="attention_out")(self_attention(qkv, self.num_heads, mask=mask))
        h = nn.gelu(dense(4 * width, name="mlp_in")(norm(name="norm_2")(x)), approximate=True)
        return x + dense(width, name="mlp_out")(h), None


@TEXT_ENCODERS.register("transformer", example={"vocabulary": 7, "width": 8, "depth": 2, "num_heads": 2})
class TextEncoder(Encoder, kw_only=True):
    """A small transformer over the whole text, trained together with the network that it conditions.

    Attributes:
      width: channels of the transformer and of its output.
      depth: blocks, one scan over stacked parameters.
      num_heads: attention heads.
    """

    width: Annotated[int, SIZE] = 128
    depth: Annotated[int, DEPTH] = 2
    num_heads: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.num_heads or self.width % 2 or self.width < 4:
            raise UserError(
                f"text encoder: width={self.width} must be divisible by num_heads={self.num_heads} and by 2 (sine and "
                "cosine), and be at least 4"
            )

    @property
    def channels(self) -> int:
        return self.width

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"], mask: Mask) -> Encoded:
        """Context and pooled vector of each text, which has at least one unmasked token."""
        table = self.param("embedding", nn.initializers.normal(1.0), (self.vocabulary, self.width))
        positions = sinusoidal_embedding(jnp.arange(tokens.shape[1], dtype=jnp.float32), self.width)
        x = (table[tokens] + positions).astype(self.dtype)
        blocks = nn.scan(
            EncoderBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        x, _ = blocks(num_heads=self.num_heads, dtype=self.dtype, name="blocks")(x, mask)
        x = nn.LayerNorm(epsilon=1e-6, dtype=at_least_float32(self.dtype), name="norm")(x)
        context = jnp.where(mask[..., None], x, 0.0)
        return context, context.sum(axis=1) / mask.sum(axis=1, keepdims=True).astype(context.dtype)
