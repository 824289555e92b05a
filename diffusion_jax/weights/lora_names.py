"""The names of tensors in files of LoRA and its variants: which module, and which factor.

    PEFT, diffusers   unet.<module>.lora_A.weight            transformer.<module>.lora_B.weight
    diffusers         unet.<module>.lora.down.weight         text_encoder.<module>.lora_linear_layer.up.weight
    diffusers (old)   unet.<...>.attn1.processor.to_q_lora.down.weight
    kohya             lora_unet_<module, dots as underscores>.lora_down.weight    lora_te1_<...>.alpha    .dora_scale
    LyCORIS           lora_unet_<...>.hada_w1_a    .lokr_w2_b    .diff    .diff_b    .lora_mid.weight

A module has its name in its own network, either diffusers' or the original program's.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.files import parse_json

_FACTORS = {
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora.down.weight": "down",
    "lora_down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora.up.weight": "up",
    "lora_up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "lora_mid.weight": "middle",
    "alpha": "alpha",
    "lora.alpha": "alpha",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    "dora_scale": "magnitude",
    "diff": "difference",
    "diff_b": "difference_of_bias",
    **{f"hada_w{i}_{letter}": f"hada_w{i}_{letter}" for i in (1, 2) for letter in "ab"},
    **{f"lokr_w{i}{rest}": f"lokr_w{i}{rest}" for i in (1, 2) for rest in ("", "_a", "_b")},
}
_OLD = re.compile(r"(?P<module>.+?)\.(?:processor\.)?to_(?P<which>q|k|v|out)_lora\.(?P<factor>down|up)\.weight")
_KOHYA = re.compile(r"lora_(?P<component>unet|te|te1|te2|te3|transformer)_(?P<module>.+)")
_COMPONENTS = {
    "lora_unet": "denoiser",
    "lora_transformer": "denoiser",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "unet": "denoiser",
    "transformer": "denoiser",
    "diffusion_model": "denoiser",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
}
DENOISER = "denoiser"


@dataclasses.dataclass(frozen=True)
class Named:
    """The meaning of one tensor.

    Attributes:
      component: "denoiser", "text_encoder", "text_encoder_2" or "text_encoder_3".
      module: name of its module, with underscores for dots if `strokes`.
      factor: which of the module's tensors it is.
      strokes: whether the file has underscores in place of dots.
    """

    component: str
    module: str
    factor: str
    strokes: bool = False


def parse(name: str) -> Named | None:
    """The meaning of a tensor's name; None if it belongs to no known kind of adapter."""
    prefix, module = _split_factor(name)
    if prefix is None:
        return None
    kohya = _KOHYA.fullmatch(module)
    if kohya:
        component = _COMPONENTS[f"lora_{kohya['component']}"]
        return Named(component, kohya["module"], prefix, strokes=True)
    first, _, rest = module.partition(".")
    if first in _COMPONENTS and rest:
        return Named(_COMPONENTS[first], rest, prefix)
    return Named(DENOISER, module, prefix)


def _split_factor(name: str) -> tuple[str | None, str]:
    """The factor, and the name of the module."""
    old = _OLD.fullmatch(name)
    if old:
        text = "self_attn" in old["module"]
        which = ("out_proj" if old["which"] == "out" else f"{old['which']}_proj") if text else f"to_{old['which']}"
        return old["factor"], f"{old['module']}.{'to_out.0' if which == 'to_out' else which}"
    for ending in sorted(_FACTORS, key=len, reverse=True):
        if name.endswith(f".{ending}"):
            return _FACTORS[ending], name.removesuffix(f".{ending}")
    return None, name


@dataclasses.dataclass(frozen=True)
class Strengths:
    """alpha by component and module, from a file's metadata.

    Attributes:
      settings: PEFT's settings, by component.
    """

    settings: Mapping[str, Mapping[str, Any]]

    def scale(self, component: str, module: str, rank: int) -> float | None:
        """alpha / rank, or alpha / sqrt(rank); None if the metadata does not say."""
        own = self.settings.get(component)
        if own is None or not isinstance(own.get("lora_alpha"), int | float):
            return None
        patterns = own.get("alpha_pattern") or {}
        matching = [p for p in patterns if re.fullmatch(rf"(?:.*\.)?{p}", module)]
        alpha = float(patterns[matching[0]] if matching else own["lora_alpha"])
        return alpha / (rank**0.5 if own.get("use_rslora") else rank)


def strengths(metadata: Mapping[str, str], where: str) -> Strengths:
    """Read the metadata of a file.

    Raises:
      UserError: it is damaged.
    """
    text = metadata.get("lora_adapter_metadata", "{}")
    found = parse_json(text, f"{where}: its lora_adapter_metadata")
    settings: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        first, _, field = name.partition(".")
        component = _COMPONENTS.get(first)
        if component and field:
            settings.setdefault(component, {})[field] = value
        else:
            settings.setdefault(DENOISER, {})[name] = value
    for own in settings.values():
        _check_alphas(own, where)
    return Strengths(settings)


def _check_alphas(own: Mapping[str, Any], where: str) -> None:
    """Refuse strengths that are no finite numbers, and patterns that are none."""
    patterns = own.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise UserError(f"{where}: alpha_pattern of its lora_adapter_metadata is {type(patterns).__name__}, no table")
    for name, value in {"lora_alpha": own.get("lora_alpha"), **patterns}.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
        if not is_number and not (name == "lora_alpha" and value is None):
            raise UserError(f"{where}: {name} of its lora_adapter_metadata is {str(value)[:40]}, no finite number")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{where}: {pattern!r} of its lora_adapter_metadata is no pattern: {error}") from error


def spellings(modules: Iterable[str], *, strokes: bool) -> dict[str, str]:
    """Modules of a network by the names that files use for them.

    Text encoders are written with and without the prefix "text_model.".
    """
    found = {}
    for module in modules:
        short = module.removeprefix("text_model.")
        for spelled in (module, short, f"text_model.{short}"):
            found[spelled.replace(".", "_") if strokes else spelled] = module
    return found
