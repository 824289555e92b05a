"""The fields of a config.json: defaults filled in, and what is unknown or of another type refused by name."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import UserError


def read_fields(config: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of the class `name`: those of `defaults`, with what the config says of them.

    A value has the type of its default; one that may be absent has the default None. Names that begin with "_" are
    notes of the library that wrote the file.

    Raises:
      UserError: a field that the class has not, or a value of another type.
    """
    unknown = [key for key in config if key not in defaults and not key.startswith("_")]
    if unknown:
        raise UserError(f"config.json of {name} has a field that is unknown here: {unknown[0]}={config[unknown[0]]!r}")
    fields = {**defaults, **{key: value for key, value in config.items() if key in defaults}}
    for key, value in fields.items():
        if not _fits(value, defaults[key]):
            raise UserError(f"config.json of {name} has {key}={value!r}; it should be like {defaults[key]!r}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _fits(value: Any, default: Any) -> bool:
    if default is None or value is None:
        return default is None
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(isinstance(item, int) and item >= 0 for item in value)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, int):
        return isinstance(value, int) and value > 0
    return isinstance(value, type(default))
