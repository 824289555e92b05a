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
from diffusion_jax.weights.names import Place, State, WeightMap
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

    @property
    def widest(self) -> np.dtype:
        """The type that holds the numbers of all tensors in the file."""
        kinds = [dtype for dtype in self.dtypes.values() if jnp.issubdtype(dtype, jnp.floating)]
        return np.dtype(functools.reduce(jnp.promote_types, kinds)) if kinds else np.dtype(np.float32)

    def renamed(self, names: WeightMap) -> dict[str, np.ndarray]:
        """The tensors by the names of another map, all in the widest type of the file."""
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
    """The model of a folder, one tensor at a time.

    Args:
      folder: with config.json and the weights.
      dtype: type of activations.
      held_in: the type of parameters; constants are float32 always.
      place: (path, parameter) -> what stands for it in the tree of parameters, such as the same on devices.

    Raises:
      UserError: a class or a field that is unknown here, or tensors that are not the class's.
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
    """The class that a config.json is of.

    Raises:
      UserError: it names none that is known here.
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
    """The parameters of a module from tensors by the names of a map, one at a time; arguments as of `read_part`."""
    return weight_map.params(
        state,
        _shapes(class_name(config), module),
        place=place,
        held_in=lambda path: np.float32 if is_frozen_path(path) else np.dtype(held_in),
    )


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
