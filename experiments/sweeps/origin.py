"""The origin of an ablation's numbers, and what has changed since: stored in its results.json, shown on its page.

A result makes this promise. The same commit, on the same kind of machine with the same versions and as many cores for
each training, gives the same bits. On another machine, or after a code change that alters the order of a sum, rounding
differs, and training amplifies that; a number then counts as repeated if it lies within the 95% interval of its row.
"""

import ast
import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json, read_text, replace_file
from experiments.ground import workdir
from experiments.ground.cli import flatten
from experiments.ground.renamed import new_field_names
from experiments.sweeps.ablation import Ablation

ROOT = Path(__file__).parents[2]
CODE = (
    *("diffusion_jax", "experiments/ground/fields.py"),
    *("configs/digits_unet.py", "configs/objectives.py", "configs/fashion_mnist_unet.py"),
)
"""The code that computes the numbers of the ablations here, besides the runner."""
PROMISE = [
    "The same commit gives the same bits on the same kind of machine with the same versions and as many cores for each",
    "training. Elsewhere rounding differs, and training carries that on: a number is repeated when it lies within the",
    "95% interval of its row.",
]
_NO_RESULT = (*workdir.PLACE_FIELDS, "log.", "checkpoint.", "seed")  # fields that no number of a cell depends on
_TAIL = "Numbers by seed: "


def config_fields(ablation: Ablation) -> dict[str, Any]:
    """The config that every cell starts from, by field, in the form in which JSON returns it."""
    fields = flatten(ConfigDict(workdir.to_json(ablation.cells[0].base)))
    return _numbers_depend_on(fields)


def _numbers_depend_on(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in fields.items() if not name.startswith(_NO_RESULT)}
    return json.loads(json.dumps(kept, sort_keys=True, default=str))


def cell_fields(ablation: Ablation) -> dict[str, Any]:
    """The changes of each cell, by its label."""
    return json.loads(json.dumps({cell.label: dict(cell.overrides) for cell in ablation.cells}, default=str))


def digest(fields: Mapping[str, Any], cells: Mapping[str, Any]) -> str:
    """A hash of everything that an ablation's numbers depend on, except the code."""
    return hashlib.sha256(json.dumps([fields, cells], sort_keys=True).encode()).hexdigest()


def made(ablation: Ablation, directory: Path) -> dict[str, Any]:
    """The origin of the numbers: commit, versions and machine of one training, if all have the same; the config."""
    fields, cells = config_fields(ablation), cell_fields(ablation)
    found: dict[str, Any] = {}
    for training in ablation.trainings():
        file = directory / "trainings" / training / "environment.json"
        if file.is_file():
            there = read_json(file)
            found = {name: there.get(name) for name in ("commit", "python", "jax", "jaxlib", "devices")}
            break
    return {**found, "config_digest": digest(fields, cells), "config": fields, "cells": cells}


def config_changes(made: Mapping[str, Any], ablation: Ablation) -> list[str]:
    """The fields in which an ablation's config differs from the config of its numbers."""
    fields, cells = config_fields(ablation), cell_fields(ablation)
    defaults = _numbers_depend_on(workdir.defaults())
    before = {
        **defaults,
        **new_field_names(made.get("config", {})),
        **{f"cell {name}": new_field_names(value) for name, value in made.get("cells", {}).items()},
    }
    now = {**defaults, **fields, **{f"cell {name}": value for name, value in cells.items()}}
    return [
        f"{name}: {_shown(before, name)} -> {_shown(now, name)}"
        for name in sorted({*before, *now})
        if (name in before, before.get(name)) != (name in now, now.get(name))
    ]


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "absent"


def config_state(made: Mapping[str, Any], ablation: Ablation) -> str:
    """One sentence about the config."""
    changes = config_changes(made, ablation)
    if not changes:
        return "The config is the one that the numbers were made with."
    return f"The config has changed since then: `{'; '.join(changes)}`."


def code_state(commit: str | None) -> str:
    """One sentence about the code, from git; "" if git does not know that commit. Prose does not count."""
    commit = str(commit).removesuffix("-dirty")
    listed = _git("diff", "--name-only", commit, "--", *CODE)
    head = _git("rev-parse", "--short=12", "HEAD")
    if listed is None or head is None:
        return ""
    changed = [name for name in listed.splitlines() if name.endswith(".py") and _differs(commit, name)]
    if not changed:
        return f"Up to commit {head} the code is the same."
    rooms = Counter(map(_room, changed))
    named = ", ".join(f"{room} ({count} file{'s' * (count > 1)})" for room, count in sorted(rooms.items()))
    return f"Up to commit {head} the code has changed in {named}. The numbers were not made again."


def _differs(commit: str, name: str) -> bool:
    """Whether a file does something else than at that commit, in which it may be absent."""
    before, path = _git("show", f"{commit}:{name}"), ROOT / name
    if before is None or not path.is_file():
        return True
    return _without_prose(before) != _without_prose(path.read_text())


def _without_prose(text: str) -> str:
    """The code without docstrings, comments and the texts of errors."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for part in ast.walk(node) if is_docstring or isinstance(node, ast.Raise) else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                part.value = ""
    return ast.dump(tree)


def _room(name: str) -> str:
    parts = name.split("/")
    return parts[1] if len(parts) > 2 else parts[-1]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def tail(name: str, made: Mapping[str, Any], ablation: Ablation) -> list[str]:
    """The last lines of a page: the place of the numbers, their origin, their promise, and what has changed."""
    where = f"{_TAIL}[{name}/results.json]({name}/results.json)."
    if made.get("commit"):
        where += f" Made at commit {made['commit']} with jax {made['jax']} on {made['devices']}."
    state = [sentence for sentence in (config_state(made, ablation), code_state(made.get("commit"))) if sentence]
    return [where, *PROMISE, "", *state, ""]


def refresh(path: Path) -> None:
    """Update the last lines of a page.

    Raises:
      UserError: the page, or its numbers or config, are missing or damaged.
    """
    results = read_json(path.with_suffix("") / "results.json")
    lines = read_text(path).split("\n")
    begin = next((i for i, line in enumerate(lines) if line.startswith(_TAIL)), None)
    if begin is None:
        raise UserError(f"{path} has no line that begins with {_TAIL!r}: write the page again")
    ablation = Ablation.read(ROOT / results["config"])
    content = [*lines[:begin], *tail(path.stem, results.get("made", {}), ablation)]
    replace_file(path, "\n".join(content).encode())


def shown_path(path: Path) -> str:
    """A path relative to the repository."""
    return re.sub(r"^.*(?=\bconfigs/)", "", path.as_posix())
