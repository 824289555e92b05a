"""Tensors by name from the files that weights are published in, and safetensors written.

weights.safetensors, weights.npz, weights.pt / .pth / .ckpt / .bin / .pkl, and folders of diffusers (also in shards)
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.weights.torch_files import read_torch_file

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_FOLDER_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
# Where training programs keep the weights in a file, the average of the parameters first.
_ENTRIES = ("ema", "state_dict", "model", "net", "params")


def read_state(path: Path | str, *, entry: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file or folder.

    Args:
      path: a file, or a folder with a diffusers model.
      entry: which of several sets of weights in a file, such as "ema" or "model"; by default the average where there
        is one.

    Raises:
      UserError: no such file, a damaged one, one that would run code, or no such entry.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, entry)
    if not path.is_file():
        raise UserError(f"no file or folder {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _choose(read_torch_file(path), path, entry)
    raise UserError(f"{path}: weights come as .safetensors, .npz, {', '.join(_TORCH_SUFFIXES)}, or a diffusers folder")


def fingerprint(path: Path | str) -> str:
    """SHA-256 of a file; of a folder, that of its files of weights one after the other."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (".safetensors", ".bin"))
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def read_config(path: Path | str) -> dict[str, Any] | None:
    """config.json of a diffusers folder; None where there is none."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is damaged: {error}") from error


def write_state(path: Path | str, state: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same
    save_file({name: np.array(value, order="C") for name, value in state.items()}, part, dict(metadata or {}))
    os.replace(part, path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, ValueError, OSError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or holds more than arrays: {error}") from error


def _read_folder(path: Path, entry: str | None) -> dict[str, np.ndarray]:
    for name in _FOLDER_NAMES:
        for suffix in (".safetensors", ".bin"):
            if (path / f"{name}{suffix}").is_file():
                return read_state(path / f"{name}{suffix}", entry=entry)
            index = path / f"{name}{suffix}.index.json"
            if index.is_file():
                try:
                    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                except (json.JSONDecodeError, KeyError, AttributeError) as error:
                    raise UserError(f"{index} is damaged: {error}") from error
                if any(Path(file).name != file for file in files):
                    raise UserError(f"{index} names files outside its folder")
                return {k: v for file in files for k, v in read_state(path / file, entry=entry).items()}
    raise UserError(f"no weights in {path}: looked for {', '.join(_FOLDER_NAMES)} as .safetensors or .bin")


def _choose(found: Any, path: Path, entry: str | None) -> dict[str, np.ndarray]:
    """The set of tensors that is meant, without the prefix that parallel training adds."""
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds no tensors by name")
    sets = [name for name in found if isinstance(found[name], Mapping) and _tensors(found[name])]
    if entry is not None:
        if entry not in found:
            raise UserError(f"{path} has no entry {entry!r}; there are: {', '.join(map(str, found))}")
        chosen = found[entry]
    elif _tensors(found):
        chosen = found
    else:
        known = [name for name in _ENTRIES if name in found]
        chosen = found[known[0]] if known else found[sets[0]] if sets else {}
    if isinstance(chosen, Mapping) and "shadow_params" in chosen:
        chosen = _named_average(chosen["shadow_params"], found.get("model", {}), path)
    tensors = _tensors(chosen)
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; its entries: {', '.join(map(str, found))}")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _tensors(found: Any) -> dict[str, np.ndarray]:
    if not isinstance(found, Mapping):
        return {}
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, np.ndarray)}


def _named_average(average: Any, model: Any, path: Path) -> dict[str, np.ndarray]:
    """score_sde's average is a list: the trainable parameters in the model's order; the rest comes from the model."""
    tensors = _tensors(model)
    # Neither buffers nor the random frequencies, the only vectors called W, are trained.
    names = [n for n, v in tensors.items() if not n.endswith("sigmas") and not (n.endswith(".W") and v.ndim == 1)]
    if len(names) != len(average):
        raise UserError(f"{path}: the average has {len(average)} tensors and the model {len(names)}")
    for name, value in zip(names, average, strict=True):
        if value.shape != tensors[name].shape:
            raise UserError(f"{path}: the average has {value.shape} where the model has {name} {tensors[name].shape}")
    return {**tensors, **dict(zip(names, average, strict=True))}
