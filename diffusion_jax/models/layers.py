"""Layers that several networks share. Statistics, softmax and time embeddings are float32 at least."""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.counter_prng import counter_key
from diffusion_jax.errors import UserError
from diffusion_jax.models.adapted import AdaptedKernel, side_by_side
from diffusion_jax.parallel.activations import batch_sharded, by_example, divides_tensor, for_cpu, token_spec
from diffusion_jax.specs import GUIDANCE


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """float32, or float64 if that is the dtype."""
    return jnp.promote_types(dtype, jnp.float32)


def dot_rows(
    x: Float[Array, "... inputs"],
    kernel: Float[Array, "inputs outputs"] | AdaptedKernel,
    dimension_numbers: Any,
    **options: Any,
) -> Float[Array, "... outputs"]:
    """`lax.dot_general` of a dense layer; on CPU all positions of all examples become the rows of one matrix.

    With two leading axes the gradient of the kernel would be a sum over two axes, for which XLA for CPU first
    transposes both factors in memory. Tokens that are divided among devices keep their own axis.
    """
    if isinstance(kernel, AdaptedKernel):
        own = dot_rows(x, kernel.kernel, dimension_numbers, **options)
        return own + _low_rank(x, kernel, dimension_numbers, **options)
    if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())):
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    if not for_cpu() or token_spec(jax.sharding.get_abstract_mesh(), x.shape):
        return by_example(lambda x, kernel: jax.lax.dot_general(x, kernel, dimension_numbers, **options), x, kernel)

    def dot(x: Array, kernel: Array) -> Array:
        rows = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
        return rows.reshape(*x.shape[:-1], kernel.shape[-1])

    return by_example(dot, x, kernel)


def _low_rank(x: Array, kernel: AdaptedKernel, dimension_numbers: Any, **options: Any) -> Array:
    """(x A) B, the columns of all parts side by side."""
    parts, _, rank = kernel.down.shape
    narrow = dot_rows(kernel.dropped(x), side_by_side(kernel.down), dimension_numbers, **options)
    columns = [
        dot_rows(narrow[..., i * rank : (i + 1) * rank], kernel.up[i], dimension_numbers, **options)
        for i in range(parts)
    ]
    return jnp.concatenate(columns, axis=-1)


def promoted(x: Array, kernel: Array | AdaptedKernel, bias: Array | None, *, dtype: DTypeLike | None = None) -> list:
    """`flax.linen.dtypes.promote_dtype`, which keeps an adapted kernel in parts."""
    if not isinstance(kernel, AdaptedKernel):
        return nn.dtypes.promote_dtype(x, kernel, bias, dtype=dtype)
    x, bias, own, down, up = nn.dtypes.promote_dtype(x, bias, kernel.kernel, kernel.down, kernel.up, dtype=dtype)
    return [x, kernel.replace(kernel=own, down=down, up=up), bias]


def convolve(x: Float[Array, "batch height width channels"], kernel: Array, *arguments: Any, **options: Any) -> Array:
    """`lax.conv_general_dilated` of a convolution layer."""
    return by_example(lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, *arguments, **options), x, kernel)


Dense = functools.partial(nn.Dense, dot_general=dot_rows, promote_dtype=promoted)
Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)


class QKV(nn.Module, kw_only=True):
    """Query, key and value of tokens by one dense layer, whose columns are (query, key, value) x head x channel.

    If wide layers are divided among devices, each device computes the query, key and value of its own heads. These are
    not the columns that it holds: it receives them from the others, since there are fewer weights than tokens.

    Attributes:
      features: channels of a query; keys and values are as wide.
      use_bias, dtype, kernel_init: as in `flax.linen.Dense`.
    """

    features: int
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens inputs"]) -> tuple[Float[Array, "batch tokens features"], ...]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], 3 * self.features))
        bias = self.param("bias", nn.initializers.zeros, (3 * self.features,)) if self.use_bias else None
        x, kernel, bias = promoted(x, kernel, bias, dtype=self.dtype)
        if divided := divides_tensor(self.features):
            kernel = jnp.asarray(kernel).reshape(-1, 3, self.features)
            kernel = jax.lax.with_sharding_constraint(kernel, PartitionSpec(None, None, divided))
            bias = None if bias is None else bias.reshape(3, self.features)
            free = PartitionSpec.UNCONSTRAINED
            x = jax.lax.with_sharding_constraint(batch_sharded(x), PartitionSpec(free, free, None))
            h = batch_sharded(jax.lax.dot_general(x, kernel, (((2,), (0,)), ((), ()))))
            h = h if bias is None else h + bias
            return tuple(h[:, :, i] for i in range(3))
        h = dot_rows(x, kernel, (((2,), (0,)), ((), ())))
        return tuple(jnp.split(h if bias is None else h + bias, 3, axis=-1))


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for a block inside a scan; on CPU the backward pass keeps only its arguments.

    For pointwise functions, recomputing costs less than writing their intermediates to memory and reading them back. A
    GELU alone has five, each as large as its argument. On other platforms `remat` decides what is kept.
    """
    return jax.checkpoint(function, prevent_cse=False) if for_cpu() else function


def layer_norm(x: Float[Array, "... channels"], epsilon: float) -> Float[Array, "... channels"]:
    """Layer normalisation without gain and offset (Ba et al. 2016), with statistics in float32 at least."""
    wide = x.astype(at_least_float32(x.dtype))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def sinusoidal_embedding(
    time: Float[Array, " batch"],
    dim: int,
    *,
    flip_sin_to_cos: bool = False,
    frequency_shift: int = 1,
    max_period: float = 10_000.0,
) -> Float[Array, "batch dim"]:
    """Sines and cosines of `time` at geometric frequencies (Vaswani et al. 2017, sec. 3.5).

        frequency_i = max_period ** (-i / (dim / 2 - frequency_shift)),    i = 0 ... dim / 2 - 1

    DDPM: [sin, cos] and frequency_shift 1, so that the last frequency is 1 / max_period exactly.
    ADM and DiT: [cos, sin] (flip_sin_to_cos) and frequency_shift 0.
    """
    half = dim // 2
    if dim % 2 or half <= frequency_shift:
        raise UserError(f"a sinusoidal embedding needs an even dim > {2 * frequency_shift}, got {dim}")
    frequencies = np.exp(-math.log(max_period) * np.arange(half) / (half - frequency_shift))
    time = time.astype(at_least_float32(time.dtype))
    angles = time[:, None] * jnp.asarray(frequencies, time.dtype)
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, axis=-1)


def guidance_waves(
    scale: Float[Array, " batch"], channels: int, features: int, dtype: DTypeLike
) -> Float[Array, "batch features"]:
    """A guidance scale, embedded like a time of a chain of 1000 steps, to be added to the waves of the time.

    Meng et al. 2022 (arXiv:2210.03142), in the form of Luo et al. 2023 (arXiv:2310.04378). The layer, "guidance" of the
    calling module, starts at zero: a network with this input begins equal to one without it.
    """
    waves = sinusoidal_embedding(1000.0 * scale, channels)
    dense = Dense(features, use_bias=False, kernel_init=nn.initializers.zeros, name=GUIDANCE)
    return dense(waves.astype(dtype))


def upsample_nearest(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch 2*height 2*width channels"]:
    """Repeat every pixel in height and in width."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def downsample_average(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height/2 width/2 channels"]:
    """The mean of each two by two pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def space_to_depth(
    x: Float[Array, "batch height width channels"], patch: int
) -> Float[Array, "batch height_over_patch width_over_patch patch_channels"]:
    """Squares of `patch` x `patch` pixels become channels in the order (row, column, channel)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch, width // patch, patch * patch * channels)


def depth_to_space(
    x: Float[Array, "batch height width patch_channels"], patch: int
) -> Float[Array, "batch height_times_patch width_times_patch channels"]:
    """The inverse of `space_to_depth`."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * patch, width * patch, -1)


def square_to_channels(
    x: Float[Array, "batch height width channels"], side: int
) -> Float[Array, "batch height_over_side width_over_side channels_square"]:
    """Squares of `side` x `side` pixels become channels in PyTorch's order (channel, row, column)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // side, width // side, channels * side * side)


def channels_to_square(
    x: Float[Array, "batch height width channels_square"], side: int
) -> Float[Array, "batch height_times_side width_times_side channels"]:
    """The inverse of `square_to_channels`."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, -1, side, side)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height * side, width * side, -1)


def resample(
    x: Float[Array, "batch height width channels"],
    direction: Literal["up", "down"],
    taps: tuple[float, ...] = (1, 1),
    padding: int | None = None,
) -> Float[Array, "batch height2 width2 channels"]:
    """Double or halve the resolution through a separable filter (Karras et al. 2019, StyleGAN; score SDE's FIR).

    Args:
      x: images.
      direction: "up" or "down".
      taps: the symmetric filter in one dimension, of even length; (1, 1) is nearest or the average.
      padding: zeros around the images before filtering when halving; len(taps) / 2 - 1 by default.
    """
    if tuple(taps) == (1, 1) and padding is None:
        return upsample_nearest(x) if direction == "up" else downsample_average(x)
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2
    if direction == "up":
        kernel = kernel * 4
    size = len(taps)
    pad = (size - 1) // 2 if padding is None else padding
    edges = (size - 1 - pad,) * 2 if direction == "up" else (pad, pad)
    return jax.lax.conv_general_dilated(
        x,
        jnp.broadcast_to(jnp.asarray(kernel, x.dtype)[..., None, None], (size, size, 1, x.shape[-1])),
        window_strides=(1, 1) if direction == "up" else (2, 2),
        padding=(edges, edges),
        lhs_dilation=(2, 2) if direction == "up" else (1, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


class GroupNorm(nn.Module, kw_only=True):
    """Group normalisation (Wu & He 2018) over height, width and the channels of a group.

    The number of groups is the largest that divides the channels, is at most `max_groups`, and leaves at least
    `min_channels` per group. It is computed from sums per channel: the groups are formed on [batch, channels], and the
    image is read once for the sums and once for the affine map.

    A part of an image can be normalised like the whole: the collection "statistics" then provides `moments`, [2, batch,
    channels], the mean and the mean square of each channel. The input is sown as "inputs" if that collection is
    requested.
    """

    max_groups: int = 32
    min_channels: int = 4
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        channels = x.shape[-1]
        limit = max(1, min(self.max_groups, channels // self.min_channels))
        groups = max(n for n in range(1, limit + 1) if channels % n == 0)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)

        def group_mean(v):  # [batch, channels], equal within a group
            v = v.reshape(-1, groups, channels // groups).mean(-1)
            return jnp.repeat(v, channels // groups, axis=-1)

        if self.is_mutable_collection("inputs") and not self.is_initializing():
            self.sow("inputs", "x", x)
        x = x.astype(at_least_float32(x.dtype))
        if self.has_variable("statistics", "moments"):
            first, second = self.get_variable("statistics", "moments")
        else:
            first, second = x.mean((1, 2)), jnp.square(x).mean((1, 2))
        mean = group_mean(first)
        variance = jnp.maximum(group_mean(second) - jnp.square(mean), 0.0)
        inverse_std = jax.lax.rsqrt(variance + self.epsilon)
        gain = inverse_std * scale
        shift = bias - mean * gain
        return (x * gain[:, None, None] + shift[:, None, None]).astype(self.dtype)


class TimeMLP(nn.Module, kw_only=True):
    """Two dense layers with a SiLU between, from a sinusoidal embedding to the conditioning; float32 at least."""

    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, embedding: Float[Array, "batch dim"]) -> Float[Array, "batch features"]:
        x = Dense(self.features, kernel_init=self.kernel_init, name="dense_0")(embedding)
        return Dense(self.features, kernel_init=self.kernel_init, name="dense_1")(nn.silu(x))


class Dropout(nn.Module, kw_only=True):
    """Dropout with a mask for each example, which does not depend on how a batch is split over devices.

    The mask of an example is drawn from its own key, folded with the path of this layer in the network, and with the
    number of the layer if layers are the steps of a scan and share the path. In a scan the rate may be traced.
    """

    rate: float | Float[Array, ""]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch ..."],
        keys: Key[Array, " batch"] | None = None,
        layer: Int[Array, ""] | None = None,
    ) -> Float[Array, "batch ..."]:
        if keys is None or (isinstance(self.rate, (int, float)) and self.rate == 0.0):
            return x
        salt = zlib.crc32("/".join(self.path).encode())
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(counter_key(keys), salt)
        if layer is not None:
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, layer)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0).astype(x.dtype)


class LabelEmbedding(nn.Module, kw_only=True):
    """A vector for every class and for the null class `num_classes`, which has its own row or is zero (ADM and EDM)."""

    num_classes: int
    features: int
    null: Literal["row", "zero"] = "row"
    init: nn.initializers.Initializer = nn.initializers.normal(1.0)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, label: Int[Array, " batch"]) -> Float[Array, "batch features"]:
        rows = self.num_classes + int(self.null == "row")
        table = jnp.asarray(self.param("embedding", self.init, (rows, self.features), jnp.float32), self.dtype)
        vectors = table[jnp.minimum(label, rows - 1)]
        return vectors if self.null == "row" else jnp.where((label < rows)[:, None], vectors, 0.0)
