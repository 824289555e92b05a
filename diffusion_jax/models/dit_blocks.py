"""Blocks of diffusion transformers: adaptive layer norms, blocks of one stream and of two, and the last layer."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.cross_attention import CrossAttention
from diffusion_jax.models.layers import QKV, Dense, TimeMLP, layer_norm, recomputed, sinusoidal_embedding
from diffusion_jax.models.network import Conditions

Tokens = Float[Array, "batch tokens dim"]
Vector = Float[Array, "batch dim"]
Mask = Bool[Array, "batch length"]

TIME_WAVES = 256  # width of the sinusoidal embedding, at every size of network

_xavier = nn.initializers.xavier_uniform()
_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros


def modulate(x: Tokens, shift: Vector, scale: Vector) -> Tokens:
    """(1 + scale) * x + shift, the same for all tokens of an example."""
    return x * (1 + scale[:, None]) + shift[:, None]


def modulated_norm(x: Tokens, shift: Vector, scale: Vector, *, epsilon: float) -> Tokens:
    """Layer norm whose gain and offset belong to the example."""
    return modulate(layer_norm(x, epsilon), shift, scale)


class ConditioningEmbedding(nn.Module, kw_only=True):
    """Time and, where there are any, label and the pooled vector of a text as one vector."""

    features: int
    num_classes: int
    num_times: int = 1
    frequency_shift: int = 0
    pooled_channels: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, " batch"], conditions: Conditions) -> Vector:
        waves = sinusoidal_embedding(time, TIME_WAVES, flip_sin_to_cos=True, frequency_shift=self.frequency_shift)
        vector = TimeMLP(features=self.features, kernel_init=_normal, name="time")(waves)
        if self.num_times == 2:
            interval = time - conditions["second_time"]
            waves = sinusoidal_embedding(
                interval, TIME_WAVES, flip_sin_to_cos=True, frequency_shift=self.frequency_shift
            )
            vector += TimeMLP(features=self.features, kernel_init=_normal, name="interval")(waves)
        if self.num_classes:
            table = nn.Embed(
                self.num_classes + 1, self.features, dtype=self.dtype, embedding_init=_normal, name="label"
            )
            vector += table(conditions["label"])
        if self.pooled_channels:
            mlp = TimeMLP(features=self.features, kernel_init=_normal, name="pooled")
            vector += mlp(conditions["pooled"].astype(vector.dtype))
        return vector


class DiTBlock(nn.Module, kw_only=True):
    """One adaLN-Zero block, with cross-attention where there is a context; in the form that scan wants."""

    num_heads: int
    mlp_ratio: float
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Tokens, vector: Vector, context: Tokens | None = None, mask: Mask | None = None
    ) -> tuple[Tokens, None]:
        dim = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        normed = recomputed(functools.partial(modulated_norm, epsilon=self.norm_eps))
        gelu = recomputed(functools.partial(nn.gelu, approximate=True))
        modulation = dense(6 * dim, kernel_init=_zeros, name="modulation")(nn.silu(vector))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        qkv = QKV(features=dim, dtype=self.dtype, kernel_init=_xavier, name="qkv")(normed(x, shift_1, scale_1))
        x += gate_1[:, None] * dense(dim, name="attention_out")(self_attention(qkv, self.num_heads))
        if context is not None:
            cross = CrossAttention(num_heads=self.num_heads, dtype=self.dtype, last_init=_zeros, name="cross")
            x += cross(x, context, mask)

        h = dense(round(self.mlp_ratio * dim), name="mlp_in")(normed(x, shift_2, scale_2))
        x += gate_2[:, None] * dense(dim, name="mlp_out")(gelu(h))
        return x, None


class Stream(nn.Module, kw_only=True):
    """The part of an adaLN-Zero block that belongs to one kind of tokens: all of it but the attention."""

    dim: int
    mlp_ratio: float
    norm_eps: float
    dtype: DTypeLike

    def setup(self) -> None:
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        self.modulation = dense(6 * self.dim, kernel_init=_zeros)
        self.qkv = QKV(features=self.dim, dtype=self.dtype, kernel_init=_xavier)
        self.attention_out = dense(self.dim)
        self.mlp_in = dense(round(self.mlp_ratio * self.dim))
        self.mlp_out = dense(self.dim)
        self.normed = recomputed(functools.partial(modulated_norm, epsilon=self.norm_eps))
        self.gelu = recomputed(functools.partial(nn.gelu, approximate=True))

    def modulations(self, vector: Vector) -> list[Vector]:
        """Shift, scale and gate of the attention, and those of the MLP."""
        return jnp.split(self.modulation(nn.silu(vector)), 6, axis=-1)

    def projected(self, x: Tokens, modulations: list[Vector]) -> tuple[Tokens, ...]:
        """Query, key and value."""
        return self.qkv(self.normed(x, *modulations[:2]))

    def finished(self, x: Tokens, attended: Tokens, modulations: list[Vector]) -> Tokens:
        """The tokens after both branches."""
        _, _, gate_1, shift_2, scale_2, gate_2 = modulations
        x += gate_1[:, None] * self.attention_out(attended)
        return x + gate_2[:, None] * self.mlp_out(self.gelu(self.mlp_in(self.normed(x, shift_2, scale_2))))


class JointBlock(nn.Module, kw_only=True):
    """Image tokens and a context, each a stream with parameters of its own, that attend to both (SD3, figure 2b).

    In the form that scan wants. All blocks are alike, so the last one writes to the context too, which nothing reads.
    """

    num_heads: int
    mlp_ratio: float
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, streams: tuple[Tokens, Tokens], vector: Vector, mask: Mask
    ) -> tuple[tuple[Tokens, Tokens], None]:
        x, context = streams
        fields = {"dim": x.shape[-1], "mlp_ratio": self.mlp_ratio, "norm_eps": self.norm_eps, "dtype": self.dtype}
        image, text = Stream(**fields, name="image"), Stream(**fields, name="text")
        of_image, of_text = image.modulations(vector), text.modulations(vector)
        pairs = zip(text.projected(context, of_text), image.projected(x, of_image), strict=True)
        counts = jnp.concatenate([mask, jnp.ones(x.shape[:2], bool)], axis=1)
        h = self_attention([jnp.concatenate(pair, axis=1) for pair in pairs], self.num_heads, mask=counts)
        length = context.shape[1]
        x = image.finished(x, h[:, length:], of_image)
        return (x, text.finished(context, h[:, :length], of_text)), None


class FinalLayer(nn.Module, kw_only=True):
    """Modulated layer norm and a linear map to the pixels of a patch; both start at zero."""

    features: int
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, vector: Vector) -> Tokens:
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_zeros)
        shift, scale = jnp.split(dense(2 * x.shape[-1], name="modulation")(nn.silu(vector)), 2, axis=-1)
        return dense(self.features, name="linear")(modulated_norm(x, shift, scale, epsilon=self.norm_eps))
