"""A run's directory: the config it belongs to, and where everything lies."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from experiments.cli import flatten
from experiments.writers import replace_file

# Where the work is done does not change what comes out, so a run may go on under another layout.
LAYOUT_FIELDS = "parallel."


def to_json(config: ConfigDict) -> dict[str, Any]:
    """A config as plain JSON types."""
    return json.loads(config.to_json_best_effort())


def claim(workdir: Path | str, config: ConfigDict, *, primary: bool = True) -> None:
    """Write config.json, or check that the one there is the same.

    Raises:
      UserError: the workdir belongs to another config; the message lists the fields that differ.
    """
    path = Path(workdir) / "config.json"
    if path.exists():
        differences = _differences(read_config(workdir), ConfigDict(to_json(config)))
        if differences:
            raise UserError(
                f"{workdir} belongs to a run with another config; differing fields (there -> here): "
                f"{'; '.join(differences)}. Give another --workdir, or the config of that run"
            )
    elif primary:
        replace_file(path, (json.dumps(to_json(config), indent=2) + "\n").encode())


def _differences(there: ConfigDict, here: ConfigDict) -> list[str]:
    before, now = flatten(there), flatten(here)
    names = sorted(set(before) | set(now))
    return [
        f"{name}: {before.get(name, 'absent')!r} -> {now.get(name, 'absent')!r}"
        for name in names
        if before.get(name, "absent") != now.get(name, "absent") and not name.startswith(LAYOUT_FIELDS)
    ]


def read_config(workdir: Path | str) -> ConfigDict:
    """The config of the run in `workdir`.

    Raises:
      UserError: nothing was trained there, or the file is damaged.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"no config.json in {workdir}: train first, with --workdir={workdir}")
    try:
        return ConfigDict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write_environment(workdir: Path | str) -> None:
    """environment.json: versions, devices and the commit, for the report."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "diffusion_jax")
    versions = {name: metadata.version(name) for name in packages if _installed(name)}
    environment: Mapping[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        **versions,
        "commit": _commit(),
        "command": " ".join(["python -m experiments.train", *sys.argv[1:]]),
    }
    replace_file(Path(workdir) / "environment.json", (json.dumps(environment, indent=2) + "\n").encode())


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """The commit of the code, with a mark when files differ from it; None outside a repository."""
    root = Path(__file__).parent.parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
