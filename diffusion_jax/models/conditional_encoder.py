"""The downward path of a text-conditioned U-Net, shared by ConditionalUNet and ControlNet.

A `Stage` is one step of the network: a residual block, followed by a transformer at the levels that attend to the text,
or a change of resolution. The networks run lists of stages, and maps of names follow the same lists.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.cross_attention import Mask
from diffusion_jax.models.dit import checkpointed
from diffusion_jax.models.layers import Conv, GroupNorm, LabelEmbedding, TimeMLP, at_least_float32, sinusoidal_embedding
from diffusion_jax.models.network import Conditions, Network
from diffusion_jax.models.unet_blocks import Image, ResBlock, SpatialTransformer
from diffusion_jax.specs import ConditionSpec

Depths = int | tuple[int | tuple[int, ...], ...]

_glorot = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
IMAGE_PROMPT = "image_prompt"
"""The optional slot of pictures that are attended to beside the text: for each transformer's name, pairs of keys and
values [batch, blocks, tokens, width], see `CrossAttention`."""
_TRANSFORMER_EPS = 1e-6  # of the group norm before the blocks; norm_eps does not change it


class Stage(NamedTuple):
    """One step of the network.

    Attributes:
      name: name of its parameters; those of its transformer are under `attention_name`.
      kind: the kind of step.
      level: 0 at the full resolution.
      inputs: input channels, on the upward path including those of the kept result.
      features: output channels.
      depth: blocks of its transformer; 0: it has none.
    """

    name: str
    kind: Literal["block", "downsample", "upsample"]
    level: int
    inputs: int
    features: int
    depth: int = 0

    @property
    def attention_name(self) -> str:
        """The name of the transformer's parameters."""
        return "middle_attention" if self.name == "middle_0" else f"{self.name}_attention"


class Run(NamedTuple):
    """The inputs that every stage shares."""

    embedding: Float[Array, "batch dim"]
    context: Float[Array, "batch length width"]
    mask: Mask | None
    dropout_keys: Key[Array, " batch"] | None
    image_prompt: Mapping[str, Any]


class ConditionalEncoder(Network, kw_only=True):
    """The fields and stages of a text-conditioned U-Net down to its middle; the defaults are SD 1.x's.

    Takes images of any height and width. Parameters are as in `UNet`, but a transformer's blocks are one scan.

    Attributes:
      channels: channels of each level.
      attends: which levels have transformers.
      num_res_blocks: residual blocks of each level on the downward path; on the upward path a level has one more.
      num_heads: attention heads of each level.
      transformer_depth: blocks of the transformers of each level, or of every transformer of a level.
      middle: "attention": block, transformer, block; "block": one block; "none": nothing.
      context_channels: width of conditions["context"], [batch, tokens, width], the text.
      linear_projection: whether the maps around the blocks are published as linear layers or as 1x1 convolutions, which
        are equivalent here.
      only_cross_attention: which levels attend to the text twice, instead of to themselves.
      upcast_attention: whether logits are requested in float32, which they always are.
      pooled_channels: width of conditions["pooled"], one vector for the whole text; 0 for none.
      size_channels: waves for each number of conditions["sizes"], the sizes and the crop in pixels; 0 for none.
      num_sizes: number of these numbers: 6 for SDXL base, 5 for its refiner, which takes an aesthetic score. Pooled and
        sizes go through one MLP side by side, so other numbers of sizes are allowed with correspondingly less pooled.
      num_noise_levels: number of levels of conditions["noise_level"], the noise in a low-resolution image; 0 for none.
      scale_shift: time scales and shifts inside residual blocks, instead of being added.
      dropout: rate inside residual blocks; active if dropout keys are given.
      norm_groups: groups of a group norm.
      norm_eps: added to its variance, in residual blocks and at the end.
      flip_sin_to_cos, frequency_shift: convention of the time embedding, see `sinusoidal_embedding`.
      downsample_padding: padding of stride-2 convolutions: "symmetric" one pixel all round, "same" below and right.
      remat: what the backward pass keeps: all ("none"), block inputs ("full") or results of dense layers ("dots").
    """

    is_convolutional: ClassVar[bool] = True

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)
    num_res_blocks: int | tuple[int, ...] = 2
    num_heads: int | tuple[int, ...] = 8
    transformer_depth: Depths = 1
    middle: Literal["attention", "block", "none"] = "attention"
    context_channels: int = 768
    linear_projection: bool = False
    only_cross_attention: bool | tuple[bool, ...] = False
    upcast_attention: bool = False
    pooled_channels: int = 0
    size_channels: int = 0
    num_sizes: int = 6
    num_noise_levels: int = 0
    scale_shift: bool = False
    dropout: float = 0.0
    norm_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    frequency_shift: int = 0
    downsample_padding: Literal["same", "symmetric"] = "symmetric"
    remat: Literal["none", "full", "dots"] = "none"

    def __post_init__(self):
        super().__post_init__()
        levels, name = len(self.channels), type(self).__name__
        if not levels:
            raise UserError(f"{name} needs at least one level: channels is empty")
        for field in ("attends", "num_res_blocks", "num_heads", "transformer_depth", "only_cross_attention"):
            value = getattr(self, field)
            if isinstance(value, tuple) and len(value) != levels:
                raise UserError(f"{name}: {field}={value} must be one for each of the {levels} levels of channels")
        if not self.context_channels:
            raise UserError(f"{name} attends to a text: context_channels must be at least 1")
        wrong = [width for width in self.channels if width % self.norm_groups]
        if wrong:
            raise UserError(f"{name}: {wrong[0]} channels are not divisible by norm_groups={self.norm_groups}")
        for level, width in enumerate(self.channels):
            middle = level == levels - 1 and self.middle == "attention"
            if (self.attends[level] or middle) and width % self._heads(level):
                raise UserError(f"{name}: {width} channels do not divide into num_heads={self._heads(level)}")
        for stage in self.down_stages():
            if stage.depth < 0:
                raise UserError(f"{name}: transformer_depth={self.transformer_depth} has no depth for {stage.name}")
        if self.downsample_padding not in ("same", "symmetric"):
            raise UserError(f"downsample_padding is 'same' or 'symmetric', got {self.downsample_padding!r}")
        if self.middle not in ("attention", "block", "none"):
            raise UserError(f"middle is 'attention', 'block' or 'none', got {self.middle!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout is a rate in [0, 1), got {self.dropout}")
        checkpointed(ResBlock, self.remat)

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        slots = {**super().takes, "context": ConditionSpec(shape=(None, self.context_channels))}
        if self.pooled_channels:
            slots["pooled"] = ConditionSpec(shape=(self.pooled_channels,))
        if self.size_channels:
            slots["sizes"] = ConditionSpec(shape=(self.num_sizes,), role="told")
        if self.num_noise_levels:
            slots["noise_level"] = ConditionSpec(dtype="int32", role="told", num_values=self.num_noise_levels)
        return slots

    @nn.nowrap
    def slots_beside(self, x: Image, conditions: Conditions) -> dict[str, ConditionSpec]:
        """`takes` with as many sizes as are given, and correspondingly less pooled."""
        slots = self.takes
        sizes = conditions.get("sizes")
        if "sizes" in slots and "pooled" in slots and sizes is not None and sizes.ndim == 2:
            pooled = self.added_channels - sizes.shape[1] * self.size_channels
            if sizes.shape[1] and pooled > 0:
                slots["sizes"] = ConditionSpec(shape=sizes.shape[1:], role="told")
                slots["pooled"] = ConditionSpec(shape=(pooled,))
        return slots

    @property
    def added_channels(self) -> int:
        """Width of pooled and of the waves of the sizes together."""
        return self.pooled_channels + self.num_sizes * self.size_channels

    @nn.nowrap
    def res_blocks(self, level: int) -> int:
        """Residual blocks of a level on the downward path."""
        return self.num_res_blocks if isinstance(self.num_res_blocks, int) else self.num_res_blocks[level]

    @nn.nowrap
    def _heads(self, level: int) -> int:
        return self.num_heads if isinstance(self.num_heads, int) else self.num_heads[level]

    @nn.nowrap
    def _only_cross(self, level: int) -> bool:
        only = self.only_cross_attention
        return only if isinstance(only, bool) else only[level]

    @nn.nowrap
    def down_stages(self) -> list[Stage]:
        """The stages after the first convolution, down to the lowest resolution."""
        stages, width = [], self.channels[0]
        for level, features in enumerate(self.channels):
            for block in range(self.res_blocks(level)):
                depth = depth_at(self.transformer_depth, level, block) if self.attends[level] else 0
                stages.append(Stage(f"down_{level}_{block}", "block", level, width, features, depth))
                width = features
            if level < len(self.channels) - 1:
                stages.append(Stage(f"down_{level}_downsample", "downsample", level, width, width))
        return stages

    @nn.nowrap
    def middle_stages(self) -> list[Stage]:
        """The stages at the lowest resolution."""
        level, width = len(self.channels) - 1, self.channels[-1]
        first = Stage("middle_0", "block", level, width, width)
        if self.middle == "attention":
            depth = depth_at(self.transformer_depth, level, 0)
            return [first._replace(depth=depth), first._replace(name="middle_1")]
        return [first] if self.middle == "block" else []

    @property
    def _norm(self) -> functools.partial:
        return functools.partial(
            GroupNorm, max_groups=self.norm_groups, min_channels=1, epsilon=self.norm_eps, dtype=self.dtype
        )

    @property
    def _conv(self) -> functools.partial:
        return functools.partial(Conv, kernel_size=(3, 3), padding=1, dtype=self.dtype, kernel_init=_glorot)

    def _block(self, stage: Stage, x: Image, run: Run) -> Image:
        """A residual block, and its transformer."""
        block = checkpointed(ResBlock, self.remat, is_loop=False)(
            features=stage.features,
            dropout=self.dropout,
            norm=self._norm,
            dtype=self.dtype,
            modulation="scale_shift" if self.scale_shift else "add",
            name=stage.name,
        )
        x = block(x, run.embedding, run.dropout_keys)
        if not stage.depth:
            return x
        transformer = SpatialTransformer(
            num_heads=self._heads(stage.level),
            depth=stage.depth,
            norm=functools.partial(self._norm, epsilon=_TRANSFORMER_EPS),
            dtype=self.dtype,
            only_cross=self._only_cross(stage.level) and not stage.name.startswith("middle"),
            scanned=True,
            remat=self.remat,
            name=stage.attention_name,
        )
        return transformer(x, run.context, run.mask, run.image_prompt.get(stage.attention_name, ()))

    def _encode(self, h: Image, run: Run) -> tuple[list[Image], Image]:
        """Every result on the downward path, and the middle's, from the first convolution's."""
        kept = [h]
        for stage in self.down_stages():
            if stage.kind == "block":
                h = self._block(stage, h, run)
            else:
                padding = ((0, 1), (0, 1)) if self.downsample_padding == "same" else 1
                h = self._conv(stage.features, strides=2, padding=padding, name=stage.name)(h)
            kept.append(h)
        for stage in self.middle_stages():
            h = self._block(stage, h, run)
        return kept, h

    def _run(self, time: Float[Array, " batch"], conditions: Conditions, dropout_keys) -> Run:
        embedding = nn.silu(self._embed(time, conditions))
        context = conditions["context"].astype(self.dtype)
        return Run(embedding, context, conditions.get("context_mask"), dropout_keys, conditions.get(IMAGE_PROMPT) or {})

    def _waves(self, numbers: Float[Array, " n"], dim: int) -> Float[Array, "n dim"]:
        return sinusoidal_embedding(
            numbers, dim, flip_sin_to_cos=self.flip_sin_to_cos, frequency_shift=self.frequency_shift
        )

    def _time_waves(self, time: Float[Array, " batch"], conditions: Conditions) -> Float[Array, "batch dim"]:
        """The input of the time MLP."""
        del conditions
        return self._waves(time, self.channels[0])

    def _embed(self, time: Float[Array, " batch"], conditions: Conditions) -> Float[Array, "batch dim"]:
        """Time and all other vector conditions as one vector of 4 * channels[0]; at least float32."""
        first = self.channels[0]
        mlp = functools.partial(TimeMLP, features=4 * first, kernel_init=_glorot)
        embedding = mlp(name="time")(self._time_waves(time, conditions))
        if self.num_times == 2:
            embedding += mlp(name="interval")(self._waves(time - conditions["second_time"], first))
        added = [conditions["pooled"]] if self.pooled_channels else []
        if self.size_channels:
            sizes = conditions["sizes"]
            added.append(self._waves(sizes.reshape(-1), self.size_channels).reshape(sizes.shape[0], -1))
        if added:
            added = jnp.concatenate([part.astype(embedding.dtype) for part in added], axis=-1)
            embedding += mlp(name="added")(added)
        if self.num_noise_levels:
            table = nn.Embed(self.num_noise_levels, 4 * first, name="noise_level")
            embedding += table(conditions["noise_level"])
        if self.num_classes:
            wide = at_least_float32(self.dtype)
            label = LabelEmbedding(num_classes=self.num_classes, features=4 * first, dtype=wide, name="label")
            embedding += label(conditions["label"])
        return embedding


def depth_at(depths: Depths, level: int, block: int) -> int:
    """Blocks of the transformer after a residual block of a level; -1 if the depths do not cover it."""
    depth = depths if isinstance(depths, int) else depths[level]
    if isinstance(depth, int):
        return depth
    return depth[block] if block < len(depth) else -1
