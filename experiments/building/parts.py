"""The parts that a config can name, and their fields, from the registries and the parts' own docstrings.

A field's type comes from its annotation, its bounds from its name (`diffusion_jax.domains`) or its annotation. Its
meaning comes from the section "Attributes:" or "Args:" in the docstring of the part or of a class that it is made from;
for standard terms, which mean the same in every part, from `diffusion_jax.terms`.
"""

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from diffusion_jax import models, terms, training
from diffusion_jax.adapters import ADAPTERS, STEERINGS
from diffusion_jax.conditioning import CONDITIONERS, PICTURES
from diffusion_jax.data.augmentation import augmentations
from diffusion_jax.data.holes import holes
from diffusion_jax.data.prompts import TOKENIZERS
from diffusion_jax.data.sources import datasets
from diffusion_jax.domains import BOUNDS, annotations, bounds_of
from diffusion_jax.models.autoencoders import CODECS
from diffusion_jax.models.encoders import TEXT_ENCODERS
from diffusion_jax.objectives import OBJECTIVES, RECONSTRUCTIONS, WEIGHTINGS
from diffusion_jax.registry import Registry
from diffusion_jax.samplers import GUIDANCE, INVERSIONS, PROJECTIONS, SAMPLERS
from diffusion_jax.schedulers import (
    GRIDS,
    INPUT_SCALES,
    PREDICTIONS,
    PROCESSES,
    SCHEDULES,
    TIME_INPUTS,
    TIME_SAMPLERS,
    TOKEN_SCHEDULES,
)
from experiments.ground.fields import REQUIRED, Field


class Kind(NamedTuple):
    """The parts that a group of a config may name, and the arguments that the runner passes to them."""

    group: str
    registry: Registry
    filled: tuple[str, ...] = ()


TEXTS: Registry = Registry("conditioner")
"""The conditioners that a config describes; the others exist if data and network have what they need."""
TEXTS.register("text")(CONDITIONERS["text"])

KINDS = (
    Kind("adapter", ADAPTERS),
    Kind("adapter", STEERINGS, ("features", "rows")),
    Kind("model", models.MODELS, ("image_size", "image_channels", "num_classes", "dtype")),
    Kind("process", PROCESSES),
    Kind("process.schedule", SCHEDULES),
    Kind("process.prediction", PREDICTIONS),
    Kind("process.time_input", TIME_INPUTS),
    Kind("process.input_scale", INPUT_SCALES),
    Kind("process.token_schedule", TOKEN_SCHEDULES),
    Kind("time_sampler", TIME_SAMPLERS),
    Kind("objective", OBJECTIVES, ("process", "schedule", "time_sampler")),
    Kind("codec", CODECS, ("data_channels", "dtype")),
    Kind("objective", RECONSTRUCTIONS),
    Kind("objective.weighting", WEIGHTINGS),
    Kind("optimizer", training.OPTIMIZERS, ("learning_rate",)),
    Kind("data.augmentation", augmentations),
    Kind("data.holes", holes),
    Kind("data.options", datasets, ("split", "data_dir")),
    Kind("conditioning.text", TEXTS, ("dtype", "data_dir")),
    Kind("conditioning.text.tokenizer", TOKENIZERS),
    Kind("conditioning.text.encoder", TEXT_ENCODERS, ("vocabulary", "dtype")),
    Kind("conditioning.picture", PICTURES, ("shape",)),
    Kind("sampling.sampler", SAMPLERS),
    Kind("sampling.grid", GRIDS),
    Kind("sampling.guidance", GUIDANCE),
    Kind("sampling.projection", PROJECTIONS),
    Kind("sampling.inversion", INVERSIONS),
)


def fields_of(kind: Kind, name: str) -> dict[str, Field]:
    """The fields of one part, without those that the runner fills in."""
    factory = kind.registry[name]
    kinds, meanings = annotations(factory), documented(factory)
    found = {}
    for argument in inspect.signature(factory).parameters.values():
        if argument.name in ("parent", "name", *kind.filled) or argument.kind is argument.VAR_KEYWORD:
            continue
        default = REQUIRED if argument.default is argument.empty else argument.default
        annotated = kinds.get(argument.name, Any)
        bounds = bounds_of(annotated, BOUNDS.get(argument.name))
        meaning = meanings.get(argument.name) or terms.meaning(kind.registry.kind, argument.name)
        found[argument.name] = Field(annotated, default, bounds, meaning)
    return found


def about(factory: Callable[..., Any]) -> str:
    """The first sentence of a part's docstring, in one line."""
    paragraph = (inspect.getdoc(factory) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def documented(factory: Callable[..., Any]) -> dict[str, str]:
    """What docstrings say about the arguments of a factory, the nearest class first.

    A function takes the texts of the class that it returns, and of a class that it refers to ("the arguments are those
    of `SceneOptions`").
    """
    made = factory if isinstance(factory, type) else typing.get_type_hints(factory).get("return")
    owners = dict.fromkeys([factory, *_borrowed(factory), *getattr(made, "__mro__", ())])
    meanings: dict[str, str] = {}
    for owner in owners:
        if owner is not object and owner.__doc__:
            meanings = {**dict(_entries(inspect.cleandoc(owner.__doc__))), **meanings}
    return meanings


def _borrowed(factory: Callable[..., Any]) -> list[Any]:
    names = re.findall(r"arguments are those of `(\w+)`", inspect.getdoc(factory) or "")
    return [inspect.unwrap(factory).__globals__[name] for name in names]


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(name, meaning) of every entry in the sections of arguments of a docstring."""
    for section in re.findall(r"^(?:Attributes|Args):\n((?:[ ]{2,}.*\n?|\n)+)", text, re.M):
        for entry in re.split(r"\n(?=  \S)", section.rstrip()):
            names, _, meaning = entry.strip().partition(":")
            for name in names.split(","):
                yield name.strip(), " ".join(meaning.split()).removesuffix(".")
