"""The text-conditioned U-Net of Stable Diffusion 1.x, 2.x and XL (Rombach et al. 2022; Podell et al. 2023).

One network, configured by data:

    SD 1.x         768 channels of context, 8 heads everywhere
    SD 2.x         1024 channels of context, heads by level, linear projections; the process says whether it predicts
                   epsilon or v
    SDXL           three levels, transformers of 2 and 10 blocks, pooled and sizes added to the time embedding
    inpainting     `extra_channels=5`: the mask, and the latents outside of it, in the slot "image"
    InstructPix2Pix  `extra_channels=4`: the latents of the picture to be edited
    x4 upscaler    `extra_channels=3`, `num_noise_levels=1000`
    LCM            `guidance_channels=256`: the guidance scale is a condition (Luo et al. 2023, arXiv:2310.04378)

A ControlNet (`controlnet.py`) fills the slot "control" and an IP-Adapter (`image_prompt.py`) the slot "image_prompt";
both may be left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditional_encoder import IMAGE_PROMPT, ConditionalEncoder, Depths, Stage, depth_at
from diffusion_jax.models.layers import at_least_float32, guidance_waves, upsample_nearest
from diffusion_jax.models.network import Conditions
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.unet_blocks import Image
from diffusion_jax.specs import GUIDANCE, ConditionSpec

CONTROL = "control"
"""The slot of residuals, {"down": one image for every result on the downward path, "mid": one for the middle}."""


@MODELS.register(
    "conditional_unet",
    example={
        "image_size": 8,
        "image_channels": 2,
        "num_classes": 3,
        "channels": (8, 16),
        "attends": (False, True),
        "num_res_blocks": 1,
        "num_heads": (2, 4),
        "transformer_depth": (1, 2),
        "context_channels": 6,
        "pooled_channels": 5,
        "size_channels": 4,
        "num_sizes": 2,
        "guidance_channels": 4,
        "extra_channels": 3,
        "norm_groups": 4,
        "dropout": 0.5,
    },
)
class ConditionalUNet(ConditionalEncoder, kw_only=True):
    """The text-conditioned U-Net; the defaults are SD 1.x's (859,520,964 parameters with 4 channels of latents).

    `time` is the step of the chain, 0 to 1000, whole or not. Odd sizes are rounded up on the downward path, and cropped
    to the kept results on the upward path.

    Attributes:
      extra_channels: channels of conditions["image"], [batch, height, width, channels], which is concatenated to the
        input; 0: none.
      image_role: whether that image is "told", or "asked" for and null for guidance (InstructPix2Pix).
      guidance_channels: waves of conditions["guidance"], LCM's w, which is the guidance scale less 1; 0: none. Their
        layer starts at zero.
      up_transformer_depth: `transformer_depth` of the upward path, by level from the full resolution, where it differs.
      out_channels: channels of the output; None means image_channels.
    """

    zero_at_init: ClassVar[bool] = True

    extra_channels: int = 0
    image_role: Literal["asked", "told"] = "told"
    guidance_channels: int = 0
    up_transformer_depth: Depths | None = None
    out_channels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.image_role not in ("asked", "told"):
            raise UserError(f"image_role is 'asked' or 'told', got {self.image_role!r}")
        deep = self.up_transformer_depth
        if isinstance(deep, tuple) and len(deep) != len(self.channels):
            raise UserError(f"ConditionalUNet: up_transformer_depth={deep} must be one for each level of channels")
        for stage in self.up_stages():
            if stage.depth < 0:
                raise UserError(
                    f"ConditionalUNet: no transformer depth for {stage.name}: give up_transformer_depth, on the way up "
                    "a level has one block more"
                )

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        slots = super().takes
        if self.guidance_channels:
            slots[GUIDANCE] = ConditionSpec(role="told")
        if self.extra_channels:
            shape = (None, None, self.extra_channels)
            slots["image"] = ConditionSpec(shape=shape, role=self.image_role, is_aligned=True)
        return slots

    @nn.nowrap
    def up_stages(self) -> list[Stage]:
        """The stages from the lowest resolution up; a block's inputs include the kept result that it takes."""
        kept = [self.channels[0], *(stage.features for stage in self.down_stages())]
        depths = self.transformer_depth if self.up_transformer_depth is None else self.up_transformer_depth
        stages, width = [], self.channels[-1]
        for level in reversed(range(len(self.channels))):
            features = self.channels[level]
            for block in range(self.res_blocks(level) + 1):
                depth = depth_at(depths, level, block) if self.attends[level] else 0
                stages.append(Stage(f"up_{level}_{block}", "block", level, width + kept.pop(), features, depth))
                width = features
            if level:
                stages.append(Stage(f"up_{level}_upsample", "upsample", level, width, width))
        return stages

    @nn.nowrap
    def transformers(self) -> list[Stage]:
        """The stages with a transformer: on the downward path, on the upward path, and the middle."""
        return [stage for stage in (*self.down_stages(), *self.up_stages(), *self.middle_stages()) if stage.depth]

    @nn.compact
    def __call__(
        self,
        x: Image,
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Image:
        """See `Network`."""
        optional = (CONTROL, IMAGE_PROMPT)
        self.check_inputs(x, time, {name: value for name, value in conditions.items() if name not in optional})
        if conditions.get(IMAGE_PROMPT):
            require_image_prompt(conditions[IMAGE_PROMPT], self.transformers(), len(x))
        run = self._run(time, conditions, dropout_keys)
        if self.extra_channels:
            x = jnp.concatenate([x, conditions["image"].astype(x.dtype)], axis=-1)
        kept, h = self._encode(self._conv(self.channels[0], name="conv_in")(x), run)
        if conditions.get(CONTROL) is not None:
            kept, h = controlled(kept, h, conditions[CONTROL])
        for stage in self.up_stages():
            if stage.kind == "block":
                h = self._block(stage, jnp.concatenate([h, kept.pop()], axis=-1), run)
            else:
                height, width = kept[-1].shape[1:3]
                h = self._conv(stage.features, name=stage.name)(upsample_nearest(h)[:, :height, :width])
        h = nn.silu(self._norm(name="norm_out")(h))
        out_channels = self.out_channels or self.image_channels
        h = self._conv(out_channels, kernel_init=nn.initializers.zeros, name="conv_out")(h)
        return h.astype(at_least_float32(h.dtype))

    def _time_waves(self, time: Float[Array, " batch"], conditions: Conditions) -> Float[Array, "batch dim"]:
        waves = super()._time_waves(time, conditions)
        if self.guidance_channels:
            waves += guidance_waves(conditions[GUIDANCE], self.guidance_channels, self.channels[0], waves.dtype)
        return waves


def controlled(kept: list[Image], middle: Image, control: Mapping[str, Any]) -> tuple[list[Image], Image]:
    """The results of the downward path and the middle, with the residuals of a ControlNet added.

    Raises:
      UserError: the residuals belong to another network.
    """
    if set(control) != {"down", "mid"}:
        raise UserError(f"control has the residuals 'down' and 'mid', got {sorted(control)}")
    wanted = [tuple(h.shape) for h in (*kept, middle)]
    found = [tuple(residual.shape) for residual in (*control["down"], control["mid"])]
    if wanted != found:
        raise UserError(f"control belongs to another network: it has the shapes {found}, but this one's are {wanted}")
    kept = [h + residual.astype(h.dtype) for h, residual in zip(kept, control["down"], strict=True)]
    return kept, middle + control["mid"].astype(middle.dtype)


def require_image_prompt(prompt: Mapping[str, Any], stages: Sequence[Stage], batch: int) -> None:
    """Raise UserError if keys and values do not belong to these transformers."""
    wanted = {stage.attention_name: (batch, stage.depth, stage.features) for stage in stages}
    for name, pairs in prompt.items():
        if name not in wanted:
            raise UserError(f"{IMAGE_PROMPT} has {name}, but the network has no such transformer: {', '.join(wanted)}")
        for leaf in (leaf for pair in pairs for leaf in pair):
            if leaf.ndim != 4 or (*leaf.shape[:2], leaf.shape[3]) != wanted[name]:
                rows, depth, width = wanted[name]
                raise UserError(
                    f"{IMAGE_PROMPT} of {name} must be [{rows}, {depth}, tokens, {width}], it is {list(leaf.shape)}"
                )
