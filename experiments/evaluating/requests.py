"""Inputs of tasks: pictures, masks, classes and noise from files and flags, as arrays."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from diffusion_jax.data.pictures import read_image
from diffusion_jax.data.transforms import to_unit_range
from diffusion_jax.errors import UserError
from diffusion_jax.files import parse_json, read_npz, regular_file, replace_file
from experiments.building.wiring import Experiment
from experiments.evaluating.judging import HELD
from experiments.ground.options import MOST_STEPS

LATENTS = "latents"  # name in an .npz file of the noise, which is stored with its settings
_HOW = "made"


def require_pictures(experiment: Experiment, task: str) -> None:
    """Raise UserError if a run does not draw pictures, or diffuses them as tokens."""
    kind = experiment.shown.spec.kind
    if kind != "pixels":
        raise UserError(f"--task={task} needs pictures, but the data of this run is {HELD[kind]}")
    if experiment.process.discrete:
        raise UserError(f"--task={task} needs continuous pictures, but this run diffuses them as tokens")


def read_picture(experiment: Experiment, path: str) -> UInt8[np.ndarray, "1 h w c"]:
    """Read a picture of the data's size.

    Raises:
      UserError: there is no such file, it is no picture, or has another size.
    """
    shape = experiment.shown.spec.shape
    found = read_image(regular(path, "image"), channels=shape[-1])
    if found.shape != tuple(shape):
        raise UserError(
            f"--image={path} is {found.shape[1]}x{found.shape[0]} pixels, but the run's data is {shape[1]}x{shape[0]}: "
            "resize it first"
        )
    return found[None]


def read_mask(experiment: Experiment, path: str) -> Float[np.ndarray, "1 h w 1"]:
    """Read a mask of the data's size: 1 where the picture is white, which is drawn, and 0 where it is black.

    Raises:
      UserError: there is no such file, it is no picture, has another size or grey pixels, or covers nothing.
    """
    height, width, _ = experiment.shown.spec.shape
    found = read_image(regular(path, "mask"), channels=1)
    if found.shape[:2] != (height, width):
        raise UserError(
            f"--mask={path} is {found.shape[1]}x{found.shape[0]} pixels, but the run's data is {width}x{height}: they "
            "must have the same size"
        )
    if set(np.unique(found)) - {0, 255}:
        raise UserError(f"--mask={path} has grey pixels: a mask is white in the part to draw and black elsewhere")
    if not found.any():
        raise UserError(f"--mask={path} is all black, so nothing would be drawn: make the part to draw white")
    return (found > 0).astype(np.float32)[None]


def in_unit_range(picture: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """A picture in the network's range [-1, 1]."""
    return to_unit_range(picture)


def regular(path: str, flag: str) -> str:
    """The path of an existing file; otherwise raises UserError, which names the flag."""
    try:
        regular_file(Path(path))
    except UserError as error:
        raise UserError(f"--{flag}={path}: {error}") from error
    return path


def save_latents(path: Path, latents: Float[np.ndarray, "n ..."], how: Mapping[str, Any]) -> None:
    """Write the noise that gives a picture, with its settings, to an .npz file, completely or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{LATENTS: latents, _HOW: np.frombuffer(json.dumps(how).encode(), np.uint8)})
    replace_file(path, buffer.getvalue())


def _settings(stored: np.ndarray, path: str) -> dict[str, Any]:
    """The settings with which noise was found.

    Raises:
      UserError: they are none, or one of them is missing or of another type.
    """
    how = parse_json(stored.tobytes().decode(errors="replace"), path)
    steps = how.get("steps")
    good = {
        "sampler": isinstance(how.get("sampler"), str),
        "steps": isinstance(steps, int) and not isinstance(steps, bool) and 1 <= steps <= MOST_STEPS,
        "label": "label" in how and isinstance(how["label"], str | None),
    }
    for name, is_good in good.items():
        if not is_good:
            said = f"{name} as {str(how[name])[:40]!r}" if name in how else f"no {name}"
            raise UserError(f"--latents={path} is damaged: it says {said}; make it again with --task=invert")
    return how


def read_latents(experiment: Experiment, path: str) -> tuple[Float[np.ndarray, "n ..."], dict[str, Any]]:
    """Read a file that `save_latents` wrote.

    Raises:
      UserError: there is no such file, or it holds something else, or noise of another size.
    """
    wanted, stored = tuple(experiment.model.diffused.shape), read_npz(regular(path, LATENTS))
    if set(stored) != {LATENTS, _HOW} or stored[_HOW].dtype != np.uint8:
        raise UserError(
            f"--latents={path} holds no noise of --task=invert, but {', '.join(sorted(stored)) or 'nothing'}"
        )
    latents, how = stored[LATENTS], _settings(stored[_HOW], path)
    if latents.shape[1:] != wanted or latents.dtype != np.float32 or not len(latents):
        raise UserError(
            f"--latents={path} has the shape {list(latents.shape[1:])}, but this run diffuses {list(wanted)}"
        )
    if not np.isfinite(latents).all():
        raise UserError(f"--latents={path} has numbers that are not finite")
    return latents, how
