"""Names for things: a registry maps the name used in a config to the factory that builds the thing.

The conformance tests of its kind cover everything that is registered, built with `example` arguments.
"""

import difflib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from diffusion_jax.domains import annotations, check_arguments, is_plain, shown
from diffusion_jax.errors import UserError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """One line that names the wrong name, the nearest valid one and all valid ones."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {shown(name)};{hint} known: {', '.join(sorted(known))}"


_BY_TYPE: "dict[type, Registry[Any]]" = {}
"""The registry of the parts that derive from a type."""


class Registry(Generic[T]):
    """A table of factories of one `kind` ("sampler", "noise schedule", ...).

    If an argument of a factory is annotated with one of the types `of`, which are the parts of another registry, then
    that registry builds it from its name or mapping in a config.
    """

    def __init__(self, kind: str, *of: type):
        self.kind = kind
        _BY_TYPE.update(dict.fromkeys(of, self))
        self._factories: dict[str, Callable[..., T]] = {}
        self._examples: dict[str, dict[str, Any]] = {}

    def register(self, name: str, *, example: Mapping[str, Any] | None = None):
        """Decorator that registers a factory under `name`; `example` arguments build its smallest instance."""

        def add(factory):
            if name in self._factories:
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._factories[name] = factory
            self._examples[name] = dict(example or {})
            return factory

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._factories))

    def __contains__(self, name: str) -> bool:
        return name in self._factories

    def __getitem__(self, name: str) -> Callable[..., T]:
        if name not in self._factories:
            raise UserError(unknown_name(self.kind, name, list(self._factories)))
        return self._factories[name]

    def build(self, spec: str | Mapping[str, Any], **defaults: Any) -> T:
        """Build from a name or a mapping {"name": ..., **arguments}.

        `defaults` fill in what the spec omits, where the factory has such an argument.

        Raises:
          UserError: an unknown name, or an argument that the factory does not have, that is missing, or that has
            another type or lies out of bounds (`domains.py`).
        """
        spec = {"name": spec} if isinstance(spec, str) else self._group(spec)
        if "name" not in spec:
            raise UserError(f"a {self.kind} needs a `name`; known: {', '.join(self)}")
        name = spec.pop("name")
        if not isinstance(name, str):
            raise UserError(f"{self.kind}: its name must be a text, it is {shown(name)}; known: {', '.join(self)}")
        factory = self[name]
        signature = inspect.signature(factory)
        known = [key for key in signature.parameters if key not in ("parent", "name")]  # Flax modules' own
        for key in spec:
            if key not in known:
                raise UserError(unknown_name(f"argument of {self.kind} {factory.__name__!r}", key, known))
        offered = {key: value for key, value in defaults.items() if key in known}
        arguments = {**offered, **{key: _frozen(value) for key, value in spec.items()}}
        arguments = _with_parts(f"{self.kind} {name!r}", factory, arguments)
        check_arguments(f"{self.kind} {name!r}", factory, arguments)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise UserError(f"{self.kind} {factory.__name__!r}: {error}") from error
        return factory(**arguments)

    def _group(self, spec: Any) -> dict[str, Any]:
        if not hasattr(spec, "keys"):
            raise UserError(
                f"{self.kind} must be a name, or a group with a name and arguments, it is {shown(spec)}; known: "
                f"{', '.join(self)}"
            )
        return dict(spec)

    def example(self, name: str) -> T:
        """The smallest instance, as the conformance tests build it."""
        return self[name](**self._examples[name])


def _with_parts(what: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, where those that name a part are built by the registry of such parts."""
    built, kinds = dict(arguments), annotations(factory)
    for name, value in arguments.items():
        types = tuple(kind for kind in (kinds.get(name), *typing.get_args(kinds.get(name))) if isinstance(kind, type))
        registries = {id(found): found for found in map(_registry_of, types) if found is not None}
        if len(registries) != 1 or value is None or not is_plain(value):
            continue
        (registry,) = registries.values()
        built[name] = registry.build(value)
        if not isinstance(built[name], types):
            wanted = " or ".join(kind.__name__ for kind in types if _registry_of(kind) is registry)
            raise UserError(f"{what}: {name} must be a {wanted}, it is a {type(built[name]).__name__}")
    return built


def _registry_of(kind: type) -> "Registry[Any] | None":
    """The registry whose parts an argument of this type accepts."""
    return next((registry for of, registry in _BY_TYPE.items() if issubclass(kind, of)), None)


def _frozen(value):
    """Lists become tuples, so that what is built stays hashable."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value
