"""Linear rules: extrapolations through the conditional prediction, away from a worse one.

Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) extrapolates from the unconditional prediction,

    (1)   guided = unconditional + scale (conditional - unconditional),

so scale 0 is the unconditional model, and scales above 1 sharpen. (Ho & Salimans write w = scale - 1.) In the place of
the unconditional prediction stands

    negative        what the sample shall not be
    autoguidance    a smaller or less trained network (Karras et al. 2024, arXiv:2406.02507)

and a network that takes a picture and a text has two scales (Brooks et al. 2022, arXiv:2211.09800, eq. 3):

    (2)   guided = nothing + image_scale (image - nothing) + scale (both - image).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
from jaxtyping import Array

from diffusion_jax.errors import UserError
from diffusion_jax.samplers.guidance.rule import GUIDANCE, Rule, Scale
from diffusion_jax.specs import DataSpec


def extrapolated(away: Any, towards: Any, scale: float | Array) -> Any:
    """Eq. (1), of predictions or of logits."""
    return jax.tree.map(lambda a, b: a + scale * (b - a), away, towards)


def extrapolated_twice(both: Any, image: Any, nothing: Any, scale: float | Array, image_scale: float | Array) -> Any:
    """Eq. (2), of predictions."""
    return jax.tree.map(lambda b, i, n: n + image_scale * (i - n) + scale * (b - i), both, image, nothing)


@GUIDANCE.register("classifier_free", example={"scale": 2.0})
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierFree(Rule):
    """Eq. (1); at scale 0 only the unconditional prediction is evaluated."""

    @property
    def can_be_told(self) -> bool:
        return not self.interval and self.rescale == 0.0 and self.reuse == 1 and self.negative == ""

    def asks(self, asked: Sequence[str]) -> tuple[frozenset[str], ...]:
        both = super().asks(asked)
        return both[1:] if self.scale == 0.0 and self.rescale == 0.0 else both

    def lean(self, *predictions: Any, memory: Array | None = None) -> Any:
        return predictions[0] if len(predictions) == 1 else extrapolated(predictions[1], predictions[0], self.scale)


@GUIDANCE.register("negative", example={"scale": 2.0, "negative": "1"})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Negative(ClassifierFree):
    """Eq. (1) away from what the sample shall not be.

    Attributes:
      negative: the class, by name or number, or the text; what `guided` is given as `null` is made from it.
    """

    negative: str | int = ""

    def check(self, asked: Sequence[str], data: DataSpec, *, is_flow_map: bool = False) -> None:
        super().check(asked, data, is_flow_map=is_flow_map)
        if not self.neutral and self.negative == "":
            raise UserError("guidance negative needs a description of what to avoid: set its field negative")


@GUIDANCE.register("autoguidance", example={"scale": 2.0, "guide": "runs/worse"})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoguidance(Rule):
    """Eq. (1) from a worse network, which is asked for the same; one evaluation of each.

    Attributes:
      guide: the workdir of the run of the worse network.
      guide_ema: which average of its parameters; "" is what its config says.
    """

    others: ClassVar[tuple[str, ...]] = ("worse",)

    guide: str = ""
    guide_ema: str = ""

    def asks(self, asked: Sequence[str]) -> tuple[frozenset[str], ...]:
        return (frozenset(),)

    def lean(self, own: Any, worse: Any, memory: Array | None = None) -> Any:
        return extrapolated(worse, own, self.scale)


@GUIDANCE.register("two_scales", example={"scale": 2.0, "image_scale": 1.5})
@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoScales(Rule):
    """Eq. (2), which asks three times.

    Attributes:
      image_scale: how far to lean towards the picture.
      image: the slot of the picture; every other slot that is asked counts as the text.
    """

    image_scale: Scale = 1.0
    image: str = "image"

    @property
    def neutral(self) -> bool:
        return self.scale == self.image_scale == 1.0

    def asks(self, asked: Sequence[str]) -> tuple[frozenset[str], ...]:
        return frozenset(), frozenset(asked) - {self.image}, frozenset(asked)

    def check(self, asked: Sequence[str], data: DataSpec, *, is_flow_map: bool = False) -> None:
        super().check(asked, data, is_flow_map=is_flow_map)
        if not self.neutral and (self.image not in asked or len(asked) < 2):
            raise UserError(
                f"guidance two_scales guides towards {self.image!r} and another condition, but this network is asked "
                f"for {', '.join(asked) or 'nothing'}: use classifier_free"
            )

    def lean(self, both: Any, image: Any, nothing: Any, memory: Array | None = None) -> Any:
        return extrapolated_twice(both, image, nothing, self.scale, self.image_scale)
