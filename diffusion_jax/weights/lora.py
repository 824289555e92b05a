"""Reads files of LoRA and its variants for the networks here (`lora_writing.py` writes them).

The network's map of names (`names.py`) finds what a tensor belongs to: the parameter, the layer of a scan, and the
columns of a fused layer. An adapter has, for each path of a parameter, the leaves of one form
(`diffusion_jax.adapters`). Ranks may differ between layers: smaller ones are padded with zeros, which is exact.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from diffusion_jax.errors import UserError
from diffusion_jax.weights.lora_names import Named, Strengths, parse, spellings, strengths
from diffusion_jax.weights.names import Cut, Entry, State, WeightMap
from diffusion_jax.weights.reading import read_state

SCALE = "frozen_scale"
_LISTED = 6
Leaves = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a module's weight among the parameters.

    Attributes:
      path: path of the parameter, in its group.
      entry: how the parameter is made of tensors.
      position: index of the module's tensor among those of the entry.
      layer: layer of a scan; None if the parameter is not stacked.
      shape: shape of the parameter, of one layer.
    """

    path: tuple[str, ...]
    entry: Entry
    position: int
    layer: int | None
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names of one layout.

    Attributes:
      places: places of tensors, and of the parts of split tensors.
      cuts: the split tensors, by name.
    """

    places: Mapping[str, Place]
    cuts: Mapping[str, Cut]

    @property
    def modules(self) -> set[str]:
        """Modules that have a weight or a bias."""
        return {name.rpartition(".")[0] for name in (*self.places, *self.cuts) if not name.endswith("]")}


@dataclasses.dataclass(frozen=True)
class Target:
    """A network that an adapter can change.

    Attributes:
      group: its group of parameters, "network" or "conditioning/<slot>".
      maps: its maps of names, one for each layout that files may use for its modules.
      shapes: its parameters, as arrays or ShapeDtypeStruct by path.
    """

    group: str
    maps: tuple[WeightMap, ...]
    shapes: Mapping[tuple[str, ...], Any]

    def layouts(self) -> Iterator[Layout]:
        """The places of tensors, in every layout."""
        for layout in self.maps:
            found = {}
            for path, entries in layout.entries.items():
                stacked = isinstance(entries, tuple)
                shape = tuple(self.shapes[path].shape)[int(stacked) :]
                for layer, entry in enumerate(entries if stacked else (entries,)):
                    for position, name in enumerate(entry.names):
                        found[name] = Place(path, entry, position, layer if stacked else None, shape)
            yield Layout(found, {cut.name: cut for cut in layout.cuts})


def read_lora(path: Path | str, targets: Mapping[str, Target]) -> dict[str, Leaves]:
    """An adapter from a file.

    Args:
      path: .safetensors, or any other file of tensors.
      targets: the networks, by component ("denoiser", "text_encoder", "text_encoder_2", "text_encoder_3").

    Raises:
      UserError: the file is damaged or no adapter, or tensors have no place or are not finite.
    """
    path = Path(path)
    state, told = read_state(path), strengths(_metadata(path), str(path))
    modules = _by_module(path, state)
    parts: dict[str, list[tuple[Place, Leaves]]] = {}
    homeless, layouts = [], {key: list(target.layouts()) for key, target in targets.items()}
    for (component, module, strokes), factors in modules.items():
        home = _find(layouts.get(component, []), module, strokes)
        if home is None:
            homeless.append(f"{component}: {module}")
            continue
        layout, name = home
        scale = np.full(1, _scale(factors, told, component, name), np.float32)
        for place, leaves in _leaves(path, name, factors, scale, layout):
            key = "/".join((targets[component].group, *place.path))
            parts.setdefault(key, []).append((place, leaves))
    if homeless:
        more = f" and {len(homeless) - _LISTED} more" if len(homeless) > _LISTED else ""
        raise UserError(
            f"{path} has {len(homeless)} of its {len(modules)} modules elsewhere than in this model: "
            f"{', '.join(homeless[:_LISTED])}{more}; it is for another base"
        )
    if not parts:
        raise UserError(f"{path} has no tensors of an adapter")
    layers = {"/".join((t.group, *p)): _layers(t, p) for t in targets.values() for m in t.maps for p in m.entries}
    return {key: _together(key, found, layers[key]) for key, found in parts.items()}


def _layers(target: Target, path: tuple[str, ...]) -> int | None:
    stacked = any(isinstance(layout.entries.get(path), tuple) for layout in target.maps)
    return target.shapes[path].shape[0] if stacked else None


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):  # of another format, without metadata
        return {}


def _by_module(path: Path, state: State) -> dict[tuple[str, str, bool], dict[str, np.ndarray]]:
    found: dict[tuple[str, str, bool], dict[str, np.ndarray]] = {}
    unknown = []
    for name, tensor in state.items():
        named: Named | None = parse(name)
        if named is None:
            unknown.append(name)
            continue
        if not np.isfinite(np.asarray(tensor, np.float32)).all():
            raise UserError(f"{path}: {name} is not finite")
        found.setdefault((named.component, named.module, named.strokes), {})[named.factor] = np.asarray(
            tensor, np.float32
        )
    if unknown:
        raise UserError(
            f"{path} has {len(unknown)} of {len(state)} tensors that belong to no known kind of adapter: "
            f"{', '.join(unknown[:_LISTED])}"
        )
    return found


def _find(layouts: Sequence[Layout], module: str, strokes: bool) -> tuple[Layout, str] | None:
    """The layout that knows a module, and the module's name there."""
    for layout in layouts:
        names = layout.modules
        starts = {"", *(f"{start}." for start in ("model.diffusion_model", "diffusion_model"))}
        known = {n.removeprefix(s): n for n in names for s in starts if n.startswith(s)}
        spelled = spellings(known, strokes=strokes)
        if module in spelled:
            return layout, known[spelled[module]]
    return None


def _scale(factors: Mapping[str, np.ndarray], told: Strengths, component: str, module: str) -> float:
    """alpha / rank, where alpha is beside the factors, in the metadata, or equal to the rank."""
    rank = _rank(factors)
    if not rank:
        return 1.0
    if "alpha" in factors:
        return float(factors["alpha"].reshape(-1)[0]) / rank
    scale = told.scale(component, module, rank)
    return 1.0 if scale is None else scale


def _rank(factors: Mapping[str, np.ndarray]) -> int:
    """Rank of the factors; 0 if there are none."""
    for name, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if name in factors:
            return factors[name].shape[axis]
    return 0


def _leaves(
    path: Path, module: str, factors: Mapping[str, np.ndarray], scale: np.ndarray, layout: Layout
) -> Iterator[tuple[Place, Leaves]]:
    """The leaves for a module's parameters, each in this package's layout."""
    whole = np.ones(1, np.float32)
    if "difference_of_bias" in factors:
        place = layout.places.get(f"{module}.bias")
        if place is None:
            raise UserError(f"{path}: {module} has no bias here, but the file changes it")
        yield place, {"difference": _read(path, place, factors["difference_of_bias"]), SCALE: whole}
        if len(set(factors) - {"difference_of_bias", "alpha"}) == 0:
            return
    cut = layout.cuts.get(f"{module}.weight")
    parts = [(f"{module}.weight", factors)] if cut is None else _cut(path, cut, factors)
    for name, part in parts:
        if name not in layout.places:
            raise UserError(f"{path}: {module} has no weight here, but the file changes it")
        yield layout.places[name], _of_weight(path, module, layout.places[name], part, scale)


def _of_weight(path: Path, module: str, place: Place, factors: Mapping[str, np.ndarray], scale: np.ndarray) -> Leaves:
    if "difference" in factors:
        return {"difference": _read(path, place, factors["difference"]), SCALE: np.ones(1, np.float32)}
    if "down" in factors and "up" in factors:
        return {**_low_rank(path, place, module, factors), SCALE: scale}
    if any(name.startswith(("hada", "lokr")) for name in factors):
        return {"difference": _read(path, place, _product(path, place, factors)), SCALE: scale}
    raise UserError(f"{path}: {module} has {', '.join(sorted(factors))} but not the rest of an adapter")


def _cut(path: Path, cut: Cut, factors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """The factors for the parts of a tensor that is several parameters here: rows of B, or columns of A, belong to
    them."""
    of = {"difference": "difference", 0: "up", 1: "down"}
    name = of["difference"] if "difference" in factors else of[cut.axis]
    if name not in factors or "magnitude" in factors:
        raise UserError(
            f"{path}: {cut.name} is several parameters here, which only low-rank terms without magnitudes fit"
        )
    for number, part in enumerate(cut.parts):
        try:
            yield part, {**factors, name: cut.part(factors[name], number)}
        except ValueError as error:
            raise UserError(f"{path}: {error}, which is for another base") from None


def _there(place: Place, tensor: np.ndarray) -> np.ndarray:
    """The whole parameter with this tensor at the module's place and zeros elsewhere."""
    return place.entry.read([tensor if i == place.position else np.zeros_like(tensor) for i in range(_count(place))])


def _count(place: Place) -> int:
    return len(place.entry.names)


def _read(path: Path, place: Place, tensor: np.ndarray) -> np.ndarray:
    for form in (tensor, tensor.reshape(*tensor.shape[:2], *(1,) * (4 - tensor.ndim)) if tensor.ndim == 2 else tensor):
        try:
            found = _there(place, form)
        except (ValueError, IndexError):
            continue
        if found.shape == place.shape:
            return found
    raise UserError(
        f"{path}: a tensor of shape {tensor.shape} does not fit {'/'.join(place.path)} {place.shape}: it is for "
        "another base"
    )


def _low_rank(path: Path, place: Place, module: str, factors: Mapping[str, np.ndarray]) -> Leaves:
    """A and B. Where several modules are one layer here, B is zero in the columns of the others."""
    down, up = factors["down"], factors["up"]
    if "middle" in factors:  # for a convolution: 1x1 down, the middle, 1x1 up
        down = np.einsum("rskl,si->rikl", factors["middle"], down.reshape(down.shape[:2]))
    rank = down.shape[0]
    if up.shape[1] != rank or not rank:
        raise UserError(f"{path}: {module} has factors of the ranks {rank} and {up.shape[1]}")
    inputs = int(np.prod(place.shape[:-1]))
    rows = down.transpose(*range(2, down.ndim), 1, 0).reshape(-1, rank)
    columns = _outputs(place, up.reshape(up.shape[0], rank))
    if rows.shape[0] != inputs or columns is None:
        raise UserError(
            f"{path}: {module} is [{up.shape[0]}, {rows.shape[0]}] there and [{place.shape[-1] // _count(place)}, "
            f"{inputs}] here: it is for another base"
        )
    leaves = {"down": rows[None], "up": columns[None]}
    if "magnitude" in factors:
        magnitude = _outputs(place, factors["magnitude"].reshape(-1, 1))
        if magnitude is None:
            raise UserError(f"{path}: the magnitude of {module} does not fit it")
        leaves["magnitude"] = magnitude[0]
    return leaves


def _outputs(place: Place, up: np.ndarray) -> np.ndarray | None:
    """Turn [outputs of the module, rank] into [rank, outputs of the parameter]."""
    wide = place.shape[-1]
    for form in (up, up.reshape(*up.shape, 1, 1)):
        try:
            found = _there(place, form)
        except (ValueError, IndexError):
            continue
        found = found.reshape(-1, found.shape[-1])
        if found.shape == (up.shape[1], wide):
            return found
    return None


def _product(path: Path, place: Place, factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sum that LoHa and LoKr add, in the layout of the file."""
    try:
        if "hada_w1_a" in factors:
            first = factors["hada_w1_a"] @ factors["hada_w1_b"]
            product = first * (factors["hada_w2_a"] @ factors["hada_w2_b"])
        else:
            small, large = (
                factors[f"lokr_w{i}"] if f"lokr_w{i}" in factors else factors[f"lokr_w{i}_a"] @ factors[f"lokr_w{i}_b"]
                for i in (1, 2)
            )
            small = small.reshape(*small.shape, *(1,) * (large.ndim - small.ndim))
            product = np.kron(small, large)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: a factor is missing or of another shape: {error}") from None
    if len(place.shape) == 4 and product.ndim == 2:  # [out, in * height * width]
        height, width, inputs, _ = place.shape
        return product.reshape(-1, inputs, height, width)
    return product


def _together(key: str, found: Sequence[tuple[Place, Leaves]], layers: int | None) -> Leaves:
    """The leaves of all layers and all modules of one parameter."""
    by_layer: dict[int, list[Leaves]] = {}
    for place, leaves in found:
        by_layer.setdefault(place.layer or 0, []).append(leaves)
    kinds = {frozenset(set(leaves) - {"magnitude"}) for _, leaves in found}
    if len(kinds) > 1:
        return _together(key, [(place, _as_difference(leaves, place.shape)) for place, leaves in found], layers)
    merged = [_merged(by_layer.get(i, []), found[0][0].shape) for i in range(layers or 1)]
    if "down" not in found[0][1]:
        whole = {name: np.stack([leaves[name] for leaves in merged]) for name in ("difference", SCALE)}
    else:
        names = ["down", "up", SCALE, *(["magnitude"] if any("magnitude" in leaves for _, leaves in found) else [])]
        rank = max(leaves["down"].shape[-1] for leaves in merged)
        whole = {name: np.stack([_filled(leaves, name, rank) for leaves in merged]) for name in names}
    return whole if layers is not None else {name: leaf[0] for name, leaf in whole.items()}


def _as_difference(leaves: Leaves, shape: tuple[int, ...]) -> Leaves:
    if "difference" in leaves:
        return leaves
    if "magnitude" in leaves:
        raise UserError("one parameter has a low-rank term with a magnitude in one layer and another form in others")
    term = (leaves["down"][0] @ leaves["up"][0]).reshape(shape)
    return {"difference": term, SCALE: leaves[SCALE]}


def _merged(own: Sequence[Leaves], shape: tuple[int, ...]) -> Leaves:
    """Several modules of one layer as one term; the scale of each is multiplied into its B."""
    inputs, outputs = int(np.prod(shape[:-1])), shape[-1]
    if not own:
        return {
            "down": np.zeros((1, inputs, 0), np.float32),
            "up": np.zeros((1, 0, outputs), np.float32),
            "difference": np.zeros(shape, np.float32),
            SCALE: np.ones((1,), np.float32),
        }
    if "difference" in own[0]:
        return {
            "difference": sum(leaves["difference"] * leaves[SCALE] for leaves in own),
            SCALE: np.ones((1,), np.float32),
        }
    whole = {
        "down": np.concatenate([leaves["down"] for leaves in own], axis=-1),
        "up": np.concatenate([leaves["up"] * leaves[SCALE] for leaves in own], axis=-2),
        SCALE: np.ones((1,), np.float32),
    }
    magnitudes = [leaves["magnitude"] for leaves in own if "magnitude" in leaves]
    return {**whole, "magnitude": sum(magnitudes)} if magnitudes else whole


def _filled(leaves: Leaves, name: str, rank: int) -> np.ndarray:
    if name == SCALE:
        return leaves[SCALE]
    if name == "magnitude":
        return leaves.get(name, np.zeros(leaves["up"].shape[-1], np.float32))
    axis = -1 if name == "down" else -2
    missing = rank - leaves[name].shape[axis]
    return np.pad(
        leaves[name], [(0, missing if i == leaves[name].ndim + axis else 0) for i in range(leaves[name].ndim)]
    )
