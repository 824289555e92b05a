"""A whole published model in one file, in the key layout of its authors, read and written.

    sd15, sd2   model.diffusion_model.   first_stage_model.   cond_stage_model.
    sdxl        model.diffusion_model.   first_stage_model.   conditioner.embedders.0. and .1.
    sd3         model.diffusion_model.   first_stage_model.   text_encoders.clip_l., .clip_g. and .t5xxl.
    flux        the bare names of the transformer; or as sd3, the first stage under vae. or first_stage_model.

Such a file holds only tensors. Sizes and the scheduler come from a folder of the same model (`config`, or the folder in
which the file lies), or else from the published model with these names. Tokenizers and missing parts come from that
folder, or from folders that the caller names.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.data.folder_tokenizers import read_tokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json
from diffusion_jax.pipelines.families import family_of
from diffusion_jax.pipelines.parts import INDEX, UNREAD, Parts, Source, placing, read_scheduler
from diffusion_jax.pipelines.published import Published, published
from diffusion_jax.pipelines.scheduling import Scheduler
from diffusion_jax.weights.components import Component, Part, component_of, read_params, read_part
from diffusion_jax.weights.names import WeightMap
from diffusion_jax.weights.published.autoencoders import coder_map
from diffusion_jax.weights.published.clip import clip_text_map
from diffusion_jax.weights.published.openclip import openclip_map
from diffusion_jax.weights.published.t5 import t5_map
from diffusion_jax.weights.reading import read_weights, write_state
from diffusion_jax.weights.streaming import Streamed

Names = Callable[[Component, nn.Module, Collection[str]], WeightMap]
"""The map of a module, given the names that a file has; () of a file that is to be written."""
_NETWORK, _STAGE, _CLIP_L = "model.diffusion_model.", "first_stage_model.", "text_encoders.clip_l.transformer."
# Tensors of training, of the schedule and of parts that are not here: no picture depends on them.
_UNREAD = re.compile(
    r"(model_ema|denoiser|embedding_manager)\..*|(first_stage_model|vae)\.(loss|model_ema)\..*|"
    r"(sqrt_|log_one_minus_|posterior_|alphas_cumprod|lvlb_)\w*|betas|logvar|scale_factor|global_step|"
    r".*[._](logit_scale|spiece_model)"
)


def _network(component: Component, module: nn.Module, names: Collection[str]) -> WeightMap:
    return dataclasses.replace(component.authors_map(module), ignored=())


def _coder(component: Component, module: nn.Module, names: Collection[str]) -> WeightMap:
    return coder_map(module, names or ("encoder.mid.block_1.norm1.weight",))


def _clip(component: Component, module: nn.Module, names: Collection[str]) -> WeightMap:
    return clip_text_map(module, names or ("text_model.embeddings.position_ids",))


def _open_clip(component: Component, module: nn.Module, names: Collection[str]) -> WeightMap:
    return openclip_map(module, names)


def _t5(component: Component, module: nn.Module, names: Collection[str]) -> WeightMap:
    return t5_map(module, names)


@dataclasses.dataclass(frozen=True)
class Section:
    """The tensors of one part: the part's name, the prefixes of the tensors, and the map of their names."""

    part: str
    starts: tuple[str, ...]
    names: Names


_UNET, _VAE = Section("unet", (_NETWORK,), _network), Section("vae", (_STAGE, "vae."), _coder)
_TRANSFORMER, _LARGE = Section("transformer", (_NETWORK, ""), _network), Section("text_encoder", (_CLIP_L,), _clip)
_LONG = "text_encoders.t5xxl.transformer."
LAYOUTS: Mapping[str, tuple[Section, ...]] = {
    "sdxl": (
        _UNET,
        _VAE,
        Section("text_encoder", ("conditioner.embedders.0.transformer.",), _clip),
        Section("text_encoder_2", ("conditioner.embedders.1.model.",), _open_clip),
    ),
    "sdxl_refiner": (_UNET, _VAE, Section("text_encoder_2", ("conditioner.embedders.0.model.",), _open_clip)),
    "sd2": (_UNET, _VAE, Section("text_encoder", ("cond_stage_model.model.",), _open_clip)),
    "sd15": (_UNET, _VAE, Section("text_encoder", ("cond_stage_model.transformer.",), _clip)),
    "sd3": (
        _TRANSFORMER,
        _VAE,
        _LARGE,
        Section("text_encoder_2", ("text_encoders.clip_g.transformer.",), _clip),
        Section("text_encoder_3", (_LONG,), _t5),
    ),
    "flux": (_TRANSFORMER, _VAE, _LARGE, Section("text_encoder_2", (_LONG,), _t5)),
}
"""The sections of each layout."""


def layout_of(names: Collection[str]) -> str | None:
    """The layout with tensors of these names; None if there is none."""
    if any(name.endswith("joint_blocks.0.x_block.attn.qkv.weight") for name in names):
        return "sd3"
    if any(name.endswith("double_blocks.0.img_attn.qkv.weight") for name in names):
        return "flux"
    if f"{_NETWORK}input_blocks.0.0.weight" not in names:
        return None
    for name in ("sdxl", "sdxl_refiner", "sd2", "sd15"):
        if any(one.startswith(LAYOUTS[name][-1].starts) for one in names):
            return name
    return None


def model_in(names: Mapping[str, np.ndarray], layout: str) -> tuple[str, str]:
    """The published model with the names and sizes of a file's tensors, and a remark on what the names leave open."""
    if layout == "sd15":
        inputs = names[f"{_NETWORK}input_blocks.0.0.weight"].shape[1]
        return ("sd15_inpainting" if inputs == 9 else "sd15"), ""
    if layout == "sd2":
        return "sd2", ", whose network predicts v; a base model of 512 pixels predicts the noise: config= says so"
    if layout == "sd3":
        blocks = {name.split("joint_blocks.")[1].split(".")[0] for name in names if "joint_blocks." in name}
        dual = any(".x_block.attn2." in name for name in names)
        return ("sd35_medium" if dual else "sd35_large" if len(blocks) > 24 else "sd3_medium"), ""
    if layout == "flux":
        return ("flux_dev" if any("guidance_in." in name for name in names) else "flux_schnell"), ""
    return layout, ""


class _Named(Mapping[str, np.ndarray]):
    """The tensors of a section, by their names without its prefix."""

    def __init__(self, state: Mapping[str, np.ndarray], start: str, names: Collection[str]):
        self._state, self._start, self._names = state, start, [name.removeprefix(start) for name in names]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._state[self._start + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_single_file(file: Source) -> bool:
    """Whether a file is a whole model, or the network of one, in a layout that is read here."""
    file = expanded(file)
    if not file.is_file() or file.suffix not in (".safetensors", ".ckpt"):
        return False
    return layout_of(list(_opened(file)[0])) is not None


def _opened(file: Path) -> tuple[Mapping[str, np.ndarray], dict[str, np.dtype]]:
    """The tensors of a file and their types; those of safetensors stay in it until they are asked for."""
    if file.suffix == ".safetensors":
        streamed = Streamed([file])
        return streamed, streamed.dtypes
    state = read_weights(file).tensors
    return state, {name: value.dtype for name, value in state.items()}


def read_single_file(
    file: Source,
    *,
    dtype: DTypeLike = jnp.float32,
    held_in: DTypeLike | None = None,
    config: Source | None = None,
    scheduler: Scheduler | Mapping[str, Any] | str | None = None,
    place: Any = None,
    **others: Source,
) -> tuple[Parts, tuple[str, ...]]:
    """The parts of a single file, and notes on what comes from elsewhere; nothing is returned before all are there.

    Args:
      file: .safetensors, or what PyTorch writes.
      dtype, held_in, place: as in `read_parts`.
      config: a folder of the same model, with sizes, scheduler, tokenizers and parts that the file does not have.
        By default the folder in which the file lies, if it is such a folder.
      scheduler: instead of the folder's, or the published one.
      others: folders of parts, such as tokenizer, tokenizer_2 or text_encoder_3.

    Raises:
      UserError: the file has another layout, a tensor belongs to no part, or a part is missing.
    """
    file = expanded(file)
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    state, dtypes = _opened(file)
    layout, origin, notes = _known(file, state, config)
    if isinstance(origin, _FromPublished) and not isinstance(scheduler, Scheduler | Mapping):
        notes.append(f"scheduler of {file.name}: the published one, {origin.scheduler.kind}")
    unknown = [part for part in others if part not in origin.parts and not part.startswith("tokenizer")]
    if unknown:
        raise UserError(f"a model in the layout of {layout} has no part {unknown[0]}")
    divided = _divided(file, state, layout)
    notes += [f"{part} of {file.name} is left out: the folder has none" for part in divided if part not in origin.parts]
    sections = {part: found for part, found in divided.items() if part in origin.parts and part not in others}
    absent = [part for part in (*origin.parts, *origin.tokenizers) if part not in sections]
    places = {**origin.places, **{part: _elsewhere(part, file, others, origin) for part in absent}}
    found = _chosen(origin.scheduler, scheduler)
    tokenizers = {part: read_tokenizer(places[part]) for part in origin.tokenizers}
    models = {}
    for part, config_of_part in origin.parts.items():
        at = placing(part, place)
        if part not in sections:
            models[part] = read_part(places[part], dtype, held_in=held_in or dtype, place=at)
            continue
        section, start, names = sections[part]
        kept = {name.removeprefix(start): dtypes[name] for name in names}
        view = _Named(state, start, names)
        models[part] = _part(file, section, config_of_part, view, kept, dtype, held_in or dtype, at)
    parts = Parts(index=origin.index, folders=places, models=models, tokenizers=tokenizers, scheduler=found)
    return parts, tuple(notes)


def _known(file: Path, state: Mapping[str, np.ndarray], config: Source | None) -> tuple[str, Any, list[str]]:
    """The layout of a file, the source of its sizes, and notes on what is assumed about it.

    Raises:
      UserError: the layout is unknown, or there is no such folder.
    """
    layout = layout_of(list(state))
    if layout is None:
        raise UserError(
            f"{file} is not a model in one file: its tensors are not named as in Stable Diffusion 1, 2, XL, 3 or Flux"
            + ("; it is an adapter (LoRA)" if any("lora" in name for name in state) else "")
        )
    folder = expanded(config) if config is not None else file.parent if (file.parent / INDEX).is_file() else None
    if folder is None:
        name, remark = model_in(state, layout)
        return (
            layout,
            _FromPublished(published(name)),
            [f"sizes of {file.name}: those of the published model {name}{remark}"],
        )
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {INDEX}: config= wants a folder of the same model as diffusers writes it")
    beside = f"sizes, scheduler and tokenizers of {file.name}: those of {folder}, where it lies"
    return layout, _FromFolder(folder), [beside] if config is None else []


def _chosen(own: Scheduler, given: Scheduler | Mapping[str, Any] | str | None) -> Scheduler:
    """The scheduler that is given, else the model's own."""
    if isinstance(given, Scheduler):
        return given
    if isinstance(given, Mapping):
        return Scheduler.read(given, origin="the given scheduler")
    return own if given is None else own.replaced(given)


class _FromFolder:
    """The contents of a model's folder: configs, tokenizers, scheduler, and the places of its parts."""

    def __init__(self, folder: Path):
        self.index = dict(read_json(folder / INDEX))
        listed = {k: v for k, v in self.index.items() if isinstance(v, list) and len(v) == 2 and v[1] is not None}
        names = [name for name in listed if name not in UNREAD]
        self.tokenizers = [name for name in names if name.startswith("tokenizer")]
        parts = [name for name in names if not name.startswith(("tokenizer", "scheduler"))]
        self.parts = {name: read_json(folder / name / "config.json") for name in parts}
        self.places = {name: folder / name for name in names}
        self.scheduler = read_scheduler(self.places, None)


class _FromPublished:
    """The contents for a published model, which has no parts on disk."""

    def __init__(self, model: Published):
        self.parts, self.tokenizers = dict(model.models), list(model.lengths)
        self.places: dict[str, Path] = {}
        self.scheduler = Scheduler.read(model.scheduler)
        self.index = {
            "_class_name": model.pipeline,
            **model.index,
            "scheduler": ["diffusers", self.scheduler.kind],
            **{name: ["transformers", "T5TokenizerFast" if length > 77 else "CLIPTokenizer"]
               for name, length in model.lengths.items()},
            **{name: _class_of(config) for name, config in model.models.items()},
        }  # fmt: skip


def _class_of(config: Mapping[str, Any]) -> list[str]:
    own = config.get("_class_name")
    return ["diffusers", own] if own else ["transformers", config["architectures"][0]]


def _elsewhere(part: str, file: Path, others: Mapping[str, Source], origin: Any) -> Path:
    """The folder of a part that the file does not have.

    Raises:
      UserError: there is none.
    """
    if part in others:
        return expanded(others[part])
    if part in origin.places:
        return origin.places[part]
    raise UserError(
        f"{file.name} holds no {part}: give a folder of the same model as diffusers writes it, config=FOLDER "
        f"(--model_config), or {part}=FOLDER"
    )


def _divided(file: Path, state: Mapping[str, np.ndarray], layout: str) -> dict[str, tuple[Section, str, list[str]]]:
    """The sections of a file, each with its prefix and its names.

    Raises:
      UserError: a tensor belongs to no section.
    """
    left, found = [name for name in state if not _UNREAD.fullmatch(name)], {}
    for section in sorted(LAYOUTS[layout], key=lambda one: "" in one.starts):  # without a prefix: the rest
        for start in section.starts:
            names = [name for name in left if name.startswith(start)]
            if names:
                found[section.part] = (section, start, names)
                left = [name for name in left if not name.startswith(start)]
                break
    if left:
        raise UserError(f"{file}: {left[0]} and {len(left) - 1} more tensors belong to no part of a {layout} model")
    return found


def _part(
    file: Path,
    section: Section,
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    dtypes: Mapping[str, np.dtype],
    dtype: DTypeLike,
    held_in: DTypeLike,
    place: Any,
) -> Part:
    component = component_of(config, section.part)
    try:
        module = component.build(config, dtype)
        params = read_params(
            config, module, section.names(component, module, list(state)), state, held_in=held_in, place=place
        )
    except UserError as error:
        raise UserError(f"{section.part} of {file}: {error}") from error
    found = Part(module=module, params=params, config=config, dtypes=dtypes)
    names = component.weight_map(module, ()).names()
    return dataclasses.replace(found, dtypes=dict.fromkeys(names, found.widest))


def write_single_file(parts: Parts, target: Source) -> str:
    """Write a model as one file in its authors' layout; returns the name of the layout.

    Raises:
      UserError: there is no such layout for the model.
    """
    layout = _layout_for(parts)
    found: dict[str, np.ndarray] = {}
    for section in LAYOUTS[layout]:
        if section.part not in parts.models:  # a third text encoder may be left out
            continue
        part = parts.models[section.part]
        component = component_of(part.config, section.part)
        tensors = part.renamed(section.names(component, part.module, ()))
        start = section.starts[0]
        found |= {f"{start}{name}": value for name, value in tensors.items()}
    write_state(expanded(target), found, {"format": "pt"})
    return layout


def _layout_for(parts: Parts) -> str:
    kind = str(parts.index.get("_class_name"))
    reading = family_of(kind).reading
    found = {
        "sd": "sd2" if getattr(parts.models[parts.network].module, "linear_projection", False) else "sd15",
        "xl": "sdxl" if "text_encoder" in parts.models else "sdxl_refiner",
    }.get(reading, reading)
    beyond = sorted(set(parts.models) - {section.part for section in LAYOUTS.get(found, ())})
    if found not in LAYOUTS or beyond:
        what = f"its {beyond[0]} has no place there" if found in LAYOUTS else f"there are: {', '.join(LAYOUTS)}"
        raise UserError(f"a {kind} cannot be written as one file: {what}; give a folder as the target")
    return found
