"""From a config to the objects that it names; no other module knows both."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax import conditioning, data, models, parallel, systems, training, weights
from diffusion_jax.domains import shown
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import Codec, Identity, StoredLatents, Values
from diffusion_jax.objectives import OBJECTIVES, Objective
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import stream_key
from diffusion_jax.samplers import GUIDANCE as RULES
from diffusion_jax.samplers import Rule, Sampler, TokenSampler
from diffusion_jax.schedulers import GRIDS, PROCESSES, SCHEDULES, Process, TimeGrid, built, shifted
from diffusion_jax.specs import DATA, FEATURES, GUIDANCE, PRIOR
from diffusion_jax.tasks import require_tellable
from experiments.building import checks, fitting
from experiments.building.checks import READ_BY_OBJECTIVES
from experiments.building.experiment_data import DTYPES, ExperimentData
from experiments.building.latents import pictures_of
from experiments.building.sources import Source, read_groups
from experiments.ground import workdir
from experiments.ground.fields import FIELDS


@dataclasses.dataclass(frozen=True)
class Experiment(ExperimentData):
    """Everything that a config names, built on first access.

    Attributes:
      config: the config.
      devices: devices to run on, or to compile for; by default all.
      stored_info: the description of the data, if the data itself need not exist; by default the data is opened.
      directory: the workdir, if it exists already.
      reconstructs: whether a first stage is trained, which has reconstructions instead of samples.
      has_base: whether the config starts from a model.
    """

    @cached_property
    def network(self) -> Any:
        """The Flax module."""
        size, _, channels = self.codec.spec(self.info.spec).shape
        spec = dict(self.config.model)
        if self.process.discrete:
            channels, spec["out_channels"] = self.process.channels(channels)
        if self.info.spec.kind == "tokens":
            if spec["name"] not in models.reading_tokens():
                fitting = " or ".join(models.reading_tokens())
                raise UserError(f"model {shown(spec['name'])} is for images; the data is text: use model {fitting}")
            spec["length"] = size
        told = {} if self.told_text is None else self.told_text.gives
        beside = {} if self.told_picture is None else self.told_picture.for_network
        return models.MODELS.build(
            spec,
            image_size=size,
            image_channels=channels,
            num_classes=self.num_classes,
            dtype=self._dtype,
            **{f"{slot}_channels": slot_spec.shape[-1] for slot, slot_spec in told.items()},
            **beside,
        )

    @cached_property
    def conditioning(self) -> conditioning.Conditioning:
        """Conditioners for what the data has and the network takes: classes, texts, and augmentations.

        Everything asked is dropped together with `train.conditioning_dropout`, a text alone with its own dropout.
        """
        takes, parts = self.network.takes, []
        if "label" in takes:
            parts.append(conditioning.Label(num_classes=self.num_classes, class_names=self.info.class_names))
        if "augment" in takes:
            parts.append(conditioning.Numbers(slot="augment", count=takes["augment"].shape[0]))
        if GUIDANCE in takes:
            parts.append(conditioning.GuidanceScale(origin=self.network.guidance_origin))
        if self.told_text is not None:
            parts.append(self.told_text)
        if self.told_picture is not None:
            parts.append(self.told_picture)
        parts += [part.beside(self.info.spec.shape) for part in self.told_beside]
        everything = conditioning.Conditioning(parts=tuple(parts)).asked
        dropout = {everything: self.config.train.conditioning_dropout} if everything else {}
        for told in (self.told_text, self.told_picture):
            if told is not None and set(told.gives) <= set(everything):
                alone = tuple(told.gives)
                dropout[alone] = dropout.get(alone, 0.0) + told.dropout
        return conditioning.Conditioning(parts=tuple(parts), dropout=dropout)

    @cached_property
    def objective(self) -> Objective:
        """The loss, built with the process and its parts.

        Raises:
          UserError: a part is unknown or belongs to another process, or a group that is read is not in the config.
        """
        config, process = self.config, self.stated_process
        fitting.require_objective(config.objective, process)
        given = {field.name: getattr(process, field.name) for field in dataclasses.fields(process)}
        drawn = {g: built(READ_BY_OBJECTIVES[g], config[g]) for g in READ_BY_OBJECTIVES if g in config}
        made = OBJECTIVES.build(config.objective, **{**given, **drawn, "process": process})
        missing = [group for group in READ_BY_OBJECTIVES if group in made.reads and group not in config]
        if missing:
            raise UserError(
                f"objective {config.objective.name} reads {' and '.join(missing)}, which the config does not have"
            )
        return made

    @cached_property
    def stated_process(self) -> Process:
        """The process in the config, whatever the data is."""
        return PROCESSES.build(self.config.process)

    @cached_property
    def process(self) -> Process:
        """What is diffused, and the meaning of the network's input and output."""
        process = self.stated_process
        fitting.require_data(self.info.spec, process)
        return dataclasses.replace(process, sequences=self.info.spec.kind == "tokens") if process.discrete else process

    @cached_property
    def codec(self) -> Codec:
        """The first stage: a trained one, pixels as tokens if the objective is for tokens, or none."""
        if self.first_stage is not None:
            codec = self.first_stage.codec
            return codec if self.config.first_stage.online else StoredLatents(first_stage=codec)
        of_values = self.objective.discrete and self.info.spec.kind == "pixels"
        return Values(num_values=self.process.num_tokens) if of_values else Identity()

    @cached_property
    def first_stage(self) -> systems.FirstStageFolder | None:
        """The trained first stage that `first_stage.path` names."""
        path = self.config.first_stage.path
        return systems.load_first_stage(path, dtype=DTYPES[self.config.train.dtype]) if path else None

    @property
    def shown(self) -> data.DatasetInfo:
        """The form of samples after decoding: pictures for latents, else the form of the data."""
        prepared = self.first_stage is not None and self.info.first_stage
        return pictures_of(self.info, self.first_stage.codec) if prepared else self.info

    @cached_property
    def pictures(self) -> data.Pipeline:
        """The data as samples show it: for prepared latents, the pictures that they were made from."""
        return self.pipeline.pictures if self.info.first_stage else self.pipeline

    @cached_property
    def model(self) -> systems.Model:
        """The network with codec, conditioning and process."""
        return systems.Model(
            data=self.info.spec,
            codec=self.codec,
            conditioning=self.conditioning,
            network=self.network,
            process=self.process,
            sampling=fitting.recipe(self.config, self.objective),
        )

    def picture_model(self, height: int | None = None, width: int | None = None) -> systems.Model:
        """The model for pictures: for prepared latents, with the first stage that made them.

        Args:
          height, width: of the pictures in pixels; by default the data's. A network that cannot take other sizes raises
            an error when it is called.
        """
        return self.model.of_size(height, width)

    @cached_property
    def trainable(self) -> training.Trainable:
        """Model and objective together."""
        return training.Trainable(
            model=self.model,
            objective=self.objective,
            teacher=self.teacher_model,
            guidance=checks.teacher_guidance(self.config),
        )

    @property
    def teacher_model(self) -> systems.Model | None:
        """The model to learn from, if the objective uses a teacher and there is one."""
        return self.teacher.model if self.teacher and "teacher" in self.objective.needs else None

    @cached_property
    def teacher(self) -> "Experiment | None":
        """The finished run that `teacher.workdir` names: to start from, and to learn from if the objective does."""
        named = self.config.teacher.workdir
        if not named:
            return None
        copy = self.directory and workdir.teacher_copy(self.directory)
        directory = copy if copy and copy.exists() else Path(named)
        config = workdir.read_config(directory)
        config.parallel = self.config.parallel
        return Experiment(config, devices=self.devices, stored_info=workdir.read_info(directory), directory=directory)

    @cached_property
    def learning_rate(self) -> optax.Schedule:
        """The learning rate as a function of the step."""
        spec = self.config.optimizer
        return training.learning_rate_schedule(
            spec.learning_rate,
            decay=spec.decay,
            warmup_steps=spec.warmup_steps,
            total_steps=self.config.train.steps,
            decay_steps=spec.decay_steps,
        )

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer."""
        spec = {name: value for name, value in self.config.optimizer.items() if f"optimizer.{name}" not in FIELDS}
        made = training.make_optimizer(
            spec,
            learning_rate=self.learning_rate,
            clip_norm=self.config.optimizer.clip_norm,
            is_frozen=models.is_frozen,
        )
        return made if self._network_every == 1 else training.in_turns(made, self._network_every, training.OBJECTIVE)

    @property
    def _network_every(self) -> int:
        """N, where the network is updated in one of N steps."""
        return self.objective.network_every

    @cached_property
    def ema(self) -> training.EmaConfig:
        """The averages of the parameters that are kept."""
        spec = self.config.ema
        return training.EmaConfig(
            decays=tuple(spec.decays),
            half_lives=tuple(spec.half_lives),
            widths=tuple(spec.widths),
            ramp_up_ratio=spec.ramp_up_ratio,
        )

    @cached_property
    def layout(self) -> parallel.Layout:
        """Placement on the devices."""
        return fitting.built_layout(self.config.parallel, self.devices)

    def check(self) -> None:
        """Build everything that the config names, so that a wrong name is an error before anything starts.

        Raises:
          UserError: the first thing that is wrong.
        """
        checks.check(self)

    def init_state(self, seed: int | jax.Array | None = None) -> training.TrainState:
        """The state before the first step (traceable; the layout decides its place), by default for the config's
        seed."""
        key = stream_key(self.config.seed if seed is None else seed, "init")
        trainable = self.trainable
        return training.create_state(
            lambda: trainable.init_params(key, models.init_params),
            self.optimizer,
            self.ema,
            with_target="target" in self.objective.needs,
            teacher=trainable.teacher and trainable.teacher.init_params(key, models.init_params),
            objective_state=self.objective.init_state(),
            trained=self.trained,
        )

    @cached_property
    def sources(self) -> dict[str, Source]:
        """The sources of groups of parameters that do not start at random."""
        found: dict[str, Source] = {}
        if self.first_stage is not None:
            stage = self.first_stage
            found[systems.CODEC] = Source(where=str(stage.path), read=stage.read_params)
        encoder = self.told_text and self.told_text.encoder
        if encoder and encoder.source:
            group = f"{systems.CONDITIONING}/{next(iter(self.told_text.gives))}"
            found[group] = Source(where=encoder.source, read=lambda: weights.read_text_encoder(encoder))
        return found

    @property
    def trained(self) -> tuple[str, ...]:
        """Patterns of the trained groups; by default the groups without a source."""
        sources = "|".join(map(re.escape, self.sources))
        return tuple(self.config.train.trained) or (f"(?!({sources})$).*" if sources else ".*",)

    @cached_property
    def frozen_groups(self) -> dict[str, Any]:
        """Shapes and shardings of the groups that are not trained."""
        return dict(self.abstract_state.frozen or {})

    def read_frozen(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The frozen groups on the devices, None if there are none, and their sources and fingerprints."""
        frozen, known = read_groups(self.sources, self.frozen_groups)
        return frozen or None, known

    def first_state(self) -> training.TrainState:
        """The state before the first step, on the devices, with everything from files except the frozen groups."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state.saved)
        state = training.TrainState(**jax.jit(lambda: self.init_state().saved, out_shardings=shardings)())
        started, _ = read_groups(self.sources, state.params)
        if started:
            ema = {name: {**average, **_copies(started)} for name, average in state.ema.items()}
            target = state.target and {**state.target, **_copies(started)}
            state = state.replace(params={**state.params, **started}, ema=ema, target=target)
        return self._with_lpips(state)

    def _with_lpips(self, state: training.TrainState) -> training.TrainState:
        """The state with the networks of LPIPS, if the objective uses them."""
        if not self.objective.reads_lpips:
            return state
        params = weights.read_lpips(self.objective.vgg, self.objective.lpips)
        placed = jax.tree.map(
            lambda x, old: jax.device_put(jnp.asarray(x), old.sharding), params, state.objective_state
        )
        return state.replace(objective_state=placed)

    @property
    def title(self) -> str:
        """A name of one or two words for what is trained."""
        return str(self.config.model.name)

    @property
    def augment_slot(self) -> int:
        """Length of the network's input for augmentations; 0 if it has none."""
        slot = self.network.takes.get("augment")
        return slot.shape[0] if slot else 0

    @cached_property
    def abstract_state(self) -> Any:
        """Shapes, dtypes and shardings of the canonical state, without making it."""
        shapes = jax.eval_shape(self.init_state)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.layout.canonical_shardings(shapes),
        )

    def with_numbers(self, numbers: Mapping[str, jax.Array]) -> "Experiment":
        """The experiment with other numbers in the config, {"group.field": number}, which may be traced."""
        config = self.config.copy_and_resolve_references()
        with config.ignore_type():
            for name, number in numbers.items():
                *groups, field = name.split(".")
                functools.reduce(lambda group, part: group[part], groups, config)[field] = number
        return dataclasses.replace(self, config=config, stored_info=self.info)

    def train_step(self, seed: int | jax.Array | None = None) -> Any:
        """The pure train step `(state, batch, axis_name) -> (state, metrics)`.

        Args:
          seed: seed of all random streams, which may be traced; by default the config's.
        """
        train = self.config.train
        return training.make_train_step(
            self.trainable,
            self.optimizer,
            ema=self.ema,
            learning_rate=self.learning_rate,
            batch_size=train.batch_size,
            seed=self.config.seed if seed is None else seed,
            accumulation=train.accumulation,
        )

    def abstract_batch(self, rows: int, sides: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """Zeros in the form of `rows` rows of a batch, of pictures of these sides where they may differ."""
        shape = (*(sides or self.info.spec.shape[:2]), *self.info.spec.shape[2:])
        batch = {DATA: np.zeros((rows, *shape), self.info.spec.dtype)}
        if self.info.num_classes:  # the pipeline gives labels also to an unconditional network
            batch["label"] = np.zeros((rows,), np.int32)
        if self.info.num_prior:
            batch[PRIOR] = np.zeros((rows,), np.float32)
        if "aligned" in self.objective.needs:
            batch[FEATURES] = np.zeros((rows, *self.network.sows[FEATURES]), np.float32)
        told = (() if self.told_text is None else (self.told_text,)) + self.told_beside
        for part in (*told, *self.told_pictures, *(() if self.told_picture is None else (self.told_picture,))):
            fields = (part if sides is None else part.beside(shape)).fields
            batch |= {n: np.zeros((rows, *form), dtype) for n, (form, dtype) in fields.items()}
        if labels := self._pipeline(self.config.data.split, features="").augment_labels:
            batch["augment"] = np.zeros((rows, labels), np.float32)
        return batch

    def sampler(self, name: str | None = None) -> Sampler | TokenSampler:
        """The config's sampler, or the one named, with its default options.

        Raises:
          UserError: no such sampler, or one that does not fit what the objective trains.
        """
        spec = name or self.config.sampling.sampler
        sampler = fitting.built_sampler(spec, self.process)
        if not self.process.discrete:
            fitting.require_denoiser(sampler, spec, self.objective, self.config.objective)
        return sampler

    def guidance(self) -> Rule:
        """The config's guidance rule.

        Raises:
          UserError: no such rule, an option that it does not have, or one that does not fit the network.
        """
        rule = RULES.build(self.config.sampling.guidance)
        require_tellable(rule, self.model)
        if self.model.embeds_guidance:
            checks.check_told_scale(self, rule.scale)
            return rule
        is_flow_map = not self.process.discrete and self.sampler().denoiser_kind == "flow_map"
        rule.check(self.conditioning.asked, self.model.diffused, is_flow_map=is_flow_map)
        return rule

    def grid(self, steps: int | None = None, shift: float = 1.0) -> TimeGrid:
        """The config's sampling-time grid, with as many steps as asked, its times shifted towards noise."""
        sampling, most = self.config.sampling, self.objective.most_steps
        if most is not None and (steps or sampling.steps) > most:
            raise UserError(
                f"{steps or sampling.steps} steps are more than objective {self.config.objective.name} trains for, "
                f"which are {most}: sample in {most} or fewer"
            )
        if self.process.discrete:  # tokens are sampled at equal times; alphas and sigmas of a grid do not apply to them
            return GRIDS.build("uniform")(SCHEDULES.build("rectified_flow"), steps or sampling.steps)
        return shifted(GRIDS.build(sampling.grid), shift)(self.process.schedule, steps or sampling.steps)

    def known_ema(self, name: str) -> str:
        """The average of the parameters to evaluate; "" means the first one.

        Raises:
          UserError: the config keeps no average of that name.
        """
        known = [*self.ema.names, "params"]
        if name and name not in known:
            raise UserError(unknown_name("average of the parameters", name, known))
        return name or known[0]


def _copies(tree: Any) -> Any:
    """Separate copies of arrays, since a step may be given (donated) one of two and not the other."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
