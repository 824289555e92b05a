"""Models as JSON, and back: the parts by name, with the fields that differ from their defaults.

    describe(Label(num_classes=10)) == {"part": "Label", "num_classes": 10}

Parts are frozen dataclasses or Flax modules that derive from one of `BASES`, in this package or in a user's own
modules. A description is data: reading one runs no code except the parts' own checks, and a name that no loaded part
has is an error.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion_jax.adapters import Adapter, Steering
from diffusion_jax.conditioning import Conditioner, Conditioning
from diffusion_jax.data.prompts import PromptTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import Codec, DeepLevel
from diffusion_jax.objectives import Asking
from diffusion_jax.registry import unknown_name
from diffusion_jax.schedulers import NoiseSchedule, Parameterization, PredictionKind
from diffusion_jax.schedulers.parameterization import InputScale, TimeInput
from diffusion_jax.schedulers.tokens import OfTokens, TokenSchedule
from diffusion_jax.specs import ConditionSpec, DataSpec
from diffusion_jax.systems.model import Model
from diffusion_jax.systems.recipe import Recipe

BASES: list[type] = [
    *(nn.Module, Codec, Conditioner, PromptTokenizer, Conditioning, DataSpec, ConditionSpec, DeepLevel),
    *(Model, Recipe, Asking, Adapter, Steering),
    *(NoiseSchedule, PredictionKind, TimeInput, InputScale, Parameterization, TokenSchedule, OfTokens),
]
_PART, _ITEMS, _DTYPE, _ARRAY, _NUMBER = "part", "items", "dtype", "array", "number"
_OF_FLAX = ("name", "parent")


def parts() -> dict[str, type]:
    """All parts by name."""
    found: dict[str, type] = {}
    for base in BASES:
        for part in _family(base):
            if not part.__module__.startswith("flax."):
                found[part.__name__] = part
    return found


def _family(base: type) -> Iterator[type]:
    yield base
    for part in base.__subclasses__():
        yield from _family(part)


def describe(value: Any) -> Any:
    """A part, or a value of one of its fields, as JSON types.

    Raises:
      UserError: it is neither a part nor a plain value; for example, a function.
    """
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_NUMBER: str(value)}
    if isinstance(value, tuple | list):
        return [describe(one) for one in value]
    if isinstance(value, Mapping):
        return {_ITEMS: [[describe(name), describe(one)] for name, one in value.items()]}
    if isinstance(value, np.ndarray | np.generic):
        return {_ARRAY: value.tolist(), _DTYPE: str(value.dtype)}
    if dataclasses.is_dataclass(value) and parts().get(type(value).__name__) is type(value):
        fields = {field.name: getattr(value, field.name) for field in _fields(type(value))}
        own = {name: describe(one) for name, one in fields.items() if not _is_default(type(value), name, one)}
        return {_PART: type(value).__name__, **own}
    try:
        return {_DTYPE: jnp.dtype(value).name}
    except TypeError:
        raise UserError(f"{type(value).__name__} is not a part that a file can describe") from None


def rebuild(description: Any) -> Any:
    """Rebuild the value that `describe` described.

    Raises:
      UserError: an unknown part or field, or values that the part refuses.
    """
    if isinstance(description, list):
        return tuple(rebuild(one) for one in description)
    if not isinstance(description, Mapping):
        return description
    if _PART in description:
        return _rebuild_part(description)
    try:
        if _ARRAY in description:
            return np.array(description[_ARRAY], description[_DTYPE])
        if _NUMBER in description:
            return float(description[_NUMBER])
        if _DTYPE in description:
            return jnp.dtype(description[_DTYPE]).type
        return {rebuild(name): rebuild(one) for name, one in description[_ITEMS]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a description of a model is damaged: {error}") from error


def _rebuild_part(description: Mapping[str, Any]) -> Any:
    name, known = description[_PART], parts()
    if not isinstance(name, str) or name not in known:
        raise UserError(unknown_name("part of a model", str(name), list(known)))
    names = [field.name for field in _fields(known[name])]
    given = {field: rebuild(value) for field, value in description.items() if field != _PART}
    for field in given:
        if field not in names:
            raise UserError(unknown_name(f"field of {name}", field, names))
    try:
        return known[name](**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"a description of {name} is damaged: {str(error).splitlines()[0]}") from error


def _fields(part: type) -> list[dataclasses.Field]:
    flax = _OF_FLAX if issubclass(part, nn.Module) else ()
    fields = (field for field in dataclasses.fields(part) if field.init and field.name not in flax)
    return [field for field in fields if field.metadata.get("described", True)]


def _is_default(part: type, name: str, value: Any) -> bool:
    field = next(field for field in _fields(part) if field.name == name)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return False
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return type(default) is type(value) and not isinstance(value, np.ndarray) and default == value
