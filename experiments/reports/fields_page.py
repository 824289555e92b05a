"""docs/config.md and docs/config.json: all fields of a config, from the runner's table and the registries.

python -m experiments.params --fields        # writes both
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax import parallel
from diffusion_jax.data.sources import datasets
from diffusion_jax.data.transforms import crops
from diffusion_jax.likelihood import METRICS
from diffusion_jax.registry import Registry
from experiments.building.parts import KINDS, about, fields_of
from experiments.ground.described import FILE, facts
from experiments.ground.fields import ABSENT, FIELDS, GROUPS, PARTS
from experiments.reports.tables import Table

PAGE = FILE.with_suffix(".md")
NAMED: Mapping[str, Registry] = {
    "data.dataset": datasets,
    "data.crop": crops,
    "parallel.strategy": parallel.LAYOUTS,
    "evaluation.metrics": METRICS,
}
"""Fields of the runner whose values are names in a registry."""
_HEAD = """# Every field of a config

A config is the result of `get_config()` of a file in `configs/`. It starts from `configs/base.py`, which has all fields
of the runner with the defaults below, and adds its own values. A config that does not start from it, and the
`config.json` of a run by an earlier version, get the same defaults when they are read. An unknown field is refused, and
the message names the nearest known one. Any field can be set on the command line, `--config.train.steps=300`.
With `--config=configs/digits_unet.py --help` a command shows the fields of that config with their values.

This page is generated from the code by `python -m experiments.params --fields`. In the column of domains, `[0, 1)`
means the numbers from 0, included, to 1, excluded; for a tuple it applies to each number.
"""
_FIELDS_OF_PARTS = """## Fields of parts

A group with a `name` selects a part, and its other fields are arguments of that part; `data.options` are arguments of
the data set that `data.dataset` names. Parts are registered by name, and your own can be, too
([extending.md](extending.md)).
"""


def parts() -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    """{group: {part: {field: facts}}} for everything that is registered."""
    found: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    for kind in KINDS:
        names = found.setdefault(kind.group, {})
        names |= {name: {field: facts(of) for field, of in fields_of(kind, name).items()} for name in kind.registry}
    return found


def as_json() -> str:
    """The content of docs/config.json."""
    names = {field: list(registry) for field, registry in NAMED.items()}
    return json.dumps({"names": names, "parts": parts()}, indent=1, sort_keys=True) + "\n"


def page() -> str:
    """The content of docs/config.md."""
    lines = [_HEAD, "## Fields of the runner", "", *_table("field", _runner_rows(""))]
    for group in (group for group in GROUPS if any(name.startswith(f"{group}.") for name in (*FIELDS, *PARTS))):
        lines += ["", f"### {group}", "", *_table("field", _runner_rows(group))]
    lines += ["", _FIELDS_OF_PARTS]
    for kind in KINDS:
        lines += [f"### {kind.group}: {kind.registry.kind}", ""]
        for name in kind.registry:
            fields = fields_of(kind, name)
            lines += [f"**{name}**: {about(kind.registry[name])}", ""]
            lines += [*_table("argument", ((field, facts(of)) for field, of in fields.items())), ""] if fields else []
    return "\n".join(lines).rstrip() + "\n"


def write(directory: Path = FILE.parent) -> list[Path]:
    """Write both files; returns their paths."""
    written = {directory / PAGE.name: page(), directory / FILE.name: as_json()}
    for path, text in written.items():
        path.write_text(text)
    return list(written)


def _runner_rows(group: str) -> Iterable[tuple[str, Mapping[str, str]]]:
    for name, field in FIELDS.items():
        if name.rpartition(".")[0] == group:
            names = f", one of {', '.join(NAMED[name])}" if name in NAMED else ""
            yield name, {**facts(field), "meaning": field.meaning + names}
    for name, (default, meaning) in PARTS.items():
        if name.rpartition(".")[0] == group:
            text = f"{meaning}; see below" + ("; stated where it is read" if default is ABSENT else "")
            yield name, {"type": "part", "domain": "", "default": repr(default), "meaning": text}


def _table(first: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    lines = []
    for name, found in rows:
        default = found["default"] if found["default"] in ("required", "absent") else _code(found["default"])
        lines.append((_code(name), _code(found["type"]), found["domain"], default, found["meaning"]))
    return Table.of((first, "type", "domain", "default", "meaning"), lines).markdown()


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
