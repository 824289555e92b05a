"""Adapters of a pipeline: reading files, weighting, adding to or fusing into the parameters, and writing.

The parameters of adapters are arguments of the compiled programs, like those of networks. Another adapter of the same
shapes, or another weight, therefore needs no new compilation.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from diffusion_jax import adapters
from diffusion_jax.adapters import Own, Weights
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded
from diffusion_jax.pipelines.parts import Parts, read_parts
from diffusion_jax.registry import unknown_name
from diffusion_jax.systems import CONDITIONING, NETWORK
from diffusion_jax.weights.components import COMPONENTS, class_name
from diffusion_jax.weights.lora import Target, read_lora
from diffusion_jax.weights.lora_names import DENOISER
from diffusion_jax.weights.lora_writing import write_lora

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """The parts of a pipeline with adapters.

    Attributes:
      base: the parts without adapters.
      loaded: adapters by name, at weight 1.
      weights: weights of the active adapters, in their order.
    """

    base: Parts
    loaded: Mapping[str, Own] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)

    def with_file(self, path: Path | str, name: str, weight: Weights = 1.0) -> "Adapted":
        """The parts with the adapter of a file.

        Raises:
          UserError: the file is damaged or for another model, or the name is taken.
        """
        if name in self.loaded:
            raise UserError(f"an adapter {name!r} is loaded already: give this one another name")
        own = read_lora(path, self.targets)
        return dataclasses.replace(
            self, loaded={**self.loaded, name: own}, weights={**self.weights, name: weight}
        ).checked()

    def weighted(self, names: Sequence[str], weights: Sequence[Weights]) -> "Adapted":
        """The parts with only these adapters active.

        Raises:
          UserError: an adapter is unknown, or the number of weights differs from the number of adapters.
        """
        for name in names:
            if name not in self.loaded:
                raise UserError(unknown_name("adapter", name, list(self.loaded)))
        if len(weights) != len(names):
            raise UserError(f"{len(weights)} weights for {len(names)} adapters: give one for each")
        return dataclasses.replace(self, weights=dict(zip(names, weights, strict=True))).checked()

    def without(self, names: Sequence[str] | None = None) -> "Adapted":
        """The parts without these adapters, or without any adapter."""
        gone = set(self.loaded if names is None else names)
        kept = {
            field: {name: value for name, value in getattr(self, field).items() if name not in gone}
            for field in ("loaded", "weights")
        }
        return dataclasses.replace(self, **kept)

    def checked(self) -> "Adapted":
        """Raise UserError if a weight has no meaning."""
        _ = [adapters.weighted(self.loaded[name], weight) for name, weight in self.weights.items()]
        return self

    @property
    def targets(self) -> dict[str, Target]:
        """The networks that an adapter may change."""
        names = {DENOISER: self.base.network}
        names |= {name: name for name in _ENCODERS if name in self.base.models}
        return {component: _target(self.base, name) for component, name in names.items()}

    @functools.cached_property
    def in_force(self) -> Parts:
        """The parts as a call uses them; they are made once, so that arrays on devices stay there."""
        return self.parts()

    def parts(self, *, scale: float = 1.0, fused: bool = False) -> Parts:
        """The parts as the active adapters, all times `scale`, change them; with `fused`, in plain arrays."""
        if not self.weights:
            return self.base
        owns = [
            adapters.weighted(adapters.weighted(self.loaded[name], weight), scale)
            for name, weight in self.weights.items()
        ]
        groups = {name: part.params for name, part in self.base.models.items()}
        touched = {path.partition("/")[0] for own in owns for path in own}
        change: Any = adapters.merge if fused else adapters.apply
        changed = change({name: groups[name] for name in touched}, owns)
        models = {
            name: dataclasses.replace(part, params=changed[name]) if name in touched else part
            for name, part in self.base.models.items()
        }
        return dataclasses.replace(self.base, models=models, placed={})

    def write(self, path: Path | str, name: str, *, kohya: bool = False) -> None:
        """Write an adapter, at weight 1, as a file that other programs read."""
        if name not in self.loaded:
            raise UserError(unknown_name("adapter", name, list(self.loaded)))
        write_lora(path, self.loaded[name], self.targets, kohya=kohya)


def lora_file(path: Path | str) -> Path:
    """The file of an adapter, given as this file or as its folder.

    Raises:
      UserError: there is no such file, or several.
    """
    path = expanded(path)
    if not path.is_dir():
        return path
    found = [path / "pytorch_lora_weights.safetensors"]
    found = found if found[0].is_file() else sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:6]) or "none"
        raise UserError(f"{path} must hold one file of an adapter; it has {names}: give the file")
    return found[0]


def targets_of_model(folder: Path | str) -> dict[str, Target]:
    """The networks of a published folder, as the groups of its `Model` (`read_model`), with their names in files."""
    parts = read_parts(folder)
    encoders = [name for name in _ENCODERS if name in parts.models]
    groups = {name: f"{CONDITIONING}/context/encoder_{i}" for i, name in enumerate(encoders)}
    found = {DENOISER: _target(parts, parts.network, NETWORK)}
    return {**found, **{name: _target(parts, name, group) for name, group in groups.items()}}


def _target(parts: Parts, name: str, group: str = "") -> Target:
    part = parts.models[name]
    component = COMPONENTS.build(class_name(part.config))
    return Target(
        group=group or name, maps=component.layouts(part.module), shapes=flatten_dict(component.shapes(part.module))
    )
