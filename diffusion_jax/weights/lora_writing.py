"""Adapters written as files of LoRA that other programs read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.weights.lora import SCALE, Place, Target
from diffusion_jax.weights.lora_names import DENOISER
from diffusion_jax.weights.reading import write_state


def write_lora(
    path: Path | str, own: Mapping[str, Mapping[str, Any]], targets: Mapping[str, Target], *, kohya: bool = False
) -> None:
    """Write low-rank terms, and magnitudes, under PEFT's names or kohya's.

    s is folded into B, so that alpha is the rank.

    Raises:
      UserError: a form that these files do not have.
    """
    state: dict[str, np.ndarray] = {}
    fresh = all(not np.any(np.asarray(leaves["up"])) for leaves in own.values() if "up" in leaves)
    for component, target in targets.items():
        places = next(target.places())
        for name, place in places.items():
            leaves = own.get("/".join((target.group, *place.path)))
            if leaves is not None and name.endswith(".weight"):
                module = name.removesuffix(".weight")
                state |= _tensors(component, module, place, leaves, kohya=kohya, fresh=fresh)
    if not state:
        raise UserError(f"nothing of the adapter belongs to {', '.join(targets)}: {', '.join(list(own)[:4])}")
    write_state(path, state, {"format": "pt"})


_KOHYA_COMPONENTS = {DENOISER: "unet", "text_encoder": "te1", "text_encoder_2": "te2", "text_encoder_3": "te3"}


def _tensors(
    component: str, module: str, place: Place, leaves: Mapping[str, Any], *, kohya: bool, fresh: bool
) -> dict[str, np.ndarray]:
    """The tensors of one module; none of a module that is as it was, unless all are."""
    if "down" not in leaves:
        raise UserError(f"{module}: only low-rank terms can be written so, not {', '.join(sorted(leaves))}")
    layer = (lambda leaf: np.asarray(leaf)) if place.layer is None else (lambda leaf: np.asarray(leaf)[place.layer])
    down, up, scale = layer(leaves["down"]), layer(leaves["up"]), layer(leaves[SCALE])
    down, up = _whole(down, up * scale[:, None, None])
    back = place.entry.write(up.reshape(*(1,) * (len(place.shape) - 2), *up.shape))[place.position]
    up_there = back.reshape(back.shape[0], -1)
    used = np.flatnonzero(np.abs(up_there).max(axis=0) > 0)
    rank = max(1, len(used))
    if not len(used):
        if not fresh:
            return {}
        used = np.array([0])
    rows = down.reshape(*place.shape[:-1], -1)[..., used]
    down_there = rows.transpose(-1, -2, *range(rows.ndim - 2)) if rows.ndim > 2 else rows.T
    shape_up = (up_there.shape[0], rank, *(1,) * (back.ndim - 2))
    tensors = {
        "down": down_there.reshape(*down_there.shape, *(1,) * (back.ndim - down_there.ndim)),
        "up": up_there[:, used].reshape(shape_up),
    }
    if "magnitude" in leaves:
        magnitude = layer(leaves["magnitude"])[None]
        tensors["magnitude"] = place.entry.write(magnitude.reshape(*(1,) * (len(place.shape) - 2), *magnitude.shape))[
            place.position
        ]
    return {
        name: np.ascontiguousarray(value, np.float32)
        for name, value in _spelled(component, module, tensors, rank, kohya=kohya).items()
    }


def _whole(down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of all parts as [inputs, rank] and [rank, outputs]."""
    parts, rank, outputs = up.shape
    blocks = np.zeros((parts * rank, parts * outputs), up.dtype)
    for i in range(parts):
        blocks[i * rank : (i + 1) * rank, i * outputs : (i + 1) * outputs] = up[i]
    return np.concatenate(list(down), axis=-1), blocks


def _spelled(
    component: str, module: str, tensors: Mapping[str, np.ndarray], rank: int, *, kohya: bool
) -> dict[str, Any]:
    if kohya:
        start = f"lora_{_KOHYA_COMPONENTS[component]}_{module.replace('.', '_')}"
        names = {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale"}
        found = {f"{start}.{names[factor]}": value for factor, value in tensors.items()}
        if "magnitude" in tensors:
            found[f"{start}.dora_scale"] = tensors["magnitude"].reshape(-1, 1)
        return {**found, f"{start}.alpha": np.float32(rank)}
    first = "unet" if component == DENOISER else component
    names = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    found = {f"{first}.{module}.{names[factor]}": value for factor, value in tensors.items()}
    if "magnitude" in tensors:
        found[f"{first}.{module}.lora_magnitude_vector"] = tensors["magnitude"].reshape(-1)
    return found
