"""The network's conditions, from the config and the data: the text conditioner, its word list, and prepared fields.

    config.conditioning = {"text": {"tokenizer": "words", "length": 24, "encoder": {"name": "transformer", ...}}}

Pictures become conditions through an adapter, {"name": "controlnet"} or {"name": "ip_adapter", ...}.

The word list of the tokenizer "words" is made once from the captions of the training split, and kept in the workdir,
where runs, samples and evaluations read it. Its hash is part of the run.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data, systems
from diffusion_jax.adapters import ADAPTERS, STEERINGS, Adapter, Steering
from diffusion_jax.conditioning import CONDITIONERS, PICTURES, BesidePicture, Conditioner, Text
from diffusion_jax.data import DatasetInfo
from diffusion_jax.data.prompts import PromptTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json
from diffusion_jax.models.encoders import VisionTransformer
from diffusion_jax.registry import unknown_name
from diffusion_jax.weights.components import COMPONENTS, class_name, read_part
from experiments.building.sources import Source
from experiments.ground.workdir import FILES

VOCABULARY = "vocabulary.json"
MOST_CAPTIONS = 100_000  # captions that a word list is made from, evenly spread over the split
_MOST_LOOKED_AT = 10_000  # captions of a split that are checked for length and unknown words before a run


def text_of(config: ConfigDict, dtype: Any) -> Text | None:
    """The text conditioner named in the config, without its word list; None if the config names none."""
    if "conditioning" not in config or "text" not in config.conditioning:
        return None
    fields = dict(config.conditioning.text)
    data_dir = config.data.data_dir or None
    return CONDITIONERS.build({"name": "text", **plain(fields)}, dtype=dtype, data_dir=data_dir)


def picture_of(config: ConfigDict, shape: Callable[[], tuple[int, ...]]) -> BesidePicture | None:
    """The conditioner of a picture beside the input that the config names; None if it names none.

    Args:
      config: config of a run.
      shape: gives the shape of its pictures; called only if there is such a conditioner, because it may open data.

    Raises:
      UserError: there is no such conditioner, or latents are diffused.
    """
    if "conditioning" not in config or "picture" not in config.conditioning:
        return None
    if config.first_stage.path:
        raise UserError(
            "conditioning.picture needs pixels, but this config diffuses latents: leave first_stage.path out"
        )
    return PICTURES.build(plain(dict(config.conditioning.picture)), shape=tuple(shape()))


def plain(value: Any) -> Any:
    """Groups of a config as dictionaries, lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(plain(one) for one in value)
    return {name: plain(one) for name, one in value.items()} if hasattr(value, "items") else value


def with_words(text: Text, pipeline: data.Pipeline | None, directory: Path | None) -> Text:
    """The conditioner with its word list, from the workdir or made from the captions of the training data.

    Raises:
      UserError: there is neither, or the list is damaged.
    """
    if not text.tokenizer.learns:
        return text
    path = directory and directory / VOCABULARY
    if path and path.is_file():
        words = read_json(path).get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f"{path} is damaged: it holds no list of words")
        tokenizer = dataclasses.replace(text.tokenizer, words=tuple(words))
    elif pipeline is None:
        raise UserError(f"there is no {VOCABULARY} in {directory}: restore it, or train first")
    else:
        tokenizer = _learned(text.tokenizer, pipeline, pipeline.info.fingerprint)
    found = dataclasses.replace(text, tokenizer=tokenizer)
    recorded = read_json(directory / FILES).get(VOCABULARY) if directory and (directory / FILES).is_file() else None
    if recorded not in (None, hashlib.sha256(kept(found)[VOCABULARY]).hexdigest()):
        raise UserError(
            f"the word list of the run in {directory} is another one: its {VOCABULARY} or its captions have changed"
        )
    return found


@functools.lru_cache(maxsize=4)
def _learned(tokenizer: PromptTokenizer, pipeline: data.Pipeline, fingerprint: str) -> PromptTokenizer:
    """The tokenizer made from the captions of the data, cached for a process that opens many runs, such as an
    ablation."""
    return tokenizer.learned(pipeline.texts(max_examples=MOST_CAPTIONS))


def with_text(model: systems.Model, text: Text | None) -> systems.Model:
    """The model whose text conditioner has its word list, so that it can read words without the run."""
    if text is None:
        return model
    parts = tuple(text if set(part.gives) == set(text.gives) else part for part in model.conditioning.parts)
    return dataclasses.replace(model, conditioning=dataclasses.replace(model.conditioning, parts=parts))


def kept(text: Text | None) -> dict[str, bytes]:
    """Files of the workdir that were made from the data: name and content."""
    words = text.words if text else ()
    return {VOCABULARY: (json.dumps({"words": words}, ensure_ascii=False) + "\n").encode()} if words else {}


def tokens_of(text: Text, word: str) -> list[int]:
    """The tokens of a word by the first tokenizer that reads captions, without start and end tokens."""
    rows = next(iter(text.prepare({"text": [word, ""]}).values()))
    said, nothing = rows[0].tolist(), rows[1].tolist()
    start = next((i for i, (a, b) in enumerate(zip(said, nothing, strict=True)) if a != b), len(said))
    count = next(n for n in range(len(said) - start + 1) if said[start + n :] == nothing[start : len(said) - n])
    return said[start : start + count]


def remarks(text: Text, pipelines: Sequence[data.Pipeline]) -> list[str]:
    """Notes on the captions before a run: those that are cut, and unknown words."""
    said = []
    for pipeline in pipelines:
        captions = pipeline.texts(max_examples=_MOST_LOOKED_AT)
        said += text.remarks(captions, f"captions of {pipeline.info.name}, split {pipeline.split}")
    return said


def built_adapter(spec: ConfigDict, model: systems.Model) -> Adapter | Steering:
    """The adapter that a config names, of either kind.

    Raises:
      UserError: the name or an argument is unknown, or the image encoder is missing or invalid.
    """
    name = spec.get("name")
    if name not in STEERINGS:
        if isinstance(name, str) and name not in ADAPTERS:
            raise UserError(unknown_name("adapter", name, [*ADAPTERS, *STEERINGS]))
        return ADAPTERS.build(spec)
    given: dict[str, Any] = {"downscaling": model.data.shape[0] // model.network.image_size}
    if STEERINGS[name].reads_encoder:
        options = {"image_encoder": "", "projection": "base", **spec}
        encoder = encoder_of(options["image_encoder"])
        side = jax.ShapeDtypeStruct((1, encoder.image_size, encoder.image_size, 3), jnp.float32)
        states = jax.eval_shape(lambda x: encoder.init_with_output(jax.random.key(0), x)[0], side)
        plus = options["projection"] == "plus"
        shape = states.hidden.shape[2:] if plus else (1, states.vector.shape[-1])
        given |= {"rows": shape[0], "features": shape[1]}
    return STEERINGS.build(spec, **given)


@functools.lru_cache(maxsize=4)
def encoder_of(folder: str) -> VisionTransformer:
    """The image encoder in a folder; its weights are read later.

    Raises:
      UserError: no folder is named, or it holds no encoder of pictures.
    """
    if not folder:
        raise UserError("adapter.image_encoder must name the folder of a CLIP image encoder, which reads the pictures")
    config = read_json(expanded(folder) / "config.json")
    name = class_name(config)
    found = COMPONENTS.build(name).build(config, jnp.float32) if name in COMPONENTS else None
    if not isinstance(found, VisionTransformer):
        raise UserError(f"adapter.image_encoder={folder} is not a picture encoder: its config.json names {name!r}")
    return found


def of_pictures(adapter: Adapter | Steering | None, model: systems.Model) -> tuple[Conditioner, ...]:
    """The conditioners for the slots that the adapter reads."""
    if adapter is None or adapter.changes_parameters:
        return ()
    encoder = encoder_of(adapter.image_encoder) if adapter.reads_encoder else None
    return (adapter.conditioner(model.network, model.data, encoder),)


def picture_shapes(parts: tuple[Conditioner, ...]) -> dict[str, Any]:
    """The frozen groups of these conditioners, as ShapeDtypeStruct."""
    found = {f"{systems.CONDITIONING}/{next(iter(part.gives))}": part for part in parts if part.pictures is not None}
    return {name: jax.eval_shape(lambda part=part: part.init_params(jax.random.key(0))) for name, part in found.items()}


def picture_sources(adapter: Adapter | Steering | None, parts: tuple[Conditioner, ...]) -> Mapping[str, Source]:
    """The sources of the frozen encoders in these conditioners."""
    return {
        name: Source(
            where=str(expanded(adapter.image_encoder).absolute()),
            read=lambda: read_part(adapter.image_encoder).params,
        )
        for name in picture_shapes(parts)
    }


def check_pictures(adapter: Adapter | Steering | None, config: ConfigDict, info: DatasetInfo) -> None:
    """Raise UserError if the data lacks the pictures that the adapter reads, or would change them."""
    if adapter is None or adapter.changes_parameters:
        return
    mirrored = config.data.flip or config.data.augmentation.name != "none"
    if mirrored:
        raise UserError(
            f"adapter {adapter.name} is told a picture beside each one, which data.flip and data.augmentation would "
            "not change with it: set data.flip=False and data.augmentation to none"
        )
    if not adapter.reads_encoder and "control" not in info.fields:
        raise UserError(
            f"adapter {adapter.name} needs control pictures, but data set {config.data.dataset} has none: set "
            'data.options.control="edges" of scenes, or give a folder whose metadata.jsonl names them, '
            '{"file_name": ..., "text": ..., "control": ...}'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """Applies the conditioners' preparation to the raw fields of examples, on the host (`data.Pipeline.prepare`)."""

    parts: tuple[Conditioner, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.prepares))

    def beside(self, shape: tuple[int, ...]) -> "Preparation":
        """The same beside pictures of this shape."""
        return Preparation(parts=tuple(part.beside(shape) for part in self.parts))

    def __call__(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        return {k: v for part in self.parts for k, v in part.prepare({n: raw[n] for n in part.prepares}).items()}
