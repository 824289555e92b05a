"""DiT, the diffusion transformer (Peebles & Xie 2023).

The image is cut into patches of p x p pixels, one token each. A block is a transformer block whose two layer norms
have no parameters of their own: the conditioning vector c = time + label gives shift, scale and gate of each branch

    x <- x + gate_1(c) * attention((1 + scale_1(c)) * norm(x) + shift_1(c))
    x <- x + gate_2(c) * mlp      ((1 + scale_2(c)) * norm(x) + shift_2(c))

through one dense layer that starts at zero, so that every block starts as the identity ("adaLN-Zero", sec. 3.2).
The blocks are one scan over stacked parameters: the compile time does not grow with the depth.

A text, the slot "context", is attended to in one of two ways. Crosswise: between the two branches of a block

    x <- x + attention from x to context                    (PixArt-α, Chen et al. 2023, arXiv:2310.00426, section 2.3)

whose last layer starts at zero. Jointly: the context is a second stream with modulation, projections and an MLP of its
own, and both streams attend to both (MM-DiT, Esser et al. 2024, arXiv:2403.03206, figure 2). A text's pooled vector
adds to c.

For representation alignment (REPA, Yu et al. 2024, arXiv:2410.06940) an MLP of three layers maps the tokens after an
early block into the space of another network's features. They are sown, and cost nothing if nobody asks for them.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.dit_blocks import (
    ConditioningEmbedding,
    DiTBlock,
    FinalLayer,
    Tokens,
    Vector,
)
from diffusion_jax.models.joint_blocks import JointBlock
from diffusion_jax.models.layers import Dense, at_least_float32, depth_to_space, space_to_depth
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.positions import sine_embedding, spread_positions
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.rotary import Turns, axial_turns
from diffusion_jax.registry import unknown_name
from diffusion_jax.specs import GUIDANCE, ConditionSpec

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
    """The meaning of "XL/2": the entry of `sizes` before the slash, and the side of a patch after it.

    Raises:
      UserError: a part is unknown; the message names the nearest of `sizes` with the usual `patches`.
    """
    name, stroke, patch = size.partition("/")
    if name not in sizes or not stroke or not patch.isdigit() or int(patch) == 0:
        raise UserError(unknown_name(f"{network} size", size, [f"{known}/{p}" for known in sizes for p in patches]))
    return sizes[name], int(patch)


# What the backward pass keeps of a block's activations; the rest is computed again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def checkpointed(block: type[nn.Module], remat: str, *, is_loop: bool = True) -> type[nn.Module]:
    """The block with a named policy of what its backward pass keeps; "none" keeps everything.

    Inside a loop the compiler cannot merge the recomputation with the first computation; in an unrolled loop it could.

    Raises:
      UserError: an unknown policy.
    """
    if remat == "none":
        return block
    if remat not in REMAT_POLICIES:
        raise UserError(unknown_name("remat policy", remat, ["none", *REMAT_POLICIES]))
    return nn.remat(block, policy=REMAT_POLICIES[remat], prevent_cse=not is_loop)


PROJECTOR = 2048  # hidden units of the MLP of REPA

_xavier = nn.initializers.xavier_uniform()


def patchify(x: Float[Array, "batch height width channels"], patch: int) -> Tokens:
    """Tokens in row order; inside a token (row, column, channel)."""
    x = space_to_depth(x, patch)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def unpatchify(tokens: Tokens, patch: int, height: int, width: int | None = None) -> Float[Array, "batch h w channels"]:
    """The inverse of `patchify` for images of height x width pixels; square ones without a width."""
    grid = (height // patch, (width or height) // patch)
    return depth_to_space(tokens.reshape(tokens.shape[0], *grid, -1), patch)


State = Tokens | tuple[Tokens, Tokens]
"""The state passed between blocks: image tokens, and the context if it is a stream of its own."""


def _image_tokens(state: State) -> Tokens:
    return state[0] if isinstance(state, tuple) else state


class DiT(Network, kw_only=True):
    """The diffusion transformer. Built by size through the factory `dit`, or field by field.

    Attributes:
      patch_size: side of a patch, in pixels.
      hidden_size: channels of a token.
      depth: transformer blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden units of the MLP, in units of hidden_size.
      learn_sigma: output 2 * image_channels channels, the prediction and the interpolated log variance.
      out_channels: channels of the output otherwise; None means image_channels.
      frequency_shift: shift of the frequencies of the time embedding; 0 in the paper's code, 1 in diffusers' DiT.
      own_conditioning: every block embeds time and label with its own parameters, as diffusers stores them (in the
        published weights they are copies); the final layer uses the first block's.
      norm_eps: added to the variance of layer norms.
      final_norm_eps: added to the variance of the final layer's norm; None means norm_eps.
      remat: what the backward pass keeps: all ("none"), block inputs ("full") or results of dense layers ("dots").
      scan_unroll: blocks per step of the scan; `depth` removes the loop, which is faster on CPU and slower to compile.
      align_depth: the block after which the tokens are projected for REPA; 0: never.
      align_channels: channels of the features that the tokens are projected to.
      context_channels: width of conditions["context"], [batch, length, width], the tokens of a text; 0: there is none.
      pooled_channels: width of conditions["pooled"], one vector for the whole text; 0: there is none.
      guidance_channels: waves of conditions["guidance"], the guidance scale less 1, for a network with this input (Meng
        et al. 2022, arXiv:2210.03142); 0: there are none. Their layer starts at zero.
      context_by: how image tokens attend to the context: by "cross" attention or by "joint" attention.
      size_channels: waves of each of the six numbers of conditions["sizes"] (see `conditioning.Sizes`), which are added
        to c (SDXL, Podell et al. 2023, arXiv:2307.01952, section 2.2); 0: there are none.
      positions: how a token knows its place: by "sine" waves that are added to it, or by "rotary" embeddings of queries
        and keys (Su et al. 2021, arXiv:2104.09864), the row in half of the channels of a head and the column in half.
      other_sizes: where the tokens of an image of another size than image_size stand: "spread" over the area of those
        of the training (see `spread_positions`), or "continued" one after the other.
      attention: the way to attend; "auto" goes by the length (see `attention`).
    """

    published_without_class: ClassVar[bool] = True

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
    context_channels: int = 0
    pooled_channels: int = 0
    context_by: Literal["cross", "joint"] = "cross"
    guidance_channels: int = 0
    size_channels: int = 0
    positions: Literal["sine", "rotary"] = "sine"
    other_sizes: Literal["spread", "continued"] = "spread"
    attention: Literal["auto", "einsum", "chunked"] = "auto"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.align_depth <= self.depth or (self.align_depth and self.own_conditioning):
            raise UserError(
                f"DiT: align_depth={self.align_depth} must be at most depth={self.depth}, and 0 with own_conditioning"
            )
        if self.image_size % self.patch_size:
            raise UserError(f"DiT: image_size={self.image_size} is not divisible by patch_size={self.patch_size}")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UserError(
                f"DiT: hidden_size={self.hidden_size} must be divisible by num_heads={self.num_heads} and by 4 "
                "(sine and cosine of two coordinates)"
            )
        more = (self.context_channels, self.pooled_channels, self.guidance_channels, self.size_channels)
        if self.own_conditioning and (any(more) or self.positions != "sine"):
            raise UserError(
                "DiT: own_conditioning covers only time and label, with sine positions: set context_channels, "
                "pooled_channels, guidance_channels and size_channels to 0, and positions to sine"
            )
        if self.positions == "rotary" and self.hidden_size // self.num_heads % 4:
            raise UserError(
                f"DiT: rotary positions turn pairs of channels by row and column: the {self.hidden_size} channels of "
                f"hidden_size in num_heads={self.num_heads} heads must be a multiple of 4 each"
            )
        checkpointed(DiTBlock, self.remat)

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        slots = super().takes
        if self.context_channels:
            slots["context"] = ConditionSpec(shape=(None, self.context_channels))
        if self.pooled_channels:
            slots["pooled"] = ConditionSpec(shape=(self.pooled_channels,))
        if self.guidance_channels:
            slots[GUIDANCE] = ConditionSpec(role="told")
        if self.size_channels:
            slots["sizes"] = ConditionSpec(shape=(6,), role="told")
        return slots

    @property
    def side_unit(self) -> int:
        return self.patch_size

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
        """See `Network`. There is no dropout: `dropout_keys` changes nothing.

        Raises:
          UserError: sides that the patches do not divide.
        """
        del dropout_keys
        self.check_inputs(x, time, conditions)
        height, width = x.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise UserError(f"DiT: {height}x{width} is not divisible by patch_size={self.patch_size}")

        embed = Dense(self.hidden_size, dtype=self.dtype, kernel_init=_xavier, name="patch_embedding")
        h = embed(patchify(x, self.patch_size))
        places = self._places(height // self.patch_size, width // self.patch_size)
        if self.positions == "sine":
            h += jnp.asarray(sine_embedding(places, self.hidden_size), h.dtype)
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
            pooled_channels=self.pooled_channels,
            guidance_channels=self.guidance_channels,
            size_channels=self.size_channels,
            dtype=self.dtype,
            name="conditioning",
        )(time, conditions)

        state, told = self._with_context(h, vector, conditions, places)
        if self.align_depth and (self.is_initializing() or self.is_mutable_collection("sown")):
            state, early = self._blocks_and_early(state, told)
            self.sow("sown", "features", self._projected(early), reduce_fn=lambda _, new: new, init_fn=lambda: None)
        else:
            state, _ = self._blocks(len(told))(state, *told)
        h = _image_tokens(state)
        if self.own_conditioning:
            vector = vector[0]

        out_channels = 2 * self.image_channels if self.learn_sigma else self.out_channels or self.image_channels
        final = FinalLayer(
            features=self.patch_size**2 * out_channels,
            norm_eps=self.norm_eps if self.final_norm_eps is None else self.final_norm_eps,
            dtype=self.dtype,
            name="final",
        )
        h = unpatchify(final(h, vector), self.patch_size, height, width)
        return h.astype(at_least_float32(h.dtype))

    def _places(self, height: int, width: int) -> Float[np.ndarray, "tokens 2"]:
        """(row, column) of the tokens of a grid."""
        if self.other_sizes == "continued":
            return np.mgrid[:height, :width].reshape(2, -1).T.astype(np.float64)
        return spread_positions(height, width, self.image_size // self.patch_size)

    def _turns(self, places: Float[np.ndarray, "tokens 2"], before: int = 0) -> tuple[Turns, ...]:
        """The turns of image tokens behind so many that are not turned; () where places are told otherwise."""
        if self.positions == "sine":
            return ()
        half = self.hidden_size // self.num_heads // 2
        rows = np.concatenate([np.zeros((before, 2)), places])
        return (axial_turns(rows, (half, half), 10_000.0, at_least_float32(self.dtype)),)

    def _with_context(
        self, h: Tokens, vector: Vector, conditions: Conditions, places: Float[np.ndarray, "tokens 2"]
    ) -> tuple[State, tuple[Any, ...]]:
        """The state passed between blocks, and the inputs that all blocks share."""
        if not self.context_channels:
            turns = self._turns(places)
            return h, (vector, None, None, *turns) if turns else (vector,)
        embed = Dense(self.hidden_size, dtype=self.dtype, kernel_init=_xavier, name="context_embedding")
        context, mask = embed(conditions["context"]), conditions.get("context_mask")
        if mask is None:
            mask = jnp.ones(context.shape[:2], bool)
        if self.context_by == "joint":
            return (h, context), (vector, mask, *self._turns(places, context.shape[1]))
        return h, (vector, context, mask, *self._turns(places))

    def _blocks(self, num_told: int) -> nn.Module:
        """All blocks as one module whose parameters have a leading axis of length `depth`."""
        axes = 0 if self.own_conditioning else nn.broadcast
        stack = nn.scan(self._block(), in_axes=(axes,) * num_told, unroll=self.scan_unroll, **self._loop)
        return stack(**self._block_fields)

    def _blocks_and_early(self, state: State, told: tuple[Any, ...]) -> tuple[State, Tokens]:
        """The state after all blocks, and the image tokens after `align_depth`; parameters as those of `_blocks`."""

        def step(block: nn.Module, carry: tuple[State, Tokens], number: Array) -> tuple[tuple[State, Tokens], None]:
            state, early = carry
            state, _ = block(state, *told)
            return (state, jnp.where(number == self.align_depth, _image_tokens(state), early)), None

        loop = nn.scan(step, in_axes=0, unroll=self.scan_unroll, **self._loop)
        first = (state, _image_tokens(state))
        (state, early), _ = loop(self._block()(**self._block_fields), first, 1 + jnp.arange(self.depth))
        return state, early

    def _block(self) -> type[nn.Module]:
        kind = JointBlock if self.context_channels and self.context_by == "joint" else DiTBlock
        return checkpointed(kind, self.remat, is_loop=self.scan_unroll < self.depth)

    @property
    def _loop(self) -> dict:
        return {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": self.depth}

    @property
    def _block_fields(self) -> dict:
        return {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "norm_eps": self.norm_eps,
            "attention": None if self.attention == "auto" else self.attention,
            "dtype": self.dtype,
            "name": "blocks",
        }

    def _projected(self, h: Tokens) -> Tokens:
        """Project into the space of the other network's features."""
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
    context_channels: int = 0,
    pooled_channels: int = 0,
    context_by: Literal["cross", "joint"] = "cross",
    guidance_channels: int = 0,
    size_channels: int = 0,
    positions: Literal["sine", "rotary"] = "sine",
    other_sizes: Literal["spread", "continued"] = "spread",
    attention: Literal["auto", "einsum", "chunked"] = "auto",
    dtype: DTypeLike = jnp.float32,
) -> DiT:
    """A DiT of a named size: S, B, M, L or XL, a slash, and the patch size, as in "XL/2".

    Other arguments override the size: {"size": "S/2", "depth": 4} is a shallow S/2.
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
        context_channels=context_channels,
        pooled_channels=pooled_channels,
        context_by=context_by,
        guidance_channels=guidance_channels,
        size_channels=size_channels,
        positions=positions,
        other_sizes=other_sizes,
        attention=attention,
        dtype=dtype,
    )
