"""Parts of published folders: for each class that a folder names, the module here and its tensors.

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
from diffusion_jax.weights.names import Place, State, WeightMap
from diffusion_jax.weights.streaming import stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """A published class.

    Attributes:
      build: makes the module from the fields of config.json and the dtype of activations; a field that asks for
        something which the module lacks is a UserError that names it.
      weight_map: the map of the module's parameters for the names in a file, since files of one class differ in
        prefixes and in older names.
      shapes: the module's tree of parameters as ShapeDtypeStruct.
      authors_map: the map of the authors' own names, which adapters may use for modules; None: there are none.
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
    """The class in a config.json; "" if it names none."""
    architectures = config.get("architectures") or [""]
    name = config.get("_class_name") or architectures[0]
    return name if isinstance(name, str) else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A model read from a folder.

    Attributes:
      module: the network.
      params: its parameters.
      config: content of config.json.
      dtypes: types of the tensors in the file, by name.
    """

    module: nn.Module
    params: PyTree
    config: Mapping[str, Any]
    dtypes: Mapping[str, np.dtype]

    def state(self, params: PyTree | None = None) -> dict[str, np.ndarray]:
        """The tensors of the parameters, by default its own, with the names and types of the file."""
        component = COMPONENTS.build(class_name(self.config))
        params = jax.tree.map(np.asarray, self.params if params is None else params)
        tensors = component.weight_map(self.module, self.dtypes).state(params)
        return {name: np.asarray(value).astype(self.dtypes.get(name, value.dtype)) for name, value in tensors.items()}

    @property
    def widest(self) -> np.dtype:
        """The type that can hold the numbers of all tensors in the file."""
        kinds = [dtype for dtype in self.dtypes.values() if jnp.issubdtype(dtype, jnp.floating)]
        return np.dtype(functools.reduce(jnp.promote_types, kinds)) if kinds else np.dtype(np.float32)

    def renamed(self, names: WeightMap) -> dict[str, np.ndarray]:
        """The tensors with the names of another map, all in the widest type of the file."""
        tensors = names.state(jax.tree.map(np.asarray, self.params))
        return {
            name: value.astype(self.widest) if value.dtype.kind not in "iu" else value
            for name, value in tensors.items()
        }


def read_part(
    folder: Path | str,
    dtype: DTypeLike = jnp.float32,
    *,
    held_in: DTypeLike = jnp.float32,
    place: Place | None = None,
) -> Part:
    """Read the model in a folder, one tensor at a time.

    Args:
      folder: folder with config.json and the weights.
      dtype: type of activations.
      held_in: type of the parameters; constants are always float32.
      place: (path, parameter) -> its replacement in the tree of parameters, such as the same on devices.

    Raises:
      UserError: a class or a field is unknown here, or the tensors do not fit the class.
    """
    folder = expanded(folder)
    config = read_json(folder / "config.json")
    component = component_of(config, folder / "config.json")
    try:
        module = component.build(config, dtype)
        state, dtypes = stream(folder)
        params = read_params(config, module, component.weight_map(module, dtypes), state, held_in=held_in, place=place)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return Part(module=module, params=params, config=config, dtypes=dtypes)


def component_of(config: Mapping[str, Any], origin: object = "config.json") -> Component:
    """The class in a config.json.

    Raises:
      UserError: it names no class that is known here.
    """
    name = class_name(config)
    if name not in COMPONENTS:
        raise UserError(f"{origin}: {name or 'it names no class, which'} is not known here")
    return COMPONENTS.build(name)


def read_params(
    config: Mapping[str, Any],
    module: nn.Module,
    weight_map: WeightMap,
    state: State,
    *,
    held_in: DTypeLike = jnp.float32,
    place: Place | None = None,
) -> PyTree:
    """The parameters of a module from tensors with the names of a map, one at a time; arguments as in `read_part`."""
    return weight_map.params(
        state,
        _shapes(class_name(config), module),
        place=place,
        held_in=lambda path: np.float32 if is_frozen_path(path) else np.dtype(held_in),
    )


def read_component(folder: Path | str, dtype: DTypeLike = jnp.float32) -> tuple[nn.Module, PyTree]:
    """The module of a folder and its float32 parameters, read by `read_part`."""
    part = read_part(folder, dtype)
    return part.module, part.params


@functools.lru_cache(maxsize=32)
def _shapes(name: str, module: nn.Module) -> PyTree:
    """The tree of parameters of a module, cached because tracing a large one takes seconds."""
    return COMPONENTS.build(name).shapes(module)


def is_frozen_path(path: tuple[str, ...]) -> bool:
    """Whether the parameter at this path is a constant of the network."""
    return path[-1].startswith("frozen_")
