"""Reads tensors by name from published files of weights, and writes safetensors.

weights.safetensors, weights.npz, weights.pt / .pth / .ckpt / .bin / .pkl, and folders (`folders.py`). The content of a
file decides what it is, not its name.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_npz, regular_file
from diffusion_jax.weights.entries import Weights, choose, says_average
from diffusion_jax.weights.folders import SUFFIXES, averages_beside, locate, weight_files
from diffusion_jax.weights.safetensors_header import header
from diffusion_jax.weights.sniffing import recognise
from diffusion_jax.weights.torch_files import read_torch_file

_TORCH_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in (".safetensors", ".npz"))


def read_state(path: Path | str, *, entry: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file or folder.

    Args:
      path: a file, or a folder with a model.
      entry: which of several sets of weights in a file to read, such as "ema" or "model"; by default the average, if
        there is one.

    Raises:
      UserError: there is no such file or entry, or the file is damaged or would run code.
    """
    return read_weights(path, entry=entry).tensors


def read_weights(path: Path | str, *, entry: str | None = None) -> Weights:
    """The tensors of a file or folder, and which of its sets they are; see `read_state`."""
    path = Path(path).expanduser()
    if not os.path.lexists(path):
        raise UserError(f"no file or folder {path}")
    if not _is_folder(path):
        found = choose(read_tree(path), path, entry)
        beside = [] if found.is_average or says_average([path.stem]) else averages_beside(path)
        if beside:
            names = ", ".join(file.name for file in beside)
            line = f"{path.name} has raw weights; an average of them seems to lie beside it: {names}"
            return dataclasses.replace(found, notes=(line,))
        return found
    located = locate(path)
    files, notes = weight_files(located.folder)
    try:
        trees = [read_tree(file) for file in files]
    except UserError as error:
        names = ", ".join(file.name for file in files)
        raise UserError(f"cannot read the weights of {path}: {names}: {error}") from error
    tree = trees[0] if len(trees) == 1 else _together(files, trees)
    return choose(tree, path, entry, (*located.notes, *notes))


def _together(files: Sequence[Path], trees: Sequence[Any]) -> dict[str, Any]:
    """The tensors of all shards; a name that two of them give different values is refused."""
    found: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for file, tree in zip(files, trees, strict=True):
        for name, value in (tree if isinstance(tree, Mapping) else {}).items():
            if name in found and not np.array_equal(np.asarray(found[name]), np.asarray(value)):
                raise UserError(
                    f"{file.parent}: {origin[name].name} and {file.name} both have {name}, and not the same: they are "
                    "shards of two models, or one is damaged; fetch the folder again"
                )
            found[name], origin[name] = value, file
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_tree(path: Path) -> Any:
    """The content of a file: a table of arrays, or the object given to `torch.save`.

    Raises:
      UserError: it is damaged or of another kind, which the message names.
    """
    reader, what = recognise(path)
    if (reader is None and what is None) or (reader is None and path.suffix == ".safetensors"):
        of_suffix = {".safetensors": "safetensors", ".npz": "npz"} | dict.fromkeys(_TORCH_SUFFIXES, "torch")
        reader = of_suffix.get(path.suffix)
    if reader is None:
        listed = ", ".join(_TORCH_SUFFIXES)
        known = what or "of no known kind"
        raise UserError(f"{path} is {known}; weights come as .safetensors, .npz, {listed}, or a diffusers folder")
    return {"safetensors": _read_safetensors, "npz": _read_npz, "torch": read_torch_file}[reader](path)


def fingerprint(path: Path | str) -> str:
    """SHA-256 of a file; for a folder, of its files of weights one after the other."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in (".safetensors", ".bin"))
    digest = hashlib.sha256()
    for file in files:
        with open(regular_file(file), "rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def write_state(path: Path | str, state: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, completely or not at all."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same
    save_file({name: np.array(value, order="C") for name, value in state.items()}, part, dict(metadata or {}))
    os.replace(part, path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            small = {name for name in file.keys() if file.get_slice(name).get_dtype().startswith("F8_")}  # noqa: SIM118
            whole = {name: file.get_tensor(name) for name in file.keys() if name not in small}  # noqa: SIM118
        return whole | (_read_eight_bits(path, small) if small else {})
    except (SafetensorError, ValueError, OSError, TypeError, AttributeError, KeyError) as error:
        what = recognise(path)[1]
        reason = f"it is {what}" if what else error
        raise UserError(f"{path} is damaged or not a safetensors file: {reason}") from error


def _read_eight_bits(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    """Tensors of eight-bit floats, which the library does not give as NumPy arrays."""
    places, found = header(path), {}
    with open(path, "rb") as file:
        for name in names:
            dtype, shape, start = places[name]
            file.seek(start)
            found[name] = np.frombuffer(file.read(math.prod(shape)), dtype).reshape(shape)
    return found


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file; NumPy has no name for bfloat16, and writes its numbers as two bytes each."""
    arrays = read_npz(path)
    halves = np.dtype("V2")
    return {n: value.view(ml_dtypes.bfloat16) if value.dtype == halves else value for n, value in arrays.items()}
