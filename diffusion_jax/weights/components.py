"""Parts of published folders: what a class that a folder names is here, and its tensors.

A folder of a model has config.json, whose "_class_name" (diffusers) or "architectures" (transformers) names a class,
and files of weights. A class is registered once, beside its map of names:

    COMPONENTS.register("UNet2DConditionModel")(lambda: Component(build=..., weight_map=..., shapes=...))
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json
from diffusion_jax.registry import Registry
from diffusion_jax.weights.names import Place, WeightMap
from diffusion_jax.weights.streaming import stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """A class of published models.

    Attributes:
      build: the module, from the fields of config.json and the dtype of activations; a field that says something which
        the module has not is a UserError that names it.
      weight_map: the map of the module's parameters, given the names that a file has: files of one class differ in
        prefixes and in older names.
      shapes: the module's tree of parameters as ShapeDtypeStruct.
      authors_map: the map of the authors' own names, in which adapters may speak of modules; None: there are none.
    """

    build: Callable[[Mapping[str, Any], DTypeLike], nn.Module]
    weight_map: Callable[[nn.Module, Collection[str]], WeightMap]
    shapes: Callable[[nn.Module], PyTree]
    authors_map: Callable[[nn.Module], WeightMap] | None = None

    def layouts(self, module: nn.Module) -> tuple[WeightMap, ...]:
        """The maps of a module's parameters in all layouts, the published one first."""
        own = self.weight_map(module, ())
        return (own,) if self.authors_map is None else (own, self.authors_map(module))


COMPONENTS: Registry[Component] = Registry("class of published models")


def class_name(config: Mapping[str, Any]) -> str:
    """The class that a config.json is of; "" where it names none."""
    architectures = config.get("architectures") or [""]
    name = config.get("_class_name") or architectures[0]
    return name if isinstance(name, str) else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A folder of a model, read.

    Attributes:
      module: the network.
      params: its parameters.
      config: what config.json holds.
      dtypes: of the tensors in the file, by name.
    """

    module: nn.Module
    params: PyTree
    config: Mapping[str, Any]
    dtypes: Mapping[str, np.dtype]

    def state(self, params: PyTree | None = None) -> dict[str, np.ndarray]:
        """The tensors of the parameters, its own by default, by the names and in the types of the file."""
        component = COMPONENTS.build(class_name(self.config))
        params = jax.tree.map(np.asarray, self.params if params is None else params)
        tensors = component.weight_map(self.module, self.dtypes).state(params)
        return {name: np.asarray(value).astype(self.dtypes.get(name, value.dtype)) for name, value in tensors.items()}


def read_part(
    folder: Path | str,
    dtype: DTypeLike = jnp.float32,
    *,
    held_in: DTypeLike = jnp.float32,
    place: Place | None = None,
) -> Part:
    """The model of a folder, one tensor at a time.

    Args:
      folder: with config.json and the weights.
      dtype: of activations.
      held_in: the type of parameters; constants are float32 always.
      place: (path, parameter) -> what stands for it in the tree of parameters, such as the same on devices.

    Raises:
      UserError: a class or a field that is unknown here, or tensors that are not the class's.
    """
    folder = expanded(folder)
    config = read_json(folder / "config.json")
    name = class_name(config)
    if name not in COMPONENTS:
        raise UserError(f"{folder / 'config.json'}: {name or 'it names no class, which'} is not known here")
    component = COMPONENTS.build(name)
    try:
        module = component.build(config, dtype)
        state, dtypes = stream(folder)
        weight_map = component.weight_map(module, dtypes)
        params = weight_map.params(
            state,
            _shapes(name, module),
            place=place,
            held_in=lambda path: np.float32 if is_frozen_path(path) else np.dtype(held_in),
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return Part(module=module, params=params, config=config, dtypes=dtypes)


def read_component(folder: Path | str, dtype: DTypeLike = jnp.float32) -> tuple[nn.Module, PyTree]:
    """The module of a folder, and its parameters, float32, as `read_part` reads them."""
    part = read_part(folder, dtype)
    return part.module, part.params


@functools.lru_cache(maxsize=32)
def _shapes(name: str, module: nn.Module) -> PyTree:
    """The tree of parameters of a module; tracing a large one takes seconds."""
    return COMPONENTS.build(name).shapes(module)


def is_frozen_path(path: tuple[str, ...]) -> bool:
    """Whether the parameter at this path is a constant of the network."""
    return path[-1].startswith("frozen_")
