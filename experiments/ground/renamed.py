"""Renamed fields: the only place where configs, flags and results of earlier versions are translated.

- schedule, prediction and time_input are now fields of process, for the process "gaussian".
- num_tokens, token_schedule, noise, kind and num_steps of a token objective are now fields of process, for the process
  "tokens" or, for the objective d3pm, "token_chain".
- sampling.guidance_scale and guidance_interval are scale and interval of sampling.guidance, the rule classifier_free.
- sampling.guide and guide_ema are fields of sampling.guidance, if a guide was named: the rule autoguidance.

Hashes of configs use the earlier names of the process (`names_in_hashes`), so that a run, its checkpoints and the
trainings of an ablation keep their hashes.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

_GUIDANCE = {
    "guidance_scale": "scale",
    "guidance_interval": "interval",
    "guide": "guide",
    "guide_ema": "guide_ema",
}
_OF_GAUSSIAN = ("schedule", "prediction", "time_input")
_OF_TOKENS = ("num_tokens", "token_schedule", "noise", "kind", "num_steps")
_PROCESSES = {"mdlm": "tokens", "sedd": "tokens", "discrete_flow": "tokens", "d3pm": "token_chain"}
"""The process that a token objective used to contain."""


def with_new_names(config: ConfigDict) -> ConfigDict:
    """A config with present names, changed in place; a present-day config stays as it is."""
    with config.unlocked(), config.ignore_type():
        if "process" not in config:
            _move_process(config)
        _move_guidance(config.get("sampling"))
    return config


def new_field_name(name: str, objective: str = "") -> str:
    """The present dotted name of a field, in a config with the given objective."""
    group, _, field = name.partition(".")
    if group in _OF_GAUSSIAN:
        return f"process.{name}"
    if group == "objective" and objective in _PROCESSES and field.partition(".")[0] in _OF_TOKENS:
        return f"process.{field}"
    if group == "sampling" and field in _GUIDANCE:
        return f"sampling.guidance.{_GUIDANCE[field]}"
    return name


def new_field_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by dotted name, of a config or of changes to one, with their present names.

    A guide that was not named is left out, and so is a group that was left out for tokens.
    """
    objective = fields.get("objective")
    if isinstance(objective, Mapping) and objective.get("name") in _PROCESSES and "process" not in fields:
        own, process = _divided(objective)
        fields = {**fields, "objective": own, "process": process}
    name = fields.get("objective.name", "")
    kept = {
        field: value
        for field, value in fields.items()
        if (value or not field.startswith("sampling.guide")) and not (field in _OF_GAUSSIAN and value is None)
    }
    found = {new_field_name(field, name): value for field, value in kept.items()}
    is_whole = "objective.name" in fields and "process.name" not in fields and set(found) != set(kept)
    if is_whole and any(field.startswith("process.") for field in found):
        found["process.name"] = _PROCESSES.get(name, "gaussian")
    return found


def new_flags(argv: Sequence[str], objective: str) -> list[str]:
    """A command line with present names, for a config with this objective; prints a line on stderr for each change."""
    found = []
    for word in argv:
        match = re.fullmatch(r"(--?config\.)([\w.]+)(.*)", word, re.DOTALL)
        name = match and new_field_name(match[2], objective)
        if match and name != match[2]:
            print(f"--config.{match[2]} is --config.{name} now", file=sys.stderr)
            word = f"{match[1]}{name}{match[3]}"
        found.append(word)
    return found


def names_in_hashes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config by dotted name, with the names under which they enter its hash."""
    process, objective = fields.get("process.name"), fields.get("objective.name")
    if process == "gaussian":
        inside, group = _OF_GAUSSIAN, ""
    elif objective in _PROCESSES and process == _PROCESSES[objective]:
        inside, group = _OF_TOKENS, "objective."
    else:
        return dict(fields)
    found = {}
    for name, value in fields.items():
        field = name.removeprefix("process.")
        if name == "process.name" or (name, value, objective) == ("process.told", "sigma", "sedd"):
            continue
        found[f"{group}{field}" if name != field and field.partition(".")[0] in inside else name] = value
    return found


def _move_process(config: ConfigDict) -> None:
    stated = [name for name in _OF_GAUSSIAN if name in config]
    objective = config.get("objective")
    name = objective if isinstance(objective, str) else isinstance(objective, ConfigDict) and objective.get("name")
    if stated:
        process = {"name": "gaussian", **{name: config[name] for name in stated}}
        for group in stated:
            del config[group]
    elif isinstance(name, str) and name in _PROCESSES:
        own, process = _divided({"name": name} if isinstance(objective, str) else objective)
        config.objective = ConfigDict(own)
    else:
        return
    config.process = ConfigDict(process)


def _divided(objective: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The remaining fields of a token objective, and the process that it used to contain."""
    own = {name: value for name, value in objective.items() if name not in _OF_TOKENS}
    process = {"name": _PROCESSES[objective["name"]]}
    process |= {"told": "sigma"} if objective["name"] == "sedd" else {}
    return own, process | {name: value for name, value in objective.items() if name in _OF_TOKENS}


def _move_guidance(sampling: Any) -> None:
    if not isinstance(sampling, ConfigDict) or not set(_GUIDANCE) & set(sampling):
        return
    old = {name: sampling[name] for name in _GUIDANCE if name in sampling}
    for name in old:
        del sampling[name]
    rule = "autoguidance" if old.get("guide") else "classifier_free"
    kept = {new: old[name] for name, new in _GUIDANCE.items() if name in old and _is_of(name, rule)}
    sampling.guidance = ConfigDict({"name": rule, "scale": 1.0, "interval": (), "rescale": 0.0, **kept})


def _is_of(name: str, rule: str) -> bool:
    return rule == "autoguidance" or not name.startswith("guide")
