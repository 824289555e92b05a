"""Reads the fields of scheduler_config.json, for both training and sampling.

A field that no scheduler class has is refused, since it would have an effect that is missing here. A field of another
class is ignored, as in diffusers. A missing field has diffusers' default.
"""

import math
from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.weights.diffusers_kinds import CHAIN, CLIPPED, FLOW, FLOWS, KINDS

_MOST_STEPS = 100_000
_CONSISTENCY = {
    **CHAIN,
    **CLIPPED,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
    "timestep_scaling": 10.0,
}
FIELDS: Mapping[str, Mapping[str, Any]] = {
    **{name: kind.fields for name, kind in KINDS.items()},
    "LCMScheduler": _CONSISTENCY,
    "TCDScheduler": _CONSISTENCY,
    **dict.fromkeys(FLOWS, FLOW),
}
"""Fields of each class with their defaults."""
_ANYWHERE = frozenset(name for fields in FIELDS.values() for name in fields)
_COUNTS = {
    "num_train_timesteps": (1, _MOST_STEPS),
    "steps_offset": (0, _MOST_STEPS),
    "solver_order": (1, 9),
    "original_inference_steps": (1, _MOST_STEPS),
}
_MAY_BE_INFINITE = "lambda_min_clipped"


def read_fields(config: Mapping[str, Any], kind: str, *, origin: object = "scheduler_config.json") -> dict[str, Any]:
    """All fields of a class of `FIELDS`, by name, defaults filled in.

    Args:
      config: content of scheduler_config.json.
      kind: the class, by diffusers' name.
      origin: its name in errors.

    Raises:
      UserError: a field belongs to no class, a value has another type than the default, or a count is out of bounds.
    """
    for name, value in config.items():
        if not name.startswith("_") and name not in _ANYWHERE and value not in (None, False):
            raise UserError(f"{origin} has {name}={value!r}, which is not known here")
    known = FIELDS[kind]
    fields = {**known, **{name: value for name, value in config.items() if name in known}}
    for name, value in fields.items():
        if isinstance(known[name], bool) and value is None:  # older files write null for false
            fields[name] = False
        elif not _fits(name, value, known[name]):
            raise UserError(f"{origin} has {name}={value!r}; it should be of the type of {known[name]!r}")
    for name, (least, most) in _COUNTS.items():
        if name in fields and not least <= fields[name] <= most:
            raise UserError(f"{origin} has {name}={fields[name]}; it should be from {least} to {most}")
    return fields


def _fits(name: str, value: Any, default: Any) -> bool:
    """Whether a value is of the type of the default."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if name in _COUNTS:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, int | float) and name != _MAY_BE_INFINITE:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return not isinstance(default, str) or isinstance(value, str)
