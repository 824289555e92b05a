"""Training a first stage, from a config with a group `codec` instead of a denoiser's groups."""

import dataclasses
from functools import cached_property

import jax
from ml_collections import ConfigDict

from diffusion_jax import data, training
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import CODECS, LearnedCodec
from diffusion_jax.objectives import RECONSTRUCTIONS, ReconstructionLoss
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import stream_key
from experiments.building.checks import check_groups, check_metric, require_lpips
from experiments.building.wiring import DTYPES, Experiment
from experiments.ground import workdir
from experiments.ground.config_files import flatten
from experiments.ground.fields import CODEC, check_fields

_UNREAD = (
    *("model", "process", "time_sampler", "init", "adapter"),
    *("teacher", "first_stage", "sampling", "train"),
)
_READ = ("sampling.ema", "sampling.batch_size")  # fields of these groups that a first stage uses
_READ += tuple(f"train.{name}" for name in ("steps", "batch_size", "accumulation", "dtype", "trained"))


@dataclasses.dataclass(frozen=True)
class FirstStageExperiment(Experiment):
    """Everything that the config of a first stage names; it uses the same loop as any other training."""

    reconstructs = True

    @property
    def num_classes(self) -> int:
        """0: a first stage has no class condition."""
        return 0

    @cached_property
    def codec(self) -> LearnedCodec:
        """The codec to train."""
        dtype = self.config.train.dtype
        if dtype not in DTYPES:
            raise UserError(unknown_name("compute dtype", dtype, list(DTYPES)))
        codec = CODECS.build(self.config.codec, data_channels=self.info.spec.shape[-1], dtype=DTYPES[dtype])
        if not codec.learned:
            fitting = [name for name in CODECS if CODECS[name].learned]
            raise UserError(f"codec {self.config.codec.name} has nothing to learn: use {' or '.join(fitting)}")
        return codec

    @cached_property
    def objective(self) -> ReconstructionLoss:
        """The loss."""
        return RECONSTRUCTIONS.build(self.config.objective)

    @cached_property
    def trainable(self) -> training.FirstStage:
        """Codec and loss together."""
        return training.FirstStage(data=self.info.spec, codec=self.codec, objective=self.objective)

    @property
    def _network_every(self) -> int:
        """1: a first stage and its discriminator are updated together."""
        return 1

    @property
    def title(self) -> str:
        """The codec's name."""
        return str(self.config.codec.name)

    @property
    def shown(self) -> data.DatasetInfo:
        """The pictures of the data."""
        return self.info

    def init_state(self, seed: int | jax.Array | None = None) -> training.TrainState:
        """The state before the first step, by default for the config's seed; there is neither a target nor a
        teacher."""
        key = stream_key(self.config.seed if seed is None else seed, "init")
        return training.create_state(
            lambda: self.trainable.init_params(key),
            self.optimizer,
            self.ema,
            trained=self.trained,
            objective_state=self.objective.init_state(),
        )

    def check(self) -> None:
        """Build everything that the config names, so that errors are found before training starts.

        Raises:
          UserError: the first thing that is wrong, or that has no meaning for a first stage.
        """
        config = self.config
        check_fields(config)
        self._check_unread()
        for name in config.evaluation.metrics:
            check_metric(name)
        self.layout.check_batch(config.train.batch_size, config.train.accumulation)
        if self.info.spec.kind != "pixels":
            raise UserError(f"a first stage needs pictures; {config.data.dataset} holds {self.info.spec.kind}")
        if config.data.buckets:
            raise UserError(
                "data.buckets are for denoisers: a first stage learns on squares and encodes every size that divides "
                "by its factor; leave them out"
            )
        _ = (self.trainable, self.optimizer)
        self.known_ema(config.sampling.ema)
        check_groups(self)
        if self.objective.adversarial and (config.train.accumulation > 1 or config.parallel.strategy == "pmap"):
            raise UserError(
                "the discriminator's weight comes from the whole batch: set train.accumulation=1 and "
                "parallel.strategy=jit, or objective.adversarial=0"
            )
        if self.objective.reads_lpips:
            require_lpips(self, "objective.perceptual=0")
        if self.pipeline.augment_labels:
            raise UserError("a first stage takes no augmentation parameters: set data.augmentation to none")
        if self.validation_pipeline is not None:
            _ = self.validation_size
        else:
            raise UserError("a first stage is judged by held-out pictures: set data.validation_split")

    def _check_unread(self) -> None:
        """Raise UserError for a denoiser's field that differs from its default, because it would be ignored."""
        default = workdir.defaults()
        stated = flatten(ConfigDict(workdir.to_json(self.config)))
        unread = [
            name
            for name, value in stated.items()
            if name.startswith(tuple(f"{group}." for group in _UNREAD)) and name not in _READ
            if value != default.get(name, [])
        ]
        if unread:
            raise UserError(
                f"{', '.join(unread)}: a config with the group {CODEC} trains a first stage, which has no use for "
                "these; leave them out"
            )
