"""Writes adapters as LoRA files that other programs read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.weights.lora import SCALE, Place, Target
from diffusion_jax.weights.lora_names import DENOISER
from diffusion_jax.weights.names import Cut
from diffusion_jax.weights.reading import write_state

Factors = dict[str, np.ndarray]
_KOHYA_COMPONENTS = {DENOISER: "unet", "text_encoder": "te1", "text_encoder_2": "te2", "text_encoder_3": "te3"}


def write_lora(
    path: Path | str, own: Mapping[str, Mapping[str, Any]], targets: Mapping[str, Target], *, kohya: bool = False
) -> None:
    """Write low-rank terms, and magnitudes, under PEFT's names or kohya's.

    s is multiplied into B, so that alpha is the rank. Unchanged modules are left out, unless all are unchanged.

    Raises:
      UserError: these files cannot hold the adapter's form.
    """
    state: dict[str, np.ndarray] = {}
    fresh = all(not np.any(np.asarray(leaves["up"])) for leaves in own.values() if "up" in leaves)
    for component, target in targets.items():
        layout, found = next(target.layouts()), {}
        for name, place in layout.places.items():
            leaves = own.get("/".join((target.group, *place.path)))
            if leaves is not None and name.endswith((".weight", "]")):
                found[name] = _there(name, place, leaves)
        for cut in layout.cuts.values():
            parts = [found.pop(name, None) for name in cut.parts]
            if any(part is not None for part in parts):
                found[cut.name] = _joined(cut, parts)
        for name, factors in found.items():
            if fresh or factors["up"].size:
                state |= _spelled(component, name.removesuffix(".weight"), factors, kohya=kohya)
    if not state:
        raise UserError(f"no part of the adapter belongs to {', '.join(targets)}: {', '.join(list(own)[:4])}")
    write_state(path, state, {"format": "pt"})


def _there(name: str, place: Place, leaves: Mapping[str, Any]) -> Factors:
    """A [rank, inputs, ...] and B [outputs, rank, ...] of one module, without zero rows."""
    if "down" not in leaves:
        raise UserError(f"{name}: only low-rank terms can be written so, not {', '.join(sorted(leaves))}")
    layer = (lambda leaf: np.asarray(leaf)) if place.layer is None else (lambda leaf: np.asarray(leaf)[place.layer])
    down, up = _whole(layer(leaves["down"]), layer(leaves["up"]) * layer(leaves[SCALE])[:, None, None])
    wide = (1,) * (len(place.shape) - 2)
    back = place.entry.write(up.reshape(*wide, *up.shape))[place.position]
    columns = back.reshape(back.shape[0], -1)
    used = np.flatnonzero(np.abs(columns).max(axis=0) > 0)
    rows = down.reshape(*place.shape[:-1], -1)[..., used]
    rows = rows.transpose(-1, -2, *range(rows.ndim - 2))
    found = {
        "down": rows.reshape(*rows.shape, *(1,) * (back.ndim - rows.ndim)),
        "up": columns[:, used].reshape(len(columns), len(used), *(1,) * (back.ndim - 2)),
    }
    if "magnitude" in leaves:
        magnitude = layer(leaves["magnitude"]).reshape(*wide, 1, -1)
        found["magnitude"] = place.entry.write(magnitude)[place.position].reshape(-1)
    return found


def _whole(down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of all parts as [inputs, rank] and [rank, outputs]."""
    parts, rank, outputs = up.shape
    blocks = np.zeros((parts * rank, parts * outputs), up.dtype)
    for i in range(parts):
        blocks[i * rank : (i + 1) * rank, i * outputs : (i + 1) * outputs] = up[i]
    return np.concatenate(list(down), axis=-1), blocks


def _joined(cut: Cut, parts: Sequence[Factors | None]) -> Factors:
    """The factors of a tensor whose parts have their own factors; the ranks add up."""
    ranks = [0 if part is None else part["down"].shape[0] for part in parts]
    ends = np.cumsum([0, *ranks])
    whole = next(part for part in parts if part is not None)
    inputs = sum(cut.sizes) if cut.axis == 1 else whole["down"].shape[1]
    outputs = sum(cut.sizes) if cut.axis == 0 else whole["up"].shape[0]
    down, up = np.zeros((sum(ranks), inputs), np.float32), np.zeros((outputs, sum(ranks)), np.float32)
    starts = np.cumsum([0, *cut.sizes])
    for number, part in enumerate(parts):
        if part is None:
            continue
        own, rank = slice(starts[number], starts[number + 1]), slice(ends[number], ends[number + 1])
        down[rank, own if cut.axis == 1 else slice(None)] = part["down"]
        up[own if cut.axis == 0 else slice(None), rank] = part["up"]
    return {"down": down, "up": up}


def _spelled(component: str, module: str, factors: Factors, *, kohya: bool) -> dict[str, np.ndarray]:
    """The tensors by their names in the file."""
    rank = factors["up"].shape[1]
    if not rank:  # an untrained adapter
        factors = {
            name: np.zeros((max(x.shape[0], 1), max(x.shape[1], 1), *x.shape[2:])) for name, x in factors.items()
        }
    if kohya:
        start = f"lora_{_KOHYA_COMPONENTS[component]}_{module.replace('.', '_')}"
        names = {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale"}
        factors = {n: x.reshape(-1, 1) if n == "magnitude" else x for n, x in factors.items()}
        found = {f"{start}.alpha": np.array(max(rank, 1))}
    else:
        start = f"{'unet' if component == DENOISER else component}.{module}"
        names = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
        found = {}
    found |= {f"{start}.{names[name]}": x for name, x in factors.items()}
    return {name: np.array(x, np.float32, order="C") for name, x in found.items()}
