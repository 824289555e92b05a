"""DiT, the diffusion transformer (Peebles & Xie 2023).

The image is cut into patches of p x p pixels, one token each. A block is a transformer block whose two layer norms
have no parameters of their own: the conditioning vector c = time + label gives shift, scale and gate of each branch

    x <- x + gate_1(c) * attention((1 + scale_1(c)) * norm(x) + shift_1(c))
    x <- x + gate_2(c) * mlp      ((1 + scale_2(c)) * norm(x) + shift_2(c))

through one dense layer that starts at zero, so that every block starts as the identity ("adaLN-Zero", sec. 3.2).
The blocks are one scan over stacked parameters: the compile time does not grow with the depth.

For representation alignment (REPA, Yu et al. 2024, arXiv:2410.06940) the tokens after an early block go through an MLP
of three layers into the space of another network's features; they are sown, and cost nothing where nobody asks for
them.
"""

import functools
from collections.abc import Mapping
from typing import Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.layers import (
    QKV,
    Dense,
    TimeMLP,
    at_least_float32,
    depth_to_space,
    layer_norm,
    recomputed,
    sinusoidal_embedding,
    space_to_depth,
)
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.registry import unknown_name

Tokens = Float[Array, "batch tokens dim"]
Vector = Float[Array, "batch dim"]
Size = TypeVar("Size")

# Table 1 of the paper, and M of MeanFlow (Geng et al. 2025, Table 4): name -> (depth, hidden size, heads). A size is
# named with its patch, as in "XL/2".
DIT_SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "M": (16, 1024, 16),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}


def named_size(network: str, size: str, sizes: Mapping[str, Size], *, patches: tuple[int, ...]) -> tuple[Size, int]:
    """What "XL/2" stands for: the entry of `sizes` before the stroke, and the side of a patch after it.

    Raises:
      UserError: neither; the message names the nearest of `sizes` with the usual `patches`.
    """
    name, stroke, patch = size.partition("/")
    if name not in sizes or not stroke or not patch.isdigit() or int(patch) == 0:
        raise UserError(unknown_name(f"{network} size", size, [f"{known}/{p}" for known in sizes for p in patches]))
    return sizes[name], int(patch)


# What of a block's activations the backward pass keeps; the rest is computed again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def checkpointed(block: type[nn.Module], remat: str, *, is_loop: bool = True) -> type[nn.Module]:
    """The block with a named policy of what its backward pass keeps; "none" keeps everything.

    Inside a loop the compiler cannot merge the second computation with the first; unrolled, it could.

    Raises:
      UserError: an unknown policy.
    """
    if remat == "none":
        return block
    if remat not in REMAT_POLICIES:
        raise UserError(unknown_name("remat policy", remat, ["none", *REMAT_POLICIES]))
    return nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=not is_loop)


PROJECTOR = 2048  # hidden units of the MLP of REPA
TIME_WAVES = 256  # width of the sinusoidal embedding, at every size of network

_xavier = nn.initializers.xavier_uniform()
_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros


@functools.lru_cache
def position_embedding(size: int, dim: int) -> Float[np.ndarray, "tokens dim"]:
    """Fixed sine-cosine embedding of a size x size grid, row by row: the first half of `dim` tells the column."""
    frequencies = 10_000.0 ** (-np.arange(dim // 4) / (dim / 4))
    row, column = np.mgrid[:size, :size].reshape(2, -1, 1) * frequencies
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=-1)


def patchify(x: Float[Array, "batch height width channels"], patch: int) -> Tokens:
    """Tokens in row order; inside a token (row, column, channel)."""
    x = space_to_depth(x, patch)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def unpatchify(tokens: Tokens, patch: int, size: int) -> Float[Array, "batch size size channels"]:
    """The inverse of `patchify` for square images."""
    grid = size // patch
    return depth_to_space(tokens.reshape(tokens.shape[0], grid, grid, -1), patch)


def modulate(x: Tokens, shift: Vector, scale: Vector) -> Tokens:
    """(1 + scale) * x + shift, the same for all tokens of an example."""
    return x * (1 + scale[:, None]) + shift[:, None]


def modulated_norm(x: Tokens, shift: Vector, scale: Vector, *, epsilon: float) -> Tokens:
    """Layer norm whose gain and offset belong to the example."""
    return modulate(layer_norm(x, epsilon), shift, scale)


class ConditioningEmbedding(nn.Module, kw_only=True):
    """Time and, where there are classes, label as one vector."""

    features: int
    num_classes: int
    num_times: int = 1
    frequency_shift: int = 0
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
        return vector


class DiTBlock(nn.Module, kw_only=True):
    """One adaLN-Zero block, in the form that scan wants: (carry, broadcast input) -> (carry, nothing)."""

    num_heads: int
    mlp_ratio: float
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, vector: Vector) -> tuple[Tokens, None]:
        dim = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        normed = recomputed(functools.partial(modulated_norm, epsilon=self.norm_eps))
        gelu = recomputed(functools.partial(nn.gelu, approximate=True))
        modulation = dense(6 * dim, kernel_init=_zeros, name="modulation")(nn.silu(vector))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

        qkv = QKV(features=dim, dtype=self.dtype, kernel_init=_xavier, name="qkv")(normed(x, shift_1, scale_1))
        x += gate_1[:, None] * dense(dim, name="attention_out")(self_attention(qkv, self.num_heads))

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


class DiT(Network, kw_only=True):
    """The diffusion transformer. Built by size through the factory `dit`, or field by field.

    Attributes:
      patch_size: side of a patch, in pixels.
      hidden_size: channels of a token.
      depth: transformer blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden units of the MLP, in units of hidden_size.
      learn_sigma: put out 2 * image_channels channels, the prediction and the interpolated log variance.
      out_channels: channels of the output otherwise; None means image_channels.
      frequency_shift: shift of the frequencies of the time embedding; 0 in the paper's code, 1 in diffusers' DiT.
      own_conditioning: every block embeds time and label with parameters of its own, as diffusers stores them (in the
        published weights they are copies); the final layer sees the first block's.
      norm_eps: added to the variance of layer norms.
      final_norm_eps: added to the variance of the final layer's norm; None means norm_eps.
      remat: what is kept for backward: "none" all, "full" only block inputs, "dots" the results of dense layers.
      scan_unroll: blocks to a step of the scan; `depth` makes it no loop, quicker on CPU and slower to compile.
      align_depth: after how many blocks the tokens are projected for REPA; 0: never.
      align_channels: channels of the features that the tokens are projected to.
    """

    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    out_channels: int | None = None
    frequency_shift: int = 0
    own_conditioning: bool = False
    norm_eps: float = 1e-6
    final_norm_eps: float | None = None
    remat: Literal["none", "full", "dots"] = "none"
    scan_unroll: int = 1
    align_depth: int = 0
    align_channels: int = 768

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.align_depth <= self.depth or (self.align_depth and self.own_conditioning):
            raise UserError(
                f"DiT: align_depth={self.align_depth} must be at most depth={self.depth}, and 0 with own_conditioning"
            )
        if self.image_size % self.patch_size:
            raise UserError(f"DiT: image_size={self.image_size} does not divide by patch_size={self.patch_size}")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UserError(
                f"DiT: hidden_size={self.hidden_size} must divide by num_heads={self.num_heads} and by 4 "
                "(sine and cosine of two coordinates)"
            )
        checkpointed(DiTBlock, self.remat)

    @property
    def sows(self) -> dict[str, tuple[int, ...]]:
        shape = ((self.image_size // self.patch_size) ** 2, self.align_channels)
        return {"features": shape} if self.align_depth else {}

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """See `Network`. There is no dropout: `dropout_keys` changes nothing. UserError for other image sizes."""
        del dropout_keys
        self.check_inputs(x, time, conditions)
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise UserError(f"DiT is built for {self.image_size} x {self.image_size} images, got {x.shape[1:3]}")

        embed = Dense(self.hidden_size, dtype=self.dtype, kernel_init=_xavier, name="patch_embedding")
        position = position_embedding(self.image_size // self.patch_size, self.hidden_size)
        h = embed(patchify(x, self.patch_size))
        h += jnp.asarray(position, h.dtype)
        embedding = ConditioningEmbedding
        if self.own_conditioning:
            embedding = nn.vmap(
                embedding, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=self.depth
            )
        vector = embedding(
            features=self.hidden_size,
            num_classes=self.num_classes,
            num_times=self.num_times,
            frequency_shift=self.frequency_shift,
            dtype=self.dtype,
            name="conditioning",
        )(time, conditions)

        if self.align_depth and (self.is_initializing() or self.is_mutable_collection("sown")):
            h, early = self._blocks_and_early(h, vector)
            self.sow("sown", "features", self._projected(early), reduce_fn=lambda _, new: new, init_fn=lambda: None)
        else:
            h, _ = self._blocks()(h, vector)
        if self.own_conditioning:
            vector = vector[0]

        out_channels = 2 * self.image_channels if self.learn_sigma else self.out_channels or self.image_channels
        final = FinalLayer(
            features=self.patch_size**2 * out_channels,
            norm_eps=self.norm_eps if self.final_norm_eps is None else self.final_norm_eps,
            dtype=self.dtype,
            name="final",
        )
        h = unpatchify(final(h, vector), self.patch_size, self.image_size)
        return h.astype(at_least_float32(h.dtype))

    def _blocks(self) -> nn.Module:
        """All blocks as one module whose parameters have a leading axis of length `depth`."""
        stack = nn.scan(
            self._block(), in_axes=0 if self.own_conditioning else nn.broadcast, unroll=self.scan_unroll, **self._loop
        )
        return stack(**self._block_fields)

    def _blocks_and_early(self, h: Tokens, vector: Vector) -> tuple[Tokens, Tokens]:
        """The tokens after all blocks, and after `align_depth` of them; parameters as those of `_blocks`."""

        def step(block: nn.Module, carry: tuple[Tokens, Tokens], number: Array) -> tuple[tuple[Tokens, Tokens], None]:
            h, early = carry
            h, _ = block(h, vector)
            return (h, jnp.where(number == self.align_depth, h, early)), None

        loop = nn.scan(step, in_axes=0, unroll=self.scan_unroll, **self._loop)
        (h, early), _ = loop(self._block()(**self._block_fields), (h, h), 1 + jnp.arange(self.depth))
        return h, early

    def _block(self) -> type[nn.Module]:
        return checkpointed(DiTBlock, self.remat, is_loop=self.scan_unroll < self.depth)

    @property
    def _loop(self) -> dict:
        return {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": self.depth}

    @property
    def _block_fields(self) -> dict:
        return {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "norm_eps": self.norm_eps,
            "dtype": self.dtype,
            "name": "blocks",
        }

    def _projected(self, h: Tokens) -> Tokens:
        """Into the space of the other network's features."""
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=_xavier)
        h = nn.silu(dense(PROJECTOR, name="projector_0")(h))
        h = nn.silu(dense(PROJECTOR, name="projector_1")(h))
        return dense(self.align_channels, name="projector_2")(h).astype(at_least_float32(h.dtype))


@MODELS.register(
    "dit",
    example={
        "image_size": 4,
        "image_channels": 2,
        "num_classes": 3,
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 2,
        "num_heads": 2,
    },
)
def dit(
    *,
    image_size: int,
    image_channels: int,
    num_classes: int = 0,
    num_times: int = 1,
    size: str = "S/2",
    patch_size: int | None = None,
    hidden_size: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_ratio: float = 4.0,
    learn_sigma: bool = False,
    out_channels: int | None = None,
    frequency_shift: int = 0,
    own_conditioning: bool = False,
    norm_eps: float = 1e-6,
    final_norm_eps: float | None = None,
    remat: Literal["none", "full", "dots"] = "none",
    scan_unroll: int = 1,
    align_depth: int = 0,
    align_channels: int = 768,
    dtype: DTypeLike = jnp.float32,
) -> DiT:
    """A DiT of a named size: S, B, M, L or XL, a stroke, and the patch size, as in "XL/2".

    Whatever is given besides overrides the size, so that {"size": "S/2", "depth": 4} is a shallow S/2.
    """
    (named_depth, named_hidden_size, named_num_heads), patch = named_size("DiT", size, DIT_SIZES, patches=(2, 4, 8))
    return DiT(
        image_size=image_size,
        image_channels=image_channels,
        num_classes=num_classes,
        num_times=num_times,
        patch_size=patch_size or patch,
        hidden_size=hidden_size or named_hidden_size,
        depth=depth or named_depth,
        num_heads=num_heads or named_num_heads,
        mlp_ratio=mlp_ratio,
        learn_sigma=learn_sigma,
        out_channels=out_channels,
        frequency_shift=frequency_shift,
        own_conditioning=own_conditioning,
        norm_eps=norm_eps,
        final_norm_eps=final_norm_eps,
        remat=remat,
        scan_unroll=scan_unroll,
        align_depth=align_depth,
        align_channels=align_channels,
        dtype=dtype,
    )
