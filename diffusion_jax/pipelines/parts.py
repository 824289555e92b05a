"""Reading and writing of published folders: model_index.json above the folders of its parts.

    unet | transformer [unconditional_transformer]   the network
    vae                                              the first stage
    text_encoder[_2, _3], tokenizer[_2, _3]          from prompts to conditions
    scheduler                                        noise levels and sampler
    controlnet                                       beside the network, one or several, given by the caller

Parts that no picture depends on (safety_checker, feature_extractor) are not read.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

import diffusion_jax.weights.published  # noqa: F401  (fills COMPONENTS)
from diffusion_jax.data.folder_tokenizers import FolderTokenizer, read_tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json, whole_directory
from diffusion_jax.pipelines.scheduling import Scheduler
from diffusion_jax.weights.components import Part, read_part
from diffusion_jax.weights.folders import STEMS
from diffusion_jax.weights.reading import write_state

INDEX = "model_index.json"
NETWORKS = ("unet", "transformer")
_WRITTEN = (".json", ".txt", ".model", ".jinja")
UNREAD = ("safety_checker", "feature_extractor", "image_encoder", "prompt_enhancer_head")
Source = Path | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a pipeline.

    Attributes:
      index: what model_index.json holds.
      folders: where each part was read from.
      models: networks, first stage and text encoders by name; a ControlNet is "controlnet_<i>".
      tokenizers: tokenizers by name.
      scheduler: the noise scheduler.
      image_encoder: the folder of a picture encoder, which is read only if an adapter needs it.
    """

    index: Mapping[str, Any]
    folders: Mapping[str, Path]
    models: Mapping[str, Part]
    tokenizers: Mapping[str, FolderTokenizer]
    scheduler: Scheduler
    low_scheduler: Scheduler | None = None
    image_encoder: Path | None = None
    placed: dict[Any, Any] = dataclasses.field(default_factory=dict, compare=False)

    def low_alpha(self, level: int) -> float:
        """The share of a small picture that the upscaler keeps at a noise level."""
        if self.low_scheduler is None:
            raise UserError("the model lacks low_res_scheduler, which an upscaler needs")
        squares = self.low_scheduler.table()
        if not 0 <= level < len(squares):
            raise UserError(f"noise_level={level} must be from 0 to {len(squares) - 1}")
        return float(np.sqrt(squares[level]))

    @property
    def network(self) -> str:
        """The name of the network."""
        return next(name for name in NETWORKS if name in self.models)

    @property
    def controlnets(self) -> list[str]:
        """The names of the ControlNets."""
        return [name for name in self.models if name.startswith("controlnet_")]

    def save(self, target: Source) -> None:
        """Write a folder that the reference library and this one read, completely or not at all."""
        with whole_directory(expanded(target)) as folder:
            for name in dict.fromkeys((*self.folders, *self.models, "scheduler")):
                inner = folder / ("controlnet" if self.controlnets == [name] else name)
                inner.mkdir()
                self._describe(name, inner)
                if name in self.models:
                    stem = STEMS[1] if name.startswith("text_encoder") else STEMS[0]
                    write_state(inner / f"{stem}.safetensors", self.models[name].state(), {"format": "pt"})
            (folder / INDEX).write_bytes(_json(dict(self.index)))

    def _describe(self, name: str, inner: Path) -> None:
        """Write a part's config: as it was in its folder, or from its fields."""
        origin = self.folders.get(name)
        if origin is not None:
            for file in sorted(origin.iterdir()):
                if file.suffix in _WRITTEN and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, inner / file.name)
        elif name == "scheduler":
            (inner / "scheduler_config.json").write_bytes(_json(dict(self.scheduler.config)))
        else:
            (inner / "config.json").write_bytes(_json(dict(self.models[name].config)))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def read_parts(
    folder: Source,
    *,
    dtype: DTypeLike = jnp.float32,
    held_in: DTypeLike | None = None,
    controlnet: Source | Sequence[Source] | None = None,
    scheduler: Scheduler | Mapping[str, Any] | str | None = None,
    place: Any = None,
    **others: Source | None,
) -> Parts:
    """The parts of a folder; nothing is returned before all are there.

    Args:
      folder: with model_index.json.
      dtype: type of activations.
      held_in: type of the stored parameters; by default that of activations.
      controlnet: folders of ControlNets.
      scheduler: used instead of the folder's own: a config, or the name of a sampler.
      place: (name of the part, path, parameter) -> its entry in the tree of parameters.
      others: for any part, a folder to use instead; None leaves it out. Any other name is a field of
        model_index.json.

    Raises:
      UserError: there is no such folder, or a part is missing, damaged or unknown here.
    """
    folder = expanded(folder)
    index = dict(_read_index(folder))
    listed = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    places: dict[str, Path] = {}
    encoder = others.pop("image_encoder", _listed_encoder(folder, listed))
    for name, value in listed.items():
        given = others.pop(name, name if value[1] is not None else None)
        if name in UNREAD or given is None:
            index[name] = value if name in UNREAD else [None, None]
            continue
        places[name] = folder / name if given == name else expanded(given)
        if not places[name].is_dir():
            raise UserError(f"{folder / INDEX} names {name} ({value[1]}), but there is no folder {places[name]}")
    low = others.pop("low_res_scheduler", None) or places.pop("low_res_scheduler", None)
    index |= others
    nets = [controlnet] if isinstance(controlnet, str | Path) else list(controlnet or ())
    nets += [places.pop("controlnet")] if "controlnet" in places and not nets else []
    places |= {f"controlnet_{number}": expanded(net) for number, net in enumerate(nets)}
    if "scheduler" not in places and scheduler is None:
        raise UserError(f"{folder} has no scheduler: give one")
    if not any(name in places for name in NETWORKS) or "vae" not in places:
        there = ", ".join(places) or "nothing"
        raise UserError(f"{folder} lacks a part: a pipeline needs a unet or a transformer, and a vae; it has {there}")

    found = read_scheduler(places, scheduler)
    lower = None if low is None else read_scheduler({"scheduler": low}, low if isinstance(low, Mapping) else None)
    tokenizers = {name: read_tokenizer(path) for name, path in places.items() if name.startswith("tokenizer")}
    models = {}
    for name, path in places.items():
        if name.startswith(("tokenizer", "scheduler")):
            continue
        models[name] = read_part(path, dtype, held_in=held_in or dtype, place=placing(name, place))
    return Parts(
        index=index, folders=places, models=models, tokenizers=tokenizers, scheduler=found, low_scheduler=lower,
        image_encoder=None if encoder is None else expanded(encoder),
    )  # fmt: skip


def _listed_encoder(folder: Path, listed: Mapping[str, Any]) -> Path | None:
    """The folder of the image encoder that model_index.json names, if it is there."""
    named = listed.get("image_encoder", (None, None))[1] is not None
    return folder / "image_encoder" if named and (folder / "image_encoder").is_dir() else None


def placing(name: str, place: Any) -> Any:
    """For the part `name`: (path, parameter) -> the placed parameter; the next one is read only after that."""

    def placed(path: tuple[str, ...], leaf: np.ndarray) -> Any:
        return jax.block_until_ready(jax.device_put(leaf) if place is None else place(name, path, leaf))

    return placed


def read_scheduler(places: Mapping[str, Any], given: Scheduler | Mapping[str, Any] | str | None) -> Scheduler:
    if isinstance(given, Scheduler):
        return given
    if isinstance(given, Mapping):
        return Scheduler.read(given, origin="the given scheduler")
    file = places["scheduler"] / "scheduler_config.json"
    own = Scheduler.read(read_json(file), origin=file)
    return own if given is None else own.replaced(given)


def _read_index(folder: Path) -> Mapping[str, Any]:
    if not folder.exists():
        raise UserError(f"there is no model in {folder}: no such file or folder")
    if folder.is_file():
        raise UserError(f"{folder} is a file{_of_adapter(folder)}: give the folder that holds {INDEX}")
    if not (folder / INDEX).is_file():
        adapter = next((file for file in sorted(folder.glob("*lora*.safetensors"))), None)
        hint = f"; {adapter.name} there is an adapter, not a model" if adapter else ""
        raise UserError(f"{folder} has no {INDEX}: it is not a folder of a text-to-image pipeline{hint}")
    return read_json(folder / INDEX)


def _of_adapter(file: Path) -> str:
    """The kind of a file by the names in it."""
    from diffusion_jax.weights.streaming import Streamed

    try:
        names = list(Streamed([file])) if file.suffix == ".safetensors" else []
    except UserError:
        return ""
    adapter = any("lora" in name or "dora" in name for name in names)
    return " of a LoRA adapter, which changes a model and is none" if adapter else " of single weights"
