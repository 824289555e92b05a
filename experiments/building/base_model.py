"""Training that starts from an existing model: a run, a folder of `save_model`, or a published pipeline.

    init.folder = "models/sd15"
    adapter = {"name": "lora", "rank": 4, "targets": (...)}        without an adapter the model itself is trained

Network, process, first stage and conditioners are those of the model. It is the source of every group of its
parameters: trained groups start there, frozen ones stay as they are, and no checkpoint holds them.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax import conditioning, data, systems, training
from diffusion_jax.adapters import Adapter, Steering
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded
from diffusion_jax.loading import load_base
from diffusion_jax.models.autoencoders import Codec
from diffusion_jax.objectives import with_copies
from diffusion_jax.pipelines.model import model_of
from diffusion_jax.pipelines.published import parts_of
from diffusion_jax.rng import fold_name, stream_key
from diffusion_jax.schedulers import Process
from diffusion_jax.specs import FRAME, MASK, SOURCE
from experiments.building import conditions, fitting
from experiments.building.sources import Source, read_groups
from experiments.building.wiring import Experiment
from experiments.ground.fields import ADAPTER, INIT

_BROUGHT = ("model", "process", "conditioning")  # groups of a config that the model replaces
TEXT_ENCODERS = (rf"{systems.CONDITIONING}/.*/(\w*qkv|query|key|value|attention_out|out)/kernel",)
"""The attention of text encoders, which an adapter also changes if `train.text_encoder` is set."""
_UNREAD = ("first_stage.path", "teacher.workdir")


class Base:
    """A model on disk; its parameters are read on request, and forgotten by `release`.

    If a plan needs only shapes and the folder does not exist, the published model of that name replaces it.
    """

    def __init__(self, config: ConfigDict, dtype: Any, *, planned: bool = False):
        folder = expanded(config.init.folder)
        self.where = str(folder.absolute())
        self._dtype, self._remat, self._side = dtype, config.init.remat, config.data.image_size
        self._params: Any = None
        self.published = config.init.published if planned and not folder.exists() else ""
        self.model = self._read()
        self.shapes = {name: jax.tree.map(_shape, group) for name, group in self._params.items()}
        if self.published:
            self.release()

    def group(self, name: str) -> Any:
        """One group of its parameters."""
        if self._params is None:
            self._read()
        return self._params[name]

    def release(self) -> None:
        """Forget the parameters, which are on the devices now."""
        self._params = None

    def _read(self) -> systems.Model:
        if self.published:
            model, self._params = _published(self.published, self._dtype, self._side)
        else:
            model, self._params = load_base(self.where, dtype=self._dtype, image_size=self._side)
        model = _computing_in(model, self._dtype)
        if self._remat == "none":
            return model
        if not hasattr(model.network, "remat"):
            raise UserError(f"init.remat={self._remat}: the network of {self.where} recomputes nothing: set none")
        return dataclasses.replace(model, network=model.network.clone(remat=self._remat))


@dataclasses.dataclass(frozen=True)
class BaseExperiment(Experiment):
    """Everything named in a config that starts from a model; it uses the same loop as any other training.

    Attributes:
      shared: the model, if another experiment has read it already.
    """

    has_base: ClassVar[bool] = True

    is_planned: bool = False
    shared: Base | None = None

    @classmethod
    def planned(cls, config: ConfigDict, devices: tuple[jax.Device, ...] | None = None) -> Self:
        """An experiment for planning: neither the folder of the model nor the data need exist."""
        experiment = cls(config, devices=devices, is_planned=True)
        try:
            info = experiment._pipeline(config.data.split).described()
        except UserError:  # reported by `assumed`
            info = data.DatasetInfo(
                name=config.data.dataset,
                split=config.data.split,
                num_examples=0,
                spec=experiment.base.model.data,
                fields=("text",),
            )
        return dataclasses.replace(experiment, stored_info=info)

    @property
    def assumed(self) -> tuple[str, ...]:
        """What replaces a missing model and its missing data."""
        lines, init = [], self.config.init
        if self.base.published:
            lines.append(f"{init.folder} is not there: the sizes are those of init.published, {init.published}")
        if self.is_planned and not self.info.num_examples:
            side, name = self.base.model.data.shape[0], self.config.data.dataset
            lines.append(f"{name} is not there: captioned pictures of {side}x{side} pixels stand in its place")
        return tuple(lines)

    def __post_init__(self):
        super().__post_init__()
        _ = self.base  # read here, not while a program is traced

    @cached_property
    def base(self) -> Base:
        """The model that `init.folder` names."""
        return self.shared or Base(self.config, self._dtype, planned=self.is_planned)

    @property
    def title(self) -> str:
        """The adapter, if there is one, and the model."""
        where = self.config.init.folder
        return where if self.adapter is None else f"{self.adapter.name} on {where}"

    @property
    def network(self) -> Any:
        """The network of the model."""
        return self.base.model.network

    @property
    def codec(self) -> Codec:
        """Its first stage."""
        return self.base.model.codec

    @property
    def stated_process(self) -> Process:
        """Its process."""
        return self.base.model.process

    @property
    def process(self) -> Process:
        """Its process."""
        return self.base.model.process

    @property
    def num_classes(self) -> int:
        """Number of classes that the network has as a condition; 0 for none."""
        return sum(part.num_classes for part in self.base.model.conditioning.parts if "label" in part.gives)

    @cached_property
    def told_text(self) -> Any:
        """The conditioner of texts; None if the network has no text condition."""
        return next((part for part in self.base.model.conditioning.parts if "text" in part.prepares), None)

    @property
    def told_beside(self) -> tuple[conditioning.Conditioner, ...]:
        """The conditioners for how a picture was cropped."""
        parts = self.base.model.conditioning.parts
        return tuple(part for part in parts if part.prepares == (FRAME,))

    @property
    def text(self) -> Any:
        """The same conditioner, which brings its own word list."""
        return self.told_text

    @property
    def told_picture(self) -> None:
        """None: a model that sees a picture cannot be started from, see `check`."""
        return None

    def _with_words(self, pipeline: data.Pipeline | None) -> Any:
        return self.told_text

    def _pipeline(self, split: str, **changes: Any) -> data.Pipeline:
        return super()._pipeline(split, **{"image_size": self.config.data.image_size or self._side, **changes})

    @property
    def _side(self) -> int:
        return self.base.model.data.shape[0]

    @property
    def remarks(self) -> list[str]:
        """Notes on the data, to be printed before training, and the picture size if the model decides it."""
        guessed = [] if self.config.data.image_size else [f"pictures of {self._side} pixels, as the model makes them"]
        return [*guessed, *super().remarks]

    @cached_property
    def told_pictures(self) -> tuple[conditioning.Conditioner, ...]:
        """The conditioners for the slots of an adapter that steers by pictures."""
        return conditions.of_pictures(self.adapter, self.base.model)

    @cached_property
    def conditioning(self) -> conditioning.Conditioning:
        """The conditioners of the model and of the adapter; everything asked is dropped together with
        `train.conditioning_dropout`."""
        scale, parts = self.config.train.guidance_embedding, self.base.model.conditioning.parts
        if scale is not None:
            parts = [dataclasses.replace(part, scale=scale) if "guidance" in part.gives else part for part in parts]
        found = dataclasses.replace(self.base.model.conditioning, parts=(*parts, *self.told_pictures), dropout={})
        dropout = {found.asked: self.config.train.conditioning_dropout} if found.asked else {}
        if self.told_pictures:
            dropout |= self.adapter.dropout(found.asked)
        return dataclasses.replace(found, dropout=dropout)

    @cached_property
    def adapter(self) -> Adapter | Steering | None:
        """The adapter to train instead of the model."""
        if ADAPTER not in self.config:
            return None
        adapter, word = conditions.built_adapter(self.config.adapter, self.base.model), self.config.data.trigger
        if not adapter.changes_parameters:
            return adapter
        own = TEXT_ENCODERS if self.config.train.text_encoder else ()
        adapter = dataclasses.replace(adapter, targets=(*adapter.targets, *own))
        return adapter.of_word(word, conditions.tokens_of(self.told_text, word)) if word and self.told_text else adapter

    @cached_property
    def model(self) -> systems.Model:
        """The model, with the adapter."""
        own = () if self.adapter is None else (self.adapter,)
        made = fitting.recipe(self.config, self.objective)
        return dataclasses.replace(self.base.model, conditioning=self.conditioning, adapters=own, sampling=made)

    @property
    def teacher_model(self) -> systems.Model | None:
        """The unchanged model of the folder, if the objective learns from a teacher."""
        return self.base.model if "teacher" in self.objective.needs else None

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Every group of the model's parameters comes from it."""
        found = {
            name: Source(where=self.base.where, read=lambda name=name: self.base.group(name), of_model=True)
            for name in self.base.shapes
        }
        return {**found, **conditions.picture_sources(self.adapter, self.told_pictures)}

    @property
    def trained(self) -> tuple[str, ...]:
        """Patterns of the trained groups; by default the adapter, or else the network."""
        if self.config.train.trained:
            return tuple(self.config.train.trained)
        if self.adapter is not None:
            return (re.escape(f"{systems.ADAPTERS}/{self.adapter.name}"), training.OBJECTIVE)
        own = (f"{systems.CONDITIONING}/.*",) if self.config.train.text_encoder else ()
        return (systems.NETWORK, *own, training.OBJECTIVE)

    def check(self) -> None:
        """Build everything that the config names, so that a wrong name is an error before training starts.

        Raises:
          UserError: the first thing that is wrong, or that conflicts with the model and would be ignored.
        """
        self._check_unread()
        self._check_data()
        super().check()

    def _check_unread(self) -> None:
        stated = [group for group in _BROUGHT if self.config.get(group)]
        for name in _UNREAD:
            group, _, field = name.partition(".")
            stated += [name] if self.config[group][field] else []
        if stated:
            raise UserError(
                f"{', '.join(stated)}: {INIT} starts from the model in {self.config.init.folder}, which has its own; "
                "leave them out"
            )

    def _check_data(self) -> None:
        """Raise UserError if the data does not have the model's form or its classes."""
        model, info, config = self.base.model, self.info, self.config
        if info.first_stage:
            raise UserError(f"{config.data.dataset} holds latents, but {INIT} encodes in the step: give it pictures")
        if {SOURCE, MASK} & {name for part in model.conditioning.parts for name in part.reads}:
            raise UserError(
                f"the model in {config.init.folder} sees a picture beside its input, which this config does not give: "
                "train it by its own config, such as configs/edits.py, or start from another model"
            )
        there, here = model.data, info.spec
        if (there.kind, there.shape) != (here.kind, here.shape):
            raise UserError(
                f"the model in {config.init.folder} diffuses {there.kind} {list(there.shape)}, but the data is "
                f"{here.kind} {list(here.shape)}: set data.image_size={there.shape[0]}, or give other data"
            )
        if self.num_classes not in (0, info.num_classes) or (config.train.class_conditional and not self.num_classes):
            raise UserError(
                f"the model in {config.init.folder} is told {self.num_classes or 'no'} classes, but "
                f"{config.data.dataset} has {info.num_classes}"
            )
        if config.train.text_encoder:
            self._check_text_encoder()
        if config.sampling.clip_x0 and model.codec.learned:
            raise UserError("sampling.clip_x0 is for pixels in [-1, 1]; latents have no such bounds: set it to False")
        conditions.check_pictures(self.adapter, config, info)
        if self.adapter is not None:
            self._check_reach()
            if self.objective.copies:
                raise UserError(
                    f"objective {config.objective.name} trains a copy of the whole network beside it, but an adapter "
                    "trains none: leave the adapter out"
                )

    def _check_text_encoder(self) -> None:
        """Raise UserError if there is no text encoder to train, or if the config says itself what is trained."""
        if not any(name.startswith(f"{systems.CONDITIONING}/") for name in self.base.shapes):
            raise UserError(f"train.text_encoder: the model in {self.config.init.folder} has no text encoder to train")
        if self.config.train.trained:
            raise UserError(
                "train.trained says which groups are trained: leave out train.text_encoder or train.trained"
            )

    def _check_reach(self) -> None:
        """Raise UserError if the adapter changes parameters that do not affect the loss."""
        own = jax.eval_shape(self._init_adapters, self.base.shapes)[f"{systems.ADAPTERS}/{self.adapter.name}"]
        beyond = sorted(path for path in own if path.startswith(f"{systems.CODEC}/"))
        if beyond:
            raise UserError(
                f"adapter.targets find {beyond[0]} and {len(beyond) - 1} more of the first stage, which is not "
                f"adapted: let the patterns begin with {systems.NETWORK}/"
            )

    def _init_adapters(self, base: Mapping[str, Any], seed: int | jax.Array | None = None) -> dict[str, Any]:
        return self.model.init_adapters(stream_key(self.config.seed if seed is None else seed, "init"), base)

    def init_state(self, seed: int | jax.Array | None = None) -> training.TrainState:
        """The form of the state before the first step, with zeros instead of the model (`first_state`)."""
        shapes = {**self.base.shapes, **conditions.picture_shapes(self.told_pictures)}
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return self._started(zeros, seed)

    def _started(self, base: Mapping[str, Any], seed: int | jax.Array | None = None) -> training.TrainState:
        """The state before the first step, with the model's parameters."""
        key = stream_key(self.config.seed if seed is None else seed, "init")

        def params() -> dict[str, Any]:
            own = self.objective.init_params(fold_name(key, training.OBJECTIVE))
            own = with_copies(self.objective, own, base[systems.NETWORK])
            groups = {**jax.tree.map(jnp.copy, dict(base)), **self._init_adapters(base, seed)}
            return groups if own is None else {**groups, training.OBJECTIVE: own}

        return training.create_state(
            params,
            self.optimizer,
            self.ema,
            with_target="target" in self.objective.needs,
            teacher=self._kept(base),
            objective_state=self.objective.init_state(),
            trained=self.trained,
        )

    def _kept(self, base: Mapping[str, Any]) -> dict[str, Any] | None:
        """A teacher's parameters beside the trained ones; for an adapter they are the frozen groups."""
        is_needed = self.teacher_model is not None and self.adapter is None
        return jax.tree.map(jnp.copy, dict(base)) if is_needed else None

    def first_state(self) -> training.TrainState:
        """The state before the first step, on the devices, but for the frozen groups."""
        like = {**self.abstract_state.params, **self.frozen_groups}
        base, _ = read_groups(self.sources, like)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state.saved)
        state = jax.jit(lambda base: self._started(base).saved, out_shardings=shardings)(base)
        return self._with_lpips(training.TrainState(**state))

    def read_frozen(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The frozen groups on the devices, and their sources and fingerprints."""
        try:
            return super().read_frozen()
        finally:
            self.base.release()


@functools.lru_cache(maxsize=8)
def _published(name: str, dtype: Any, side: int | None) -> tuple[systems.Model, dict[str, Any]]:
    """A published model with shapes for parameters; tracing a large one takes seconds."""
    return model_of(parts_of(name, dtype), image_size=side)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """The form of a parameter for training: floats as float32."""
    dtype = jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype)


def _computing_in(part: Any, dtype: Any) -> Any:
    """The part, and the parts within it, with another type for activations."""
    if isinstance(part, tuple):
        return tuple(_computing_in(one, dtype) for one in part)
    if not dataclasses.is_dataclass(part):
        return part
    names = [field.name for field in dataclasses.fields(part) if field.init and field.name not in ("parent", "name")]
    changed = {name: _computing_in(getattr(part, name), dtype) for name in names}
    if "dtype" in changed and not isinstance(changed["dtype"], str):
        changed["dtype"] = dtype
    return part.clone(**changed) if isinstance(part, nn.Module) else dataclasses.replace(part, **changed)
