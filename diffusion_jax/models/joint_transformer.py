"""The joint-attention transformer: image and text as two streams, then as one.

One module, configured by data, is the network of Stable Diffusion 3 and 3.5 (MM-DiT, Esser et al. 2024,
arXiv:2403.03206) and of FLUX.1 (dev, schnell, Fill, Kontext). What they share: patches as tokens, a conditioning vector
of time, pooled text and perhaps a guidance scale, blocks in which both streams attend to both (`joint_blocks.py`), and
a modulated last layer. The fields determine which network it is:

    SD3       positions from a table, which is cropped at the centre for other sizes
    SD3.5     query and key are normalised; in the medium size, image tokens of the first blocks also attend
              to themselves
    FLUX.1    positions (image number, row, column) by rotary embeddings, query and key normalised, and one-stream
              blocks after the two-stream blocks; dev embeds a guidance scale, Fill has a masked image beside the
              channels of x, Kontext has the tokens of a reference image after those of x, as image number 1

x is [batch, height, width, channels] of any height and width that divide by the patch; FLUX.1's "packing" of 2 x 2
latents is the patch. Blocks of equal shape are one scan over stacked parameters.
"""

import itertools
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.dit import checkpointed, patchify
from diffusion_jax.models.dit_blocks import ConditioningEmbedding, FinalLayer, Mask, Tokens, Vector
from diffusion_jax.models.joint_blocks import JointBlock, SingleBlock, Streams, whole_mask
from diffusion_jax.models.layers import Dense, at_least_float32, depth_to_space
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.rotary import Turns, axial_turns, grid_positions, rotary_frequencies
from diffusion_jax.specs import GUIDANCE, ConditionSpec

_xavier = nn.initializers.xavier_uniform()


class Run(NamedTuple):
    """Blocks of two streams and equal shape that follow each other: one scan.

    Attributes:
      start: number of the first block.
      length: number of blocks.
      dual, text_ends: see `JointBlock`.
    """

    start: int
    length: int
    dual: bool
    text_ends: bool

    @property
    def name(self) -> str:
        """The module's name."""
        return f"double_{self.start}"


class JointTransformer(Network, kw_only=True):
    """The joint-attention transformer.

    Further conditions: "context" [batch, length, context_channels], the tokens of a text, optionally with
      "context_mask";
    "pooled", "guidance", "image" and "reference" according to the fields.

    Attributes:
      image_size: nominal; x may have any height and width that divide by the patch.
      patch_size: side of a patch.
      hidden_size: channels of a token.
      depth: two-stream blocks.
      single_depth: one-stream blocks after them.
      num_heads: attention heads of a block.
      mlp_ratio: hidden units of the MLPs, in units of hidden_size.
      context_channels: width of a token of the text.
      pooled_channels: width of conditions["pooled"], one vector for the whole text; 0: there is none.
      has_guidance: whether conditions["guidance"], one scale for each example, is embedded beside the time.
      time_scale: factor on the time and the guidance scale before their embedding: 1000 in FLUX.1, whose time is in
        [0, 1].
      extra_channels: channels of conditions["image"], [batch, height, width, channels], concatenated to x; 0: none.
      has_reference: whether conditions["reference"], [batch, height, width, image_channels] of any size, gives tokens
        after those of x; the output has none for them.
      table_size: side, in patches, of the table of positions; 0: there is none.
      table_span: number of positions that the table covers: the side that the network was first trained for.
      rotary_dims: channels of a head rotated by image number, row and column; (): no rotation.
      rotary_theta: the base of the frequencies.
      qk_norm: whether queries and keys are divided by their root mean square.
      dual_blocks: numbers of the blocks whose image tokens also attend to themselves.
      text_ends: whether the last two-stream block only reads the text.
      skipped_blocks: numbers of the blocks that are skipped, for skip-layer guidance; the parameters stay the same.
      norm_eps: added to the variance of layer norms.
      remat: what the backward pass keeps: all ("none"), block inputs ("full") or results of dense layers ("dots").
      out_channels: channels of the output; None means image_channels.
    """

    guidance_origin: ClassVar[float] = 0.0

    patch_size: int = 2
    hidden_size: int = 1536
    depth: int = 24
    single_depth: int = 0
    num_heads: int = 24
    mlp_ratio: float = 4.0
    context_channels: int = 4096
    pooled_channels: int = 0
    has_guidance: bool = False
    time_scale: float = 1.0
    extra_channels: int = 0
    has_reference: bool = False
    table_size: int = 0
    table_span: int = 64
    rotary_dims: tuple[int, ...] = ()
    rotary_theta: float = 10_000.0
    qk_norm: bool = False
    dual_blocks: tuple[int, ...] = ()
    text_ends: bool = False
    skipped_blocks: tuple[int, ...] = ()
    norm_eps: float = 1e-6
    remat: Literal["none", "full", "dots"] = "none"
    out_channels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        head = self.hidden_size // self.num_heads
        blocks = self.depth + self.single_depth
        problems = {
            f"hidden_size={self.hidden_size} must divide by num_heads={self.num_heads}": self.hidden_size
            % self.num_heads,
            f"rotary_dims={self.rotary_dims} must be three even numbers, together the {head} channels of a head": (
                self.rotary_dims
                and (
                    len(self.rotary_dims) != 3 or sum(self.rotary_dims) != head or any(d % 2 for d in self.rotary_dims)
                )
            ),
            "text_ends=True leaves no text for single_depth > 0": self.text_ends and self.single_depth,
            f"dual_blocks={self.dual_blocks} must lie below depth={self.depth}": any(
                not 0 <= i < self.depth for i in self.dual_blocks
            ),
            f"skipped_blocks={self.skipped_blocks} must lie below depth + single_depth = {blocks}": any(
                not 0 <= i < blocks for i in self.skipped_blocks
            ),
            "a table of positions needs hidden_size that divides by 4": self.table_size and self.hidden_size % 4,
            "has_reference=True needs rotary_dims, that tell the images apart": self.has_reference
            and not self.rotary_dims,
        }
        for problem, holds in problems.items():
            if holds:
                raise UserError(f"JointTransformer: {problem}")
        checkpointed(JointBlock, self.remat)

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        slots = {**super().takes, "context": ConditionSpec(shape=(None, self.context_channels))}
        if self.pooled_channels:
            slots["pooled"] = ConditionSpec(shape=(self.pooled_channels,))
        if self.has_guidance:
            slots[GUIDANCE] = ConditionSpec(role="told")
        if self.extra_channels:
            slots["image"] = ConditionSpec(shape=(None, None, self.extra_channels), is_aligned=True)
        if self.has_reference:
            slots["reference"] = ConditionSpec(shape=(None, None, self.image_channels))
        return slots

    @property
    def runs(self) -> tuple[Run, ...]:
        """The scans over the two-stream blocks."""
        kinds = [(i in self.dual_blocks, self.text_ends and i == self.depth - 1) for i in range(self.depth)]
        runs, start = [], 0
        for kind, group in itertools.groupby(kinds):
            length = len(list(group))
            runs.append(Run(start, length, *kind))
            start += length
        return tuple(runs)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """See `Network`. There is no dropout: `dropout_keys` changes nothing. UserError where a size does not fit."""
        del dropout_keys
        self.check_inputs(x, time, conditions)
        self._check_sizes(x, conditions)
        vector = ConditioningEmbedding(
            features=self.hidden_size,
            num_classes=self.num_classes,
            num_times=self.num_times,
            pooled_channels=self.pooled_channels,
            has_guidance=self.has_guidance,
            time_scale=self.time_scale,
            dtype=self.dtype,
            name="conditioning",
        )(time, conditions)

        grids = [x.shape[1:3], *([conditions["reference"].shape[1:3]] if self.has_reference else [])]
        grids = [(height // self.patch_size, width // self.patch_size) for height, width in grids]
        h = self._image_tokens(x, conditions)
        embed = Dense(self.hidden_size, dtype=self.dtype, kernel_init=_xavier, name="context_embedding")
        context, mask = embed(conditions["context"]), conditions.get("context_mask")
        turns = self._turns(context.shape[1], grids, at_least_float32(h.dtype)) if self.rotary_dims else None

        h, context = self._double((h, context), vector, mask, turns)
        if self.single_depth:
            joined = jnp.concatenate([context, h], axis=1)
            joined = self._single(joined, vector, whole_mask(mask, h.shape[1]), turns)
            h = joined[:, context.shape[1] :]

        rows, columns = grids[0]
        features = self.patch_size**2 * (self.out_channels or self.image_channels)
        final = FinalLayer(features=features, norm_eps=self.norm_eps, dtype=self.dtype, name="final")
        h = final(h[:, : rows * columns], vector).reshape(-1, rows, columns, features)
        h = depth_to_space(h, self.patch_size)
        return h.astype(at_least_float32(h.dtype))

    @nn.nowrap
    def _check_sizes(self, x: Array, conditions: Conditions) -> None:
        images = {"x": x, **({"the reference": conditions["reference"]} if self.has_reference else {})}
        for name, image in images.items():
            if any(side % self.patch_size or not side for side in image.shape[1:3]):
                raise UserError(
                    f"JointTransformer: {image.shape[1]} x {image.shape[2]}, the sides of {name}, must be divisible "
                    f"by patch_size={self.patch_size}"
                )
        most = self.table_size * self.patch_size
        if self.table_size and max(x.shape[1:3]) > most:
            raise UserError(
                f"JointTransformer: x is {x.shape[1]} x {x.shape[2]}, but the table of positions ends at {most} x "
                f"{most}"
            )

    def _image_tokens(self, x: Array, conditions: Conditions) -> Tokens:
        """Tokens of x with the conditions of each of its pixels, followed by the reference's."""
        embed = Dense(self.hidden_size, dtype=self.dtype, kernel_init=_xavier, name="patch_embedding")
        if self.extra_channels:
            x = jnp.concatenate([x, conditions["image"]], axis=-1)
        h = embed(patchify(x, self.patch_size))
        if self.table_size:
            rows, columns = (side // self.patch_size for side in x.shape[1:3])
            h += self._table(rows, columns).reshape(rows * columns, -1).astype(h.dtype)
        if self.has_reference:
            reference = conditions["reference"]
            if self.extra_channels:
                reference = jnp.pad(reference, ((0, 0),) * 3 + ((0, self.extra_channels),))
            h = jnp.concatenate([h, embed(patchify(reference, self.patch_size))], axis=1)
        return h

    def _table(self, rows: int, columns: int) -> Float[Array, "rows columns dim"]:
        """The middle of the table of positions, which is a constant."""
        size = self.table_size

        def init(_: Key[Array, ""]) -> Float[Array, "size size dim"]:
            frequencies = rotary_frequencies(self.hidden_size // 2, 10_000.0).astype(np.float32)
            angles = (np.arange(size) * np.float32(self.table_span / size))[:, None] * frequencies
            side = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
            whole = (size, size, side.shape[-1])
            return jnp.concatenate(
                [jnp.broadcast_to(side[None], whole), jnp.broadcast_to(side[:, None], whole)], axis=-1
            )

        table = self.param("frozen_position_embedding", init)
        top, left = (size - rows) // 2, (size - columns) // 2
        return jax.lax.stop_gradient(table[top : top + rows, left : left + columns])

    @nn.nowrap
    def _turns(self, text_length: int, grids: list[tuple[int, int]], dtype: np.dtype) -> Turns:
        """Rotations for the text, which is at (0, 0, 0), for x and for the reference."""
        images = [grid_positions(*grid, first=number) for number, grid in enumerate(grids)]
        positions = np.concatenate([np.zeros((text_length, 3)), *images])
        return axial_turns(positions, self.rotary_dims, self.rotary_theta, dtype)

    def _double(self, streams: Streams, vector: Vector, mask: Mask | None, turns: Turns | None) -> Streams:
        """The streams after all two-stream blocks."""
        for run in self.runs:
            fields = {"dual": run.dual, "text_ends": run.text_ends, "name": run.name}
            stack = self._stack(JointBlock, run.length, fields)
            streams, _ = stack(streams, vector, mask, turns, self._keep(run.start, run.length))
        return streams

    def _single(self, h: Tokens, vector: Vector, mask: Mask | None, turns: Turns | None) -> Tokens:
        """The tokens of text and image after all one-stream blocks."""
        stack = self._stack(SingleBlock, self.single_depth, {"name": "single"})
        h, _ = stack(h, vector, mask, turns, self._keep(self.depth, self.single_depth))
        return h

    def _stack(self, block: type[nn.Module], length: int, fields: dict) -> nn.Module:
        """Blocks as one module whose parameters have a leading axis over the blocks."""
        stack = nn.scan(
            checkpointed(block, self.remat, is_loop=length > 1),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=length,
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
        )
        shared = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "norm_eps": self.norm_eps}
        return stack(**shared, qk_norm=self.qk_norm, dtype=self.dtype, **fields)

    @nn.nowrap
    def _keep(self, start: int, length: int) -> Array | None:
        """Which of these blocks are not skipped; None: all."""
        keep = np.array([i not in self.skipped_blocks for i in range(start, start + length)])
        return None if keep.all() else jnp.asarray(keep)


MODELS.register(
    "joint_transformer",
    example={
        "image_size": 4,
        "image_channels": 2,
        "num_classes": 3,
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 2,
        "single_depth": 2,
        "num_heads": 2,
        "context_channels": 6,
        "pooled_channels": 5,
        "has_guidance": True,
        "rotary_dims": (2, 2, 4),
        "qk_norm": True,
    },
)(JointTransformer)
