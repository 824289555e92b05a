"""Fields that have another name now: the one place where the config of an older run is translated.

- sampling.guidance_scale and guidance_interval are scale and interval of sampling.guidance, the rule classifier_free.
- sampling.guide and guide_ema are those of sampling.guidance, where a guide was named: the rule autoguidance.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

_NEW = {
    "guidance_scale": "scale",
    "guidance_interval": "interval",
    "guide": "guide",
    "guide_ema": "guide_ema",
}


def with_new_names(config: ConfigDict) -> ConfigDict:
    """The config of a run as it is written today; one of today is returned as it is."""
    sampling = config.get("sampling")
    if not isinstance(sampling, ConfigDict) or not set(_NEW) & set(sampling):
        return config
    with config.unlocked():
        old = {name: sampling[name] for name in _NEW if name in sampling}
        for name in old:
            del sampling[name]
        rule = "autoguidance" if old.get("guide") else "classifier_free"
        kept = {new: old[name] for name, new in _NEW.items() if name in old and _is_of(name, rule)}
        sampling.guidance = ConfigDict({"name": rule, "scale": 1.0, "interval": (), "rescale": 0.0, **kept})
    return config


def new_field_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by dotted name, with the names of today; a guide that was not named is left out."""
    old = {f"sampling.{name}": f"sampling.guidance.{new}" for name, new in _NEW.items()}
    kept = {name: value for name, value in fields.items() if value or not name.startswith("sampling.guide")}
    return {old.get(name, name): value for name, value in kept.items()}


def _is_of(name: str, rule: str) -> bool:
    return rule == "autoguidance" or not name.startswith("guide")
