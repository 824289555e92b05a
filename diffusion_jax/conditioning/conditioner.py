"""The base class of all conditioners, and the set of conditioners that one network has.

A network has *slots* (`Network.takes`). A conditioner reads raw fields of a batch, under the data's names, and fills
slots: a label stays a number, numbers stay as they are, a text becomes vectors. A slot that is "asked" has a null
value, which asks for nothing. Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) trains one network for
both:

    (1)   c' = null with probability p, else c,

independently for each example. `Conditioning.dropout` gives p for sets of slots that are dropped together, as in
InstructPix2Pix (Brooks et al. 2022, arXiv:2211.09800), which drops the text, the picture, or both, each with 5%. One
uniform number u of an example decides: [0, p_1) for the first set, [p_1, p_1 + p_2) for the second, and so on.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.specs import ConditionSpec, mask_name

Batch = Mapping[str, Array]
Conditions = dict[str, PyTree]
"""A network's filled slots: name -> [batch, ...]; a slot of any length may have its mask, "<name>_mask", bool."""
Form = tuple[tuple[int, ...], str]
"""Shape and dtype of a raw field of one example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioner:
    """Maps raw fields of a batch to slots of a network; `encoder` is the network that reads texts, if there is one,
    `pictures` the one that reads pictures, and `class_names` are the names of the classes, if they have any."""

    encoder: ClassVar[Any] = None
    pictures: ClassVar[Any] = None
    class_names: ClassVar[tuple[str, ...]] = ()

    @property
    def fields(self) -> Mapping[str, Form]:
        """The raw fields of a batch that it reads, with their form for one example."""
        raise NotImplementedError

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the raw fields that it reads."""
        return tuple(self.fields)

    @property
    def prepares(self) -> tuple[str, ...]:
        """The inputs of `prepare`, under the names that data and people use."""
        return self.reads

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        """The slots that it fills."""
        raise NotImplementedError

    @property
    def words(self) -> tuple[str, ...]:
        """The word list made from captions; empty if there is none."""
        return ()

    def remarks(self, texts: Iterable[str], what: str) -> list[str]:
        """Notes about texts that are not read as they stand.

        Args:
          texts: captions or prompts.
          what: the plural noun for them in the notes.
        """
        return []

    def beside(self, shape: tuple[int, ...]) -> "Conditioner":
        """The conditioner for examples of this shape, if it depends on the shape."""
        return self

    def init_params(self, key: Key[Array, ""]) -> PyTree:
        """Its own parameters; None if it has none."""
        return None

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Turn values from people or files into raw fields of a batch, on the host; the same for data and for prompts.

        Raises:
          UserError: a value has no meaning here; the message names it and the valid ones.
        """
        raise NotImplementedError

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        """The slots of `size` examples.

        Raises:
          UserError: the batch lacks a field.
        """
        raise NotImplementedError

    def null(self, params: PyTree, size: int) -> Conditions:
        """The slots when nothing is asked or known."""
        raise NotImplementedError

    def field(self, batch: Batch, name: str) -> Array:
        """A raw field.

        Raises:
          UserError: the batch has no such field.
        """
        if name not in batch:
            fields = ", ".join(sorted(batch)) or "nothing"
            raise UserError(f"{type(self).__name__} reads {name!r}, the batch has {fields}")
        return batch[name]


CONDITIONERS: Registry[Conditioner] = Registry("conditioner")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
    """All conditioners of a network.

    Attributes:
      parts: the conditioners; no two of them fill the same slot.
      dropout: probability for each set of slots that are dropped together, eq. (1); probabilities may be traced.
    """

    parts: tuple[Conditioner, ...] = ()
    dropout: Mapping[tuple[str, ...], float | Float[Array, ""]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        names = [name for part in self.parts for name in part.gives]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"two conditioners fill the slot {', '.join(twice)}: leave one of them out")
        for slots, probability in self.dropout.items():
            for name in slots:
                if name not in self.asked:
                    known = ", ".join(self.asked) or "none"
                    raise UserError(
                        f"conditioning dropout of {name!r}: it is not a condition of the model; its conditions: {known}"
                    )
            if isinstance(probability, int | float) and not 0 <= probability <= 1:
                raise UserError(f"conditioning dropout of {', '.join(slots)} must be in [0, 1], it is {probability}")
        total = sum(p for p in self.dropout.values() if isinstance(p, int | float))
        if total > 1:
            raise UserError(f"the probabilities of conditioning dropout add up to {total}, more than 1")

    @property
    def gives(self) -> dict[str, ConditionSpec]:
        """The slots that are filled."""
        return {name: spec for part in self.parts for name, spec in part.gives.items()}

    @property
    def asked(self) -> tuple[str, ...]:
        """The slots that can be dropped and guided."""
        return tuple(name for name, spec in self.gives.items() if spec.role == "asked")

    def check(self, takes: Mapping[str, ConditionSpec], others: frozenset[str] = frozenset()) -> None:
        """Raise UserError unless the slots of a network are exactly those filled here and `others`, in the same
        form."""
        gives = self.gives
        missing = sorted(set(takes) - set(gives) - others)
        unknown = sorted((set(gives) | others) - set(takes))
        if missing:
            raise UserError(f"the network takes {', '.join(missing)}, but no conditioner fills it")
        if unknown:
            raise UserError(f"{', '.join(unknown)} is given, but the network takes {_known(takes)}")
        for name, spec in gives.items():
            if spec != takes[name]:
                raise UserError(f"the network takes {name} as {_form(takes[name])}, it is given {_form(spec)}")

    def init_params(self, key: Key[Array, ""]) -> dict[str, PyTree]:
        """Parameters of the conditioners that have some, under the first slot that each fills."""
        found = {next(iter(part.gives)): part.init_params(key) for part in self.parts}
        return {name: params for name, params in found.items() if params is not None}

    def __call__(self, params: Mapping[str, PyTree], batch: Batch, size: int) -> Conditions:
        """The slots of `size` examples, from the raw fields of their batch."""
        return {k: v for part in self.parts for k, v in part(self._own(params, part), batch, size).items()}

    def said(self, value: Any) -> dict[str, np.ndarray]:
        """Raw fields of one row, from what a person says of the one thing that is asked for: a text, else a class.

        Raises:
          UserError: nothing is asked for, or several things, or the value means nothing there.
        """
        parts = [part for part in self.parts if set(part.gives) & set(self.asked)]
        parts = [part for part in parts if "text" in part.prepares] or parts
        if len(parts) != 1 or len(parts[0].prepares) != 1:
            found = ", ".join(self.asked) or "nothing"
            raise UserError(f"{value!r} gives one condition, but this network has {found}")
        return parts[0].prepare({parts[0].prepares[0]: [value]})

    def beside(self, params: Mapping[str, PyTree], batch: Batch, size: int) -> Conditions:
        """The slots of the conditioners whose fields this batch has."""
        return {
            name: value
            for part in self.parts
            if part.fields and set(part.fields) <= set(batch)
            for name, value in part(self._own(params, part), batch, size).items()
        }

    def null(self, params: Mapping[str, PyTree], size: int) -> Conditions:
        """The slots when nothing is asked or known."""
        return {k: v for part in self.parts for k, v in part.null(self._own(params, part), size).items()}

    def without(
        self, params: Mapping[str, PyTree], conditions: Conditions, size: int, slots: Sequence[str] | None = None
    ) -> Conditions:
        """The conditions with these slots null (by default all that are asked); "told" slots stay."""
        null = self.null(params, size)
        named = with_masks(self.asked if slots is None else slots)
        return {name: null[name] if name in named else value for name, value in conditions.items()}

    def drop(self, params: Mapping[str, PyTree], conditions: Conditions, key: BatchKey) -> Conditions:
        """Apply eq. (1) to every example."""
        sets = [(slots, p) for slots, p in self.dropout.items() if not (isinstance(p, int | float) and p == 0)]
        if not sets:
            return conditions
        size, u = key.index.shape[0], key.fold_in("conditioning").uniform()
        null, low = self.null(params, size), 0.0
        for slots, probability in sets:
            dropped = (u >= low) & (u < low + probability)
            conditions = {
                name: _where(dropped, null[name], value) if name in with_masks(slots) else value
                for name, value in conditions.items()
            }
            low = low + probability
        return conditions

    def _own(self, params: Mapping[str, PyTree], part: Conditioner) -> PyTree:
        return params.get(next(iter(part.gives)))


def with_masks(slots: Iterable[str]) -> frozenset[str]:
    """The slots together with their masks, if any: they are dropped together."""
    return frozenset(name for slot in slots for name in (slot, mask_name(slot)))


def _where(dropped: Array, null: PyTree, value: PyTree) -> PyTree:
    return jax.tree.map(
        lambda there, none: jnp.where(dropped.reshape(-1, *(1,) * (there.ndim - 1)), none, there), value, null
    )


def _form(spec: ConditionSpec) -> str:
    values = f" of {spec.num_values} values" if spec.num_values else ""
    return f"{spec.dtype} {list(spec.shape)}{values}, {spec.role}"


def _known(takes: Mapping[str, ConditionSpec]) -> str:
    return ", ".join(sorted(takes)) or "nothing"
