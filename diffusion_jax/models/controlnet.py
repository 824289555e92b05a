"""ControlNet (Zhang, Rao & Agrawala 2023, arXiv:2302.05543): a picture steers a text-conditioned U-Net.

A copy of the U-Net's downward path sees the same input, plus an embedding of the picture. Each of its results goes
through a 1x1 convolution that starts at zero, and is added to the U-Net's own result:

    control["down"][i] = Z_i(h_i),    control["mid"] = Z(h_middle)              (equation 2)

so that training starts from the unchanged U-Net.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditional_encoder import ConditionalEncoder
from diffusion_jax.models.layers import Dense, at_least_float32
from diffusion_jax.models.network import Conditions
from diffusion_jax.models.unet_blocks import Image
from diffusion_jax.specs import ConditionSpec

_zeros = nn.initializers.zeros


class ControlNet(ConditionalEncoder, kw_only=True):
    """The copied downward path of a `ConditionalUNet`; the defaults are SD 1.x's (361,279,120 parameters).

    Attributes:
      control_channels: channels of conditions["control_image"], a picture in [0, 1].
      embedding_channels: channels of the convolutions that bring the picture to the size of the latents, with a halving
        between each two of them.
      channel_order: "bgr" for networks trained on pictures in that order; the slot is always rgb.
    """

    control_channels: int = 3
    embedding_channels: tuple[int, ...] = (16, 32, 96, 256)
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self):
        super().__post_init__()
        if not self.embedding_channels:
            raise UserError("ControlNet: embedding_channels is empty")
        if self.channel_order not in ("rgb", "bgr"):
            raise UserError(f"channel_order is 'rgb' or 'bgr', got {self.channel_order!r}")

    @property
    def downscaling(self) -> int:
        """The ratio between a side of the picture and a side of the latents."""
        return 2 ** (len(self.embedding_channels) - 1)

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        side = self.downscaling * self.image_size
        return {**super().takes, "control_image": ConditionSpec(shape=(side, side, self.control_channels))}

    @nn.nowrap
    def slots_beside(self, x: Image, conditions: Conditions) -> dict[str, ConditionSpec]:
        """`takes` with a picture of the size that x requires."""
        height, width = (self.downscaling * side for side in x.shape[1:3])
        picture = ConditionSpec(shape=(height, width, self.control_channels))
        return {**super().slots_beside(x, conditions), "control_image": picture}

    @nn.compact
    def __call__(
        self,
        x: Image,
        time: Float[Array, " batch"],
        conditions: Conditions,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> dict[str, Any]:
        """The slot "control" of the U-Net, float32: {"down": one residual for each result, "mid": one}."""
        self.check_inputs(x, time, conditions)
        run = self._run(time, conditions, dropout_keys)
        picture = conditions["control_image"]
        h = self._conv(self.channels[0], name="conv_in")(x)
        h += self._embed_picture(picture[..., ::-1] if self.channel_order == "bgr" else picture)
        kept, middle = self._encode(h, run)

        def zero(h: Image, name: str) -> Image:
            h = Dense(h.shape[-1], dtype=self.dtype, kernel_init=_zeros, name=name)(h)
            return h.astype(at_least_float32(h.dtype))

        down = tuple(zero(h, f"zero_{index}") for index, h in enumerate(kept))
        return {"down": down, "mid": zero(middle, "zero_middle")}

    def _embed_picture(self, picture: Image) -> Image:
        """Eight convolutions for SD: two of each width, the second of which halves the picture."""
        h = nn.silu(self._conv(self.embedding_channels[0], name="picture_in")(picture))
        for index, features in enumerate(self.embedding_channels[1:]):
            h = nn.silu(self._conv(h.shape[-1], name=f"picture_{2 * index}")(h))
            h = nn.silu(self._conv(features, strides=2, name=f"picture_{2 * index + 1}")(h))
        return self._conv(self.channels[0], kernel_init=_zeros, name="picture_out")(h)


def scaled_control(
    control: Mapping[str, Any], scale: float | Float[Array, ""], *, guess_mode: bool = False
) -> dict[str, Any]:
    """The residuals times a scale; in guess mode from a tenth for the finest to all for the middle (section 3.4
    there)."""
    count = len(control["down"])
    shares = np.logspace(-1, 0, count + 1, dtype=np.float32) if guess_mode else np.ones(count + 1, np.float32)
    down = tuple(residual * (scale * share) for residual, share in zip(control["down"], shares, strict=False))
    return {"down": down, "mid": control["mid"] * (scale * shares[-1])}


def summed_controls(controls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of the residuals of several ControlNets of one U-Net.

    Raises:
      UserError: there are none, or they do not fit each other.
    """
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(dict(control))) for control in controls}
    if len(shapes) != 1:
        raise UserError(
            "ControlNets of one U-Net must give residuals of the same shapes; these belong to different networks"
        )
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *map(dict, controls))


def controlnet_params(params: PyTree, unet_params: PyTree) -> PyTree:
    """A ControlNet's initial parameters, with the downward path copied from a trained U-Net.

    Raises:
      UserError: the U-Net has another shape.
    """
    copied = {name: part for name, part in unet_params.items() if name in params}
    for name, part in copied.items():
        theirs, ours = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (part, params[name]))
        if theirs != ours:
            raise UserError(f"the U-Net's {name} has other shapes than the ControlNet's: their configs differ")
    own = [name for name in params if name not in copied and not name.startswith(("picture_", "zero_"))]
    if own:
        raise UserError(f"the U-Net has no {own[0]}, which the ControlNet copies: their configs differ")
    return {**params, **copied}
