"""Adapters that change no parameter: they fill a slot of the frozen network from pictures.

    control         y = network(x, t, c, ControlNet(x, t, c, picture))          Zhang et al. 2023, arXiv:2302.05543
    image prompts   y = network(x, t, c, keys and values of the picture)        Ye et al. 2023, arXiv:2308.06721

Each reads its own slot, which a conditioner fills from a batch, in place of the network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.conditioning import Conditioner, Conditions
from diffusion_jax.conditioning.steering import CONTROL_IMAGE, REFERENCE, ControlPicture, ReferencePicture
from diffusion_jax.domains import SHARE, SIZE, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.models import ConditionalUNet, ControlNet, controlnet_params, init_params
from diffusion_jax.models.conditional_encoder import IMAGE_PROMPT
from diffusion_jax.models.conditional_unet import CONTROL
from diffusion_jax.models.image_prompt import (
    ATTENTION,
    PROJECTION,
    ImageProjection,
    Resampler,
    init_image_prompt,
    keys_and_values,
    together,
)
from diffusion_jax.registry import Registry
from diffusion_jax.specs import ConditionSpec, DataSpec, mask_name

_WIDTHS = (16, 32, 96, 256)  # widths of the convolutions that bring a picture to the size of the latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """An adapter for pictures: its initial parameters, and the conditions that it gives the network.

    Attributes:
      name: name of its group of parameters, "adapters/<name>".
      changes_parameters: whether it changes parameters of the model rather than the network's conditions.
      reads_encoder: whether a picture encoder reads the pictures for it.
      is_folder: whether other programs store it as a folder rather than a file.
    """

    changes_parameters: ClassVar[bool] = False
    reads_encoder: ClassVar[bool] = False
    is_folder: ClassVar[bool] = False

    name: str

    def takes(self, network: Any) -> Mapping[str, ConditionSpec]:
        """The slots that it reads in place of the network."""
        raise NotImplementedError

    def conditioner(self, network: Any, data: DataSpec, encoder: nn.Module | None) -> Conditioner:
        """The conditioner that fills them from a batch; `encoder` is the picture encoder, if it uses one."""
        raise NotImplementedError

    def dropout(self, asked: tuple[str, ...]) -> dict[tuple[str, ...], float]:
        """Its own conditioning dropout, by set of slots; `asked` are the slots of the whole model."""
        del asked
        return {}

    def init(self, key: Key[Array, ""], base: Mapping[str, PyTree], network: Any) -> PyTree:
        """Initial parameters; `base` is groups of the model's parameters, including the network's.

        Raises:
          UserError: this network cannot be steered in this way.
        """
        raise NotImplementedError

    def conditions(
        self, network: Any, own: PyTree, x: Array, time: Float[Array, " batch"], conditions: Conditions
    ) -> Conditions:
        """The network's conditions, where the adapter's slot of the network replaces the slots that it reads."""
        raise NotImplementedError


STEERINGS: Registry[Steering] = Registry("steering adapter")


def _require_unet(network: Any, what: str) -> ConditionalUNet:
    if not isinstance(network, ConditionalUNet):
        raise UserError(f"{what} needs a text-conditioned U-Net, but the network is a {type(network).__name__}")
    return network


@STEERINGS.register("controlnet", example={"downscaling": 2, "embedding_channels": (4, 8)})
@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlNetAdapter(Steering):
    """A ControlNet: a trained copy of the U-Net's downward path that sees a picture and has no effect at first.

    Attributes:
      downscaling: ratio between a side of the picture and a side of the network's input, a power of two; by default the
        first stage's.
      control_channels: channels of the picture.
      embedding_channels: channels of the convolutions that bring the picture to the size of the input, with a halving
        between each two; empty: as many of 16, 32, 96, 256 as needed.
    """

    is_folder: ClassVar[bool] = True

    name: str = "controlnet"
    downscaling: Annotated[int, SIZE] = 8
    control_channels: Annotated[int, SIZE] = 3
    embedding_channels: tuple[int, ...] = ()

    def __post_init__(self):
        if self.downscaling & (self.downscaling - 1):
            raise UserError(f"controlnet: downscaling={self.downscaling} must be a power of two")
        if 2 ** (len(self.widths) - 1) != self.downscaling:
            raise UserError(
                f"controlnet: embedding_channels={self.embedding_channels} halve the picture {len(self.widths) - 1} "
                f"times, but downscaling={self.downscaling}: leave them out, or give one entry more than halvings"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the convolutions."""
        count = self.downscaling.bit_length()
        return self.embedding_channels or (_WIDTHS + _WIDTHS[-1:] * count)[:count]

    def module(self, network: Any) -> ControlNet:
        """The ControlNet of a U-Net."""
        unet = _require_unet(network, "a ControlNet")
        own = {"control_channels": self.control_channels, "embedding_channels": self.widths}
        names = [field.name for field in dataclasses.fields(ControlNet) if field.name not in (*own, "parent", "name")]
        return ControlNet(**{name: getattr(unet, name) for name in names if hasattr(unet, name)}, **own)

    def takes(self, network: Any) -> Mapping[str, ConditionSpec]:
        spec = self.module(network).takes[CONTROL_IMAGE]
        return {CONTROL_IMAGE: dataclasses.replace(spec, role="told")}

    def conditioner(self, network: Any, data: DataSpec, encoder: nn.Module | None) -> Conditioner:
        return ControlPicture(side=data.shape[0], channels=self.control_channels)

    def init(self, key: Key[Array, ""], base: Mapping[str, PyTree], network: Any) -> PyTree:
        return controlnet_params(init_params(self.module(network), key), base["network"])

    def conditions(self, network, own, x, time, conditions):
        module = self.module(network)
        slots = {*module.takes, *map(mask_name, module.takes)}
        told = {name: value for name, value in conditions.items() if name in slots}
        control = module.apply({"params": own}, x, time, told)
        return {**{name: value for name, value in conditions.items() if name != CONTROL_IMAGE}, CONTROL: control}


@STEERINGS.register("ip_adapter", example={"features": 6, "tokens": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class IpAdapter(Steering):
    """An IP-Adapter, with which a picture is a second prompt: a projection to tokens, and their keys and values.

    Attributes:
      image_encoder: folder of a CLIP image encoder with projection, which stays frozen.
      projection: "base" for a few tokens of the picture's vector, "plus" for a resampler of its patches.
      tokens: tokens that a picture becomes; 0: 4 of "base", 16 of "plus".
      features: channels that are read from the encoder; the runner asks the encoder.
      rows: vectors that are read from the encoder for a picture; the runner asks the encoder.
      hidden: width of the resampler.
      depth: layers of the resampler.
      heads: attention heads of the resampler, 64 channels each.
      reference_dropout: share of examples that lose only the picture.
      text_dropout: share of examples that lose only the text; `train.conditioning_dropout` is for losing both.
    """

    reads_encoder: ClassVar[bool] = True

    name: str = "ip_adapter"
    image_encoder: str = ""
    projection: Literal["base", "plus"] = "base"
    tokens: Annotated[int, Bounds(low=0, high=4096)] = 0
    features: Annotated[int, SIZE]
    rows: Annotated[int, SIZE] = 1
    hidden: Annotated[int, SIZE] = 768
    depth: Annotated[int, SIZE] = 4
    heads: Annotated[int, SIZE] = 12
    reference_dropout: Annotated[float, SHARE] = 0.05
    text_dropout: Annotated[float, SHARE] = 0.05

    def module(self, network: Any) -> ImageProjection | Resampler:
        """The projection to tokens."""
        width = _require_unet(network, "an IP-Adapter").context_channels
        if self.projection == "base":
            return ImageProjection(tokens=self.tokens or 4, width=width)
        sizes = {"hidden": self.hidden, "depth": self.depth, "heads": self.heads}
        return Resampler(tokens=self.tokens or 16, width=width, **sizes)

    def takes(self, network: Any) -> Mapping[str, ConditionSpec]:
        _require_unet(network, "an IP-Adapter")
        return {REFERENCE: ConditionSpec(shape=(self.rows, self.features))}

    def conditioner(self, network: Any, data: DataSpec, encoder: nn.Module | None) -> Conditioner:
        return ReferencePicture(
            pictures=encoder, rows=self.rows, features=self.features, of_patches=self.projection == "plus"
        )

    def dropout(self, asked: tuple[str, ...]) -> dict[tuple[str, ...], float]:
        text = tuple(name for name in asked if name != REFERENCE)
        return {(REFERENCE,): self.reference_dropout, **({text: self.text_dropout} if text else {})}

    def init(self, key: Key[Array, ""], base: Mapping[str, PyTree], network: Any) -> PyTree:
        unet = _require_unet(network, "an IP-Adapter")
        stages, module = unet.transformers(), self.module(network)
        return init_image_prompt(module, stages, self.features, key, base["network"])

    def conditions(self, network, own, x, time, conditions):
        tokens = self.module(network).apply({"params": own[PROJECTION]}, conditions[REFERENCE])
        prompt = keys_and_values(own[ATTENTION], tokens, dict.fromkeys(own[ATTENTION], 1.0))
        rest = {name: value for name, value in conditions.items() if name != REFERENCE}
        return {**rest, IMAGE_PROMPT: together([prompt])}
