"""A model as a folder: its description and its parameters.

<folder>/model.json          the parts (`description.py`), and the fingerprint of the parameters
         model.safetensors   the parameters, "<group>/<name>"; a run has checkpoints instead

The .json is written last: without it there is no model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json, replace_file
from diffusion_jax.systems.description import describe, rebuild
from diffusion_jax.systems.groups import Params, fingerprint
from diffusion_jax.systems.model import Model
from diffusion_jax.weights import read_state, write_state

ABOUT, WEIGHTS = "model.json", "model.safetensors"
_SEPARATOR = "//"  # separates the names of a tree; a group's own name may contain a single slash


def write_description(folder: Path | str, model: Model, **about: Any) -> None:
    """Write model.json, unless it already has this content."""
    path = Path(folder) / ABOUT
    content = (json.dumps({"model": describe(model), **about}, indent=2) + "\n").encode()
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)


def read_description(folder: Path | str) -> tuple[Model, Mapping[str, Any]]:
    """The model that model.json describes, and the whole content of the file.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = Path(folder) / ABOUT
    found = read_json(path)
    model = rebuild(found.get("model"))
    if not isinstance(model, Model):
        raise UserError(f"{path} describes no model")
    return model, found


def save_model(folder: Path | str, model: Model, params: Params) -> None:
    """Write a model and its parameters, of any types and on any devices, as a folder that `load_model` reads.

    Raises:
      UserError: a part cannot be described, or the folder cannot be written.
    """
    folder = expanded(folder)
    description = describe(model)
    names = {name: np.asarray(jax.device_get(leaf)) for name, leaf in _flat(params).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_state(folder / WEIGHTS, names)
        about = {"model": description, "fingerprint": fingerprint(params)}
        replace_file(folder / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write a model to {folder}: {error.strerror or error}") from error


def read_model(folder: Path | str) -> tuple[Model, Params]:
    """Read a folder that `save_model` wrote.

    Raises:
      UserError: a file is missing or damaged, or the two do not belong together.
    """
    folder = expanded(folder)
    model, about = read_description(folder)
    state = read_state(folder / WEIGHTS)
    params = flax.traverse_util.unflatten_dict(state, sep=_SEPARATOR)
    if fingerprint(params) != about.get("fingerprint"):
        raise UserError(f"{folder / WEIGHTS} is not what {ABOUT} beside it was written for")
    return model, params


def _flat(params: PyTree) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(params, sep=_SEPARATOR)
