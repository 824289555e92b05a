"""From a config to its data: the pipelines, their captions, and the types of the network's computation."""

import dataclasses
import functools
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax import conditioning, data
from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name
from experiments.building import conditions
from experiments.ground.config_files import import_parts
from experiments.ground.fields import CODEC, INHERIT, INIT

OF_SUBJECTS = ("instance", "instance_prompt", "class_pictures", "class_prompt", "num_class_images")
"""Fields of `data` that only apply to a subject and its class."""
CLASS_PICTURES = "class_pictures"
"""The folder in the workdir with pictures of the class that the model has drawn."""
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class ExperimentData:
    """The data that a config names, and the conditions from it; the base of an experiment."""

    reconstructs: ClassVar[bool] = False
    has_base: ClassVar[bool] = False

    config: ConfigDict
    devices: tuple[jax.Device, ...] | None = None
    stored_info: data.DatasetInfo | None = None
    directory: Path | None = None

    def __post_init__(self):
        import_parts(self.config.imports)
        if CODEC in self.config and not self.reconstructs:
            raise UserError(
                f"a config with the group {CODEC} trains a first stage, but this command is for denoisers: use "
                "experiments.train, evaluate or prepare_latents"
            )
        if self.config.teacher.inherit:
            raise UserError(
                f"a config with {INHERIT} takes data and network from its teacher: name a run with "
                "--config.teacher.workdir=RUN, of experiments.train"
            )
        if self.config.init.folder and not self.has_base:
            raise UserError(
                f"a config with {INIT} starts from a model, but this command does not take such configs: use "
                "experiments.train, sample, evaluate or convert"
            )

    @classmethod
    def planned(cls, config: ConfigDict, devices: tuple[jax.Device, ...] | None = None) -> Self:
        """An experiment for planning, not for running: its data need not be prepared, and its devices need not exist.

        `assumed` says what replaces missing files.
        """
        info = cls(config)._pipeline(config.data.split).described()
        return cls(config, devices=devices, stored_info=info)

    @property
    def assumed(self) -> tuple[str, ...]:
        """For an experiment that is planned, lines about what replaces missing files."""
        return ()

    @property
    def info(self) -> data.DatasetInfo:
        """Shape and classes of the data."""
        return self.stored_info or self.pipeline.info

    @cached_property
    def pipeline(self) -> data.Pipeline:
        """The training data."""
        plain = self._pipeline(self.config.data.split)
        of_pixels = bool(self.told_beside) and plain.info.spec.kind == "pixels"
        beside = (part.beside(plain.info.spec.shape) if of_pixels else part for part in self.told_beside)
        parts = [*beside, *self.told_pictures]
        if self.told_text is not None:
            self._check_captions(plain.info)
            parts = [self._with_words(plain), *parts]
        picture = conditions.picture_of(self.config, lambda: plain.info.spec.shape)
        if picture is not None and not picture.needs_holes:
            self._check_sources(plain.info, picture)
            parts.append(picture)
        return plain.prepared_by(conditions.Preparation(parts=tuple(parts))) if parts else plain

    @property
    def told_beside(self) -> tuple[conditioning.Conditioner, ...]:
        """What the network is told of each picture beside its text: its size and how it was cut, if `size_channels` is
        set."""
        network = self.config.model if "model" in self.config else {}
        if "size_channels" not in network or not network["size_channels"]:
            return ()
        return (conditioning.Sizes(count=6),)

    def _with_words(self, pipeline: data.Pipeline | None) -> conditioning.Text:
        """The text conditioner with the word list of the workdir, or else of this data."""
        return conditions.with_words(self.told_text, pipeline, self.directory)

    @cached_property
    def text(self) -> conditioning.Text | None:
        """The text conditioner with everything that it needs to read words; None if the network has no text
        condition."""
        if self.told_text is None:
            return None
        try:  # an existing run has its word list, even if the data is missing
            return self._with_words(None)
        except UserError:
            return self.pipeline.prepare.parts[0]

    @cached_property
    def told_text(self) -> conditioning.Text | None:
        """The same without a word list, which shapes and compiled programs do not depend on."""
        return conditions.text_of(self.config, self._dtype)

    @cached_property
    def told_picture(self) -> conditioning.BesidePicture | None:
        """The conditioner of a picture beside the input; None if there is none."""
        return conditions.picture_of(self.config, lambda: self.info.spec.shape)

    @cached_property
    def told_pictures(self) -> tuple[conditioning.Conditioner, ...]:
        """The conditioners for pictures that an adapter gives the network."""
        return ()

    def _check_sources(self, info: data.DatasetInfo, picture: conditioning.BesidePicture) -> None:
        missing = sorted(set(picture.prepares) - set(info.fields))
        if missing:
            raise UserError(
                f"conditioning.picture reads {missing[0]}, but data set {self.config.data.dataset} has none: use one "
                "with pairs, such as scene_edits"
            )

    def _check_captions(self, info: data.DatasetInfo) -> None:
        if "text" not in info.fields:
            raise UserError(
                f"conditioning.text tells the network captions, but data set {self.config.data.dataset} has none: use "
                'one with captions, such as a folder whose metadata.jsonl gives {"file_name": ..., "text": ...}'
            )

    @cached_property
    def validation_pipeline(self) -> data.Pipeline | None:
        """Held-out data in the form of the training data, not augmented; None if the config names none."""
        split = self.config.data.validation_split
        if not split:
            return None
        held_out = self._pipeline(split, features="", batch_size=self.validation_batch)
        held_out = dataclasses.replace(held_out, augment=False)
        prepare = self.pipeline.prepare
        return held_out if prepare is None else held_out.prepared_by(prepare)

    def _pipeline(self, split: str, **changes: Any) -> data.Pipeline:
        fields = {n: value for n, value in self.config.data.items() if n not in ("validation_split", *OF_SUBJECTS)}
        fields.update(batch_size=self.config.train.batch_size, seed=self.config.seed)
        fields.update(split=split, data_dir=self.config.data.data_dir or None, **changes)
        fields["options"] = self._options(fields["options"])
        return data.Pipeline.from_config(fields)

    def _options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of the data set, including those of a subject, whose class may be drawn into the workdir."""
        own = {name: self.config.data[name] for name in OF_SUBJECTS}
        stated = [f"data.{name}" for name, value in own.items() if value]
        if not stated:
            return options
        if not own["instance"]:
            raise UserError(
                f"{', '.join(stated)}: these describe a subject, but data.instance is empty: name the folder of its "
                "pictures with --config.data.instance=FOLDER"
            )
        if self.draws_class:
            own["class_pictures"] = str(self.directory / CLASS_PICTURES) if self.directory else ""
        return {**options, **own}

    @property
    def remarks(self) -> list[str]:
        """Notes on the data, to be printed before training."""
        return list(self.pipeline.remarks)

    @property
    def draws_class(self) -> bool:
        """Whether the model draws the pictures of a subject's class before training."""
        wanted = self.config.data
        return bool(wanted.instance and wanted.num_class_images and not wanted.class_pictures)

    @property
    def num_classes(self) -> int:
        """Classes that the network is conditioned on; 0 for an unconditional one."""
        return self.info.num_classes if self.config.train.class_conditional else 0

    @property
    def _dtype(self) -> Any:
        """The type in which activations are computed."""
        dtype = self.config.train.dtype
        if dtype not in DTYPES:
            raise UserError(unknown_name("compute dtype", dtype, list(DTYPES)))
        return DTYPES[dtype]

    @functools.cached_property
    def validation_batch(self) -> int:
        """Examples in a batch of held-out data: as many as in training, or a divisor of the split's size if that is
        smaller.

        Raises:
          UserError: there are fewer examples than devices.
        """
        log, batch_size, shards = self.config.log, self.config.train.batch_size, self.layout.num_batch_shards
        examples = self._pipeline(self.config.data.validation_split, features="").info.num_examples
        most = min(examples, log.validation_examples, batch_size)
        fitting = [size for size in range(shards, most + 1, shards) if batch_size % size == 0]
        if not fitting:
            raise UserError(
                f"validation needs an example for each of {shards} device{'s' * (shards > 1)}; the split has "
                f"{examples} and log.validation_examples is {log.validation_examples}"
            )
        return fitting[-1]

    @property
    def validation_size(self) -> int:
        """Examples for the validation loss, in whole batches.

        Raises:
          UserError: there is no whole batch.
        """
        examples = min(self.validation_pipeline.info.num_examples, self.config.log.validation_examples)
        return examples // self.validation_batch * self.validation_batch
