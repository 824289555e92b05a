"""One line on every field of a config: its meaning, type, domain and default, without importing any part.

The runner's fields are those of `fields.FIELDS`. The fields of parts are described in docs/config.json, which is made
from the parts (`experiments.params --fields`). The fields of other parts, such as a user's own, are only named.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.domains import domain_text, type_text
from experiments.ground.config_files import flatten
from experiments.ground.fields import FIELDS, PARTS, Field

_OF_DATA_SET = "data.options"  # the group whose part is named in another field
FILE = Path(__file__).parents[2] / "docs" / "config.json"


def facts(field: Field) -> dict[str, str]:
    """A field's type, domain, default and meaning, as texts."""
    return {
        "type": type_text(field.kind),
        "domain": domain_text(field.kind, field.bounds),
        "default": repr(field.default),
        "meaning": field.meaning,
    }


def described(config: ConfigDict) -> Iterator[tuple[str, Any, str]]:
    """(name, value, description) for every field of a config, in order; the description may be empty."""
    for name, value in flatten(config).items():
        yield name, value, _of_runner(name) if name in FIELDS else _of_part(config, name)


def _of_runner(name: str) -> str:
    return _text(facts(FIELDS[name]), known()["names"].get(name, ()))


def _of_part(config: ConfigDict, name: str) -> str:
    group, _, field = name.rpartition(".")
    chosen = name if name in PARTS else group if field == "name" else ""
    if chosen in PARTS:
        return _listed(PARTS[chosen][1], () if chosen == _OF_DATA_SET else known()["parts"].get(chosen, ()))
    parts = known()["parts"].get(group, {})
    part = config.data.dataset if group == _OF_DATA_SET else _value(config, f"{group}.name")
    found = next(iter(parts.values())) if len(parts) == 1 else parts.get(str(part).partition(":")[0], {})
    return _text(found[field]) if field in found else ""


def _text(found: Mapping[str, str], names: Sequence[str] = ()) -> str:
    kind = f"{found['type']} in {found['domain']}" if found["domain"] else found["type"]
    stated = "required" if found["default"] == "required" else f"by default {found['default']}"
    return f"{_listed(found['meaning'], names)} ({kind}); {stated}"


def _listed(meaning: str, names: Sequence[str]) -> str:
    return f"{meaning}, one of {', '.join(names)}" if names else meaning


def _value(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part] if isinstance(config, ConfigDict) and part in config else ""
    return config


@functools.cache
def known() -> Mapping[str, Any]:
    """The content of docs/config.json: the fields of parts, and the names that some fields of the runner choose
    from."""
    return json.loads(FILE.read_text()) if FILE.is_file() else {"parts": {}, "names": {}}
