"""EDM2's magnitude-preserving U-Net (Karras et al. 2024, "Analyzing and Improving the Training Dynamics").

Every layer preserves the standard deviation of its input (configuration G of the paper). Kernels are divided by the
norm of each output's weights (equation 47), sums and concatenations are weighted (88, 103), and SiLU is divided by the
standard deviation of its result (81); there are no biases and no group norms. Two kinds of learned gains start at zero:
one for the conditioning, one for the output.

After an optimizer step the kernels are rescaled to norm sqrt(fan in) for each output ("forced weight normalisation",
sec. 2.3): `EDM2UNet.constrain`, a pure function of the parameters.
"""

import functools
import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import attention
from diffusion_jax.models.layers import Dropout, at_least_float32, convolve, resample
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.unet_blocks import Image, require_halvings
from diffusion_jax.parallel.activations import by_example
from diffusion_jax.registry import unknown_name

# Channels of the first level (paper, table 6; XXS, the smallest guide of autoguidance: the authors' train_edm2.py).
EDM2_SIZES: dict[str, int] = {"XXS": 64, "XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}

_SILU_STD = 0.596  # of SiLU of a normal variable; the paper's rounding of 0.5964692111


def mp_silu(x: Array) -> Array:
    """SiLU with unit variance for normal input (equation 81)."""
    return nn.silu(x) / jnp.asarray(_SILU_STD, x.dtype)


def mp_sum(a: Array, b: Array, balance: float) -> Array:
    """(1 - balance) a + balance b, with the variance of each (equation 88)."""
    return (a + (b - a) * balance) / math.sqrt((1 - balance) ** 2 + balance**2)


def mp_concatenate(a: Image, b: Image, balance: float = 0.5) -> Image:
    """Concatenated channels of both, where b has the share `balance` of the magnitude (equation 103)."""
    channels = a.shape[-1], b.shape[-1]
    common = math.sqrt(sum(channels) / ((1 - balance) ** 2 + balance**2))
    parts = ((a, 1 - balance, channels[0]), (b, balance, channels[1]))
    return jnp.concatenate([x * (common / math.sqrt(n) * share) for x, share, n in parts], axis=-1)


def normalize(x: Array, axes: tuple[int, ...], epsilon: float = 1e-4) -> Array:
    """x over its root mean square along `axes`, in float32."""
    count = math.prod(x.shape[axis] for axis in axes)
    wide = x.astype(at_least_float32(x.dtype))
    squares = jnp.sum(jnp.square(wide), axis=axes, keepdims=True)
    # The square root has no derivative at zero; a vector of zeros stays zero.
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return (wide / (epsilon + norm / math.sqrt(count))).astype(x.dtype)


class MPLinear(nn.Module, kw_only=True):
    """A dense layer (kernel size 0) or a convolution that preserves magnitudes; no bias."""

    features: int
    kernel_size: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, gain: float | Float[Array, ""] = 1.0) -> Array:
        space = (self.kernel_size,) * 2 if self.kernel_size else ()
        shape = (*space, x.shape[-1], self.features)
        kernel = jnp.asarray(self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32))  # with an adapter's
        kernel = normalize(kernel, tuple(range(kernel.ndim - 1)))
        kernel = (kernel * (gain / math.sqrt(math.prod(shape[:-1])))).astype(self.dtype)
        x = x.astype(self.dtype)
        if not space:
            return by_example(jnp.matmul, x, kernel)
        return convolve(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class MPFourier(nn.Module, kw_only=True):
    """sqrt(2) cos(frequency * x + phase) with random frequencies and phases, drawn once (equation 75)."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        def phase(key, shape, dtype):
            return 2 * math.pi * jax.random.uniform(key, shape, dtype)

        frequencies = self.param(
            "frozen_frequencies", nn.initializers.normal(2 * math.pi), (self.features,), jnp.float32
        )
        phases = self.param("frozen_phases", phase, (self.features,), jnp.float32)
        frequencies, phases = jax.lax.stop_gradient((frequencies, phases))
        x = x.astype(at_least_float32(x.dtype))
        return math.sqrt(2) * jnp.cos(x[:, None] * frequencies + phases)


class MPBlock(nn.Module, kw_only=True):
    """Residual block with optional attention, for the downward ("enc") or upward ("dec") path; figure 21 of the
    paper."""

    features: int
    flavor: Literal["enc", "dec"]
    dropout: float
    dtype: DTypeLike
    direction: Literal["up", "down"] | None = None
    num_heads: int = 0
    balance: float = 0.3
    clip: float = 256.0

    @nn.compact
    def __call__(
        self, x: Image, embedding: Float[Array, "batch dim"], dropout_keys: Key[Array, " batch"] | None
    ) -> Image:
        linear = functools.partial(MPLinear, dtype=self.dtype)
        if self.direction:
            x = resample(x, self.direction)
        skip = linear(features=self.features, kernel_size=1, name="skip") if x.shape[-1] != self.features else None
        if self.flavor == "enc":
            x = normalize(skip(x) if skip else x, (-1,))

        gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
        y = linear(features=self.features, kernel_size=3, name="conv_0")(mp_silu(x))
        modulation = linear(features=self.features, name="time")(embedding, gain) + 1
        y = mp_silu(y * modulation[:, None, None])
        y = Dropout(rate=self.dropout, name="dropout")(y, dropout_keys)
        y = linear(features=self.features, kernel_size=3, name="conv_1")(y)

        if self.flavor == "dec" and skip:
            x = skip(x)
        x = mp_sum(x, y, self.balance)
        if self.num_heads:
            batch, height, width, channels = x.shape
            y = linear(features=3 * channels, kernel_size=1, name="qkv")(x)
            y = normalize(y.reshape(batch, height * width, 3, self.num_heads, channels // self.num_heads), (-1,))
            y = attention(y[:, :, 0], y[:, :, 1], y[:, :, 2]).reshape(x.shape)
            x = mp_sum(x, linear(features=channels, kernel_size=1, name="out")(y), self.balance)
        return jnp.clip(x, -self.clip, self.clip)


class EDM2UNet(Network, kw_only=True):
    """The U-Net; takes the preconditioned image and log(sigma) / 4.

    Attributes:
      base_channels, channel_multipliers: channels of the levels.
      num_res_blocks: blocks of each level on the downward path; one more on the upward path.
      attention_resolutions: feature map sizes with self-attention.
      head_channels: channels of a head.
      dropout: rate inside blocks; active if dropout keys are given.
      label_balance: share of the label in the embedding.
      out_channels: channels of the output; None means image_channels.
    """

    is_convolutional: ClassVar[bool] = True

    base_channels: int = 192
    channel_multipliers: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    label_balance: float = 0.5
    out_channels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        require_halvings(self, len(self.channel_multipliers))

    @nn.compact
    def __call__(
        self,
        x: Image,
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Image:
        """See `Network`."""
        self.check_inputs(x, time, conditions)
        width = [self.base_channels * multiplier for multiplier in self.channel_multipliers]
        levels = len(width)
        linear = functools.partial(MPLinear, dtype=self.dtype)
        embedding = self._embed(time, conditions, max(width))

        def block(x, features, flavor, name, *, direction=None, attend=False):
            return MPBlock(
                features=features,
                flavor=flavor,
                direction=direction,
                dropout=self.dropout,
                num_heads=features // self.head_channels if attend else 0,
                dtype=self.dtype,
                name=name,
            )(x, embedding, dropout_keys)

        attends = [self.image_size // 2**level in self.attention_resolutions for level in range(levels)]
        x = x.astype(self.dtype)
        # A channel of ones replaces the missing biases.
        h = linear(features=width[0], kernel_size=3, name="conv_in")(
            jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        )
        kept = [h]
        for level in range(levels):
            if level > 0:
                h = block(h, h.shape[-1], "enc", f"down_{level}_downsample", direction="down")
                kept.append(h)
            for index in range(self.num_res_blocks):
                h = block(h, width[level], "enc", f"down_{level}_{index}", attend=attends[level])
                kept.append(h)
        for level in reversed(range(levels)):
            if level == levels - 1:
                h = block(h, h.shape[-1], "dec", "middle_0", attend=True)
                h = block(h, h.shape[-1], "dec", "middle_1")
            else:
                h = block(h, h.shape[-1], "dec", f"up_{level}_upsample", direction="up")
            for index in range(self.num_res_blocks + 1):
                h = mp_concatenate(h, kept.pop())
                h = block(h, width[level], "dec", f"up_{level}_{index}", attend=attends[level])
        gain = self.param("out_gain", nn.initializers.zeros, (), jnp.float32)
        h = linear(features=self.out_channels or self.image_channels, kernel_size=3, name="conv_out")(h, gain)
        return h.astype(at_least_float32(h.dtype))

    def _embed(self, time, conditions, features):
        """Time and label as one vector; the null class is a row of zeros."""
        linear = functools.partial(MPLinear, features=features, dtype=at_least_float32(self.dtype))
        waves = MPFourier(features=self.base_channels * self.channel_multipliers[0], name="time_waves")(time)
        vector = linear(name="time")(waves)
        if self.num_times == 2:
            waves = MPFourier(features=self.base_channels, name="interval_waves")(time - conditions["second_time"])
            vector = mp_sum(vector, linear(name="interval")(waves), 0.5)
        if self.num_classes:
            one_hot = jax.nn.one_hot(conditions["label"], self.num_classes, dtype=vector.dtype)
            label = linear(name="label")(one_hot * math.sqrt(self.num_classes))
            vector = mp_sum(vector, label, self.label_balance)
        return mp_silu(vector)

    @nn.nowrap
    def constrain(self, params: PyTree) -> PyTree:
        """Forced weight normalisation: every kernel's norm, for each output, is sqrt(fan in)."""

        def put_back(path, value):
            return normalize(value, tuple(range(value.ndim - 1))) if path[-1].key == "kernel" else value

        return jax.tree_util.tree_map_with_path(put_back, params)


@MODELS.register(
    "edm2",
    example={
        "image_size": 8,
        "image_channels": 2,
        "num_classes": 3,
        "base_channels": 8,
        "channel_multipliers": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "head_channels": 4,
        "dropout": 0.5,
    },
)
def edm2(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    size: str = "S",
    base_channels: int | None = None,
    channel_multipliers: tuple[int, ...] = (1, 2, 3, 4),
    num_res_blocks: int = 3,
    attention_resolutions: tuple[int, ...] = (16, 8),
    head_channels: int = 64,
    dropout: float = 0.0,
    out_channels: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> EDM2UNet:
    """EDM2 of a named size, XXS to XXL; other arguments override the size."""
    if size not in EDM2_SIZES:
        raise UserError(unknown_name("EDM2 size", size, list(EDM2_SIZES)))
    return EDM2UNet(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        base_channels=base_channels or EDM2_SIZES[size],
        channel_multipliers=tuple(channel_multipliers),
        num_res_blocks=num_res_blocks,
        attention_resolutions=tuple(attention_resolutions),
        head_channels=head_channels,
        dropout=dropout,
        out_channels=out_channels,
        dtype=dtype,
    )
