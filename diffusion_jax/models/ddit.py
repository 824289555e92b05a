"""DDiT, the transformer of discrete diffusion on text (Lou et al. 2024, SEDD; Sahoo et al. 2024, MDLM).

DiT's blocks on tokens: layer norms have a scale, positions enter by rotary embeddings, and the last layer outputs one
logit for every value of a token. Tokens are given as indices, [batch, length], or as one-hot channels of an image whose
pixels are the sequence, row by row.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import attention, split_heads
from diffusion_jax.models.dit import checkpointed
from diffusion_jax.models.dit_blocks import TIME_WAVES, Tokens, Vector, modulate
from diffusion_jax.models.layers import (
    QKV,
    Dense,
    Dropout,
    LabelEmbedding,
    TimeMLP,
    at_least_float32,
    recomputed,
    sinusoidal_embedding,
)
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.rotary import axial_turns, turn_halves
from diffusion_jax.registry import unknown_name

# MDLM's configs/model: name -> (depth, hidden size, heads); width of the conditioning is 128 in all.
DDIT_SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (8, 512, 8),
    "small": (12, 768, 12),
    "medium": (24, 1024, 16),
}

_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros


class DDiTBlock(nn.Module, kw_only=True):
    """One block, in the form that a scan needs."""

    num_heads: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Tokens, layer: Int[Array, ""], vector: Vector, dropout_keys: Key[Array, " batch"] | None
    ) -> tuple[Tokens, None]:
        dim = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_init)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_bias=False, dtype=self.dtype)
        modulation = dense(6 * dim, kernel_init=_zeros, name="modulation")(vector)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        qkv = QKV(features=dim, use_bias=False, dtype=self.dtype, kernel_init=_init, name="qkv")
        query, key, value = split_heads(qkv(modulate(norm(name="norm_0")(x), shift_1, scale_1)), self.num_heads)
        positions = np.arange(x.shape[1])[:, None]
        turns = axial_turns(positions, (dim // self.num_heads,), 10_000.0, at_least_float32(query.dtype))
        h = attention(turn_halves(query, turns), turn_halves(key, turns), value).reshape(x.shape)
        h = dense(dim, use_bias=False, name="attention_out")(h)
        x += gate_1[:, None] * Dropout(rate=self.dropout, name="dropout_0")(h, dropout_keys, layer)

        h = dense(4 * dim, name="mlp_in")(modulate(norm(name="norm_1")(x), shift_2, scale_2))
        h = dense(dim, name="mlp_out")(recomputed(nn.gelu)(h))
        x += gate_2[:, None] * Dropout(rate=self.dropout, name="dropout_1")(h, dropout_keys, layer)
        return x, None


class DDiT(Network, kw_only=True):
    """The transformer on tokens; `image_channels` is the number of values of a token, including the mask.

    Attributes:
      hidden_size: channels of a token.
      depth: transformer blocks.
      num_heads: attention heads of a block.
      conditioning_size: width of the time's vector.
      dropout: rate on the residual branches; active if dropout keys are given.
      remat: what the backward pass keeps: all ("none"), block inputs ("full") or results of dense layers ("dots").
      out_channels: logits per token; None means image_channels.
      length: tokens in a sequence of indices; 0 if the data are one-hot images.
    """

    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    conditioning_size: int = 128
    dropout: float = 0.0
    remat: str = "none"
    out_channels: int | None = None
    length: int = 0

    def __post_init__(self):
        super().__post_init__()
        checkpointed(DDiTBlock, self.remat)
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"DDiT: hidden_size={self.hidden_size} must be divisible by 2 num_heads = {2 * self.num_heads} "
                "(pairs of channels turn together)"
            )

    @property
    def reads_tokens(self) -> bool:
        return self.length > 0

    @nn.nowrap
    def example_data(self, batch_size: int, image_shape: tuple[int, int, int] | None = None) -> Array:
        if self.length:
            return jnp.zeros((batch_size, self.length), jnp.int32)
        return super().example_data(batch_size, image_shape)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width values"] | Int[Array, "batch length"],
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"] | Float[Array, "batch length out_channels"]:
        """See `Network`. Indices give logits [batch, length, out_channels]; one-hot images give images of logits."""
        indices = jnp.issubdtype(x.dtype, jnp.integer)
        if not indices:
            self.check_inputs(x, time, conditions)
        table = jnp.asarray(
            self.param("tokens", _init, (self.image_channels, self.hidden_size), jnp.float32), self.dtype
        )
        h = table[x] if indices else x.astype(self.dtype).reshape(x.shape[0], -1, x.shape[-1]) @ table

        vector = self._time(time, "time")
        if self.num_times == 2:
            vector += self._time(time - conditions["second_time"], "interval")
        if self.num_classes:
            vector += LabelEmbedding(
                num_classes=self.num_classes,
                features=self.conditioning_size,
                init=_normal,
                dtype=self.dtype,
                name="label",
            )(conditions["label"])
        vector = nn.silu(vector)

        stack = nn.scan(
            checkpointed(DDiTBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.depth,
        )(num_heads=self.num_heads, dropout=self.dropout, dtype=self.dtype, name="blocks")
        h, _ = stack(h, jnp.arange(self.depth), vector, dropout_keys)

        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_zeros)
        shift, scale = jnp.split(dense(2 * self.hidden_size, name="modulation")(vector), 2, axis=-1)
        h = modulate(nn.LayerNorm(epsilon=1e-5, use_bias=False, dtype=self.dtype, name="norm_out")(h), shift, scale)
        h = dense(self.out_channels or self.image_channels, name="linear_out")(h)
        return h.astype(at_least_float32(h.dtype)).reshape(*(x.shape if indices else x.shape[:-1]), -1)

    def _time(self, time, name):
        """A time as a vector."""
        waves = sinusoidal_embedding(time, TIME_WAVES, flip_sin_to_cos=True, frequency_shift=0)
        return TimeMLP(features=self.conditioning_size, kernel_init=_init, name=name)(waves)


@MODELS.register(
    "ddit",
    example={
        "image_size": 2,
        "image_channels": 4,
        "num_classes": 3,
        "hidden_size": 16,
        "depth": 2,
        "num_heads": 2,
        "conditioning_size": 8,
        "dropout": 0.5,
    },
)
def ddit(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    size: str = "small",
    hidden_size: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    conditioning_size: int = 128,
    dropout: float = 0.0,
    remat: str = "none",
    out_channels: int | None = None,
    length: int = 0,
    dtype: DTypeLike = jnp.float32,
) -> DDiT:
    """A DDiT of a named size, tiny, small or medium; other arguments override the size."""
    if size not in DDIT_SIZES:
        raise UserError(unknown_name("DDiT size", size, list(DDIT_SIZES)))
    named_depth, named_hidden_size, named_num_heads = DDIT_SIZES[size]
    return DDiT(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        hidden_size=hidden_size or named_hidden_size,
        depth=depth or named_depth,
        num_heads=num_heads or named_num_heads,
        conditioning_size=conditioning_size,
        dropout=dropout,
        remat=remat,
        out_channels=out_channels,
        length=length,
        dtype=dtype,
    )
