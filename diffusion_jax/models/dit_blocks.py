"""Parts of diffusion transformers: adaptive layer norms, blocks for one kind of tokens, and the last layer."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from diffusion_jax.models.attention import Implementation, attention, split_heads
from diffusion_jax.models.cross_attention import CrossAttention
from diffusion_jax.models.layers import (
    QKV,
    Dense,
    TimeMLP,
    guidance_waves,
    layer_norm,
    recomputed,
    sinusoidal_embedding,
)
from diffusion_jax.models.network import Conditions
from diffusion_jax.models.rotary import Turns, turn_pairs
from diffusion_jax.specs import GUIDANCE

Tokens = Float[Array, "batch tokens dim"]
Vector = Float[Array, "batch dim"]
Mask = Bool[Array, "batch length"]

TIME_WAVES = 256  # width of the sinusoidal embedding, for every network size

_xavier = nn.initializers.xavier_uniform()
_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros


def modulate(x: Tokens, shift: Vector, scale: Vector) -> Tokens:
    """(1 + scale) * x + shift, the same for all tokens of an example."""
    return x * (1 + scale[:, None]) + shift[:, None]


def modulated_norm(x: Tokens, shift: Vector, scale: Vector, *, epsilon: float) -> Tokens:
    """Layer norm with a gain and an offset for each example."""
    return modulate(layer_norm(x, epsilon), shift, scale)


class ConditioningEmbedding(nn.Module, kw_only=True):
    """Time and, if present, label, a text's pooled vector and a guidance scale as one vector.

    Attributes:
      features: width of the vector.
      num_classes, num_times: see `Network`.
      frequency_shift: as in `sinusoidal_embedding`.
      pooled_channels: width of the pooled vector; 0: there is none.
      has_guidance: whether conditions["guidance"] is embedded, as a time is.
      guidance_channels: waves of conditions["guidance"], which a layer that starts at zero adds to the time's waves.
      size_channels: waves of each number of conditions["sizes"]; 0: there are none.
      time_scale: factor on times and guidance scales before their embedding.
      dtype: type of the label's table.
    """

    features: int
    num_classes: int
    num_times: int = 1
    frequency_shift: int = 0
    pooled_channels: int = 0
    has_guidance: bool = False
    guidance_channels: int = 0
    size_channels: int = 0
    time_scale: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, " batch"], conditions: Conditions) -> Vector:
        vector = self._embedded(time, "time", conditions if self.guidance_channels else None)
        if self.num_times == 2:
            vector += self._embedded(time - conditions["second_time"], "interval")
        if self.has_guidance:
            vector += self._embedded(conditions[GUIDANCE], GUIDANCE)
        if self.num_classes:
            table = nn.Embed(
                self.num_classes + 1, self.features, dtype=self.dtype, embedding_init=_normal, name="label"
            )
            vector += table(conditions["label"])
        if self.pooled_channels:
            mlp = TimeMLP(features=self.features, kernel_init=_normal, name="pooled")
            vector += mlp(conditions["pooled"].astype(vector.dtype))
        if self.size_channels:
            sizes = conditions["sizes"]
            waves = sinusoidal_embedding(sizes.reshape(-1), self.size_channels, flip_sin_to_cos=True, frequency_shift=0)
            mlp = TimeMLP(features=self.features, kernel_init=_normal, name="sizes")
            vector += mlp(waves.reshape(sizes.shape[0], -1))
        return vector

    def _embedded(self, number: Float[Array, " batch"], name: str, guided: Conditions | None = None) -> Vector:
        """Embed a number of the example by waves, to which the guidance's may be added, and an MLP."""
        waves = sinusoidal_embedding(
            number * self.time_scale, TIME_WAVES, flip_sin_to_cos=True, frequency_shift=self.frequency_shift
        )
        if guided is not None:
            waves += guidance_waves(guided[GUIDANCE], self.guidance_channels, TIME_WAVES, waves.dtype)
        return TimeMLP(features=self.features, kernel_init=_normal, name=name)(waves)


class DiTBlock(nn.Module, kw_only=True):
    """One adaLN-Zero block, with cross-attention if there is a context; in the form that a scan needs."""

    num_heads: int
    mlp_ratio: float
    norm_eps: float
    attention: Implementation | None = None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        vector: Vector,
        context: Tokens | None = None,
        mask: Mask | None = None,
        turns: Turns | None = None,
    ) -> tuple[Tokens, None]:
        """The tokens after the block; `turns` are of their positions."""
        dim = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        normed = recomputed(functools.partial(modulated_norm, epsilon=self.norm_eps))
        gelu = recomputed(functools.partial(nn.gelu, approximate=True))
        modulation = dense(6 * dim, kernel_init=_zeros, name="modulation")(nn.silu(vector))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        qkv = QKV(features=dim, dtype=self.dtype, kernel_init=_xavier, name="qkv")(normed(x, shift_1, scale_1))
        query, key, value = split_heads(qkv, self.num_heads)
        if turns is not None:
            query, key = turn_pairs(query, turns), turn_pairs(key, turns)
        h = attention(query, key, value, implementation=self.attention).reshape(x.shape)
        x += gate_1[:, None] * dense(dim, name="attention_out")(h)
        if context is not None:
            cross = CrossAttention(num_heads=self.num_heads, dtype=self.dtype, last_init=_zeros, name="cross")
            x += cross(x, context, mask)

        h = dense(round(self.mlp_ratio * dim), name="mlp_in")(normed(x, shift_2, scale_2))
        x += gate_2[:, None] * dense(dim, name="mlp_out")(gelu(h))
        return x, None


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
