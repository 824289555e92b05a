"""Samples from a trained network: balanced classes, any number, the same pictures for every batch size."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.data import as_stored
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.samplers import NoGuidance, Rule, Sampler, TokenSampler, sample, sample_tokens
from diffusion_jax.samplers.guidance import of_clean, towards
from diffusion_jax.schedulers import Denoiser, TimeGrid, on_schedule
from diffusion_jax.systems import Model
from diffusion_jax.tasks import Request, Setting, Task, draw
from experiments.building.wiring import Experiment
from experiments.evaluating.asked import Asked

ASKED, SOURCE = "asked.", "source."
"""Prefixes of the names of inputs: raw fields of the request, and raw fields that describe a given picture."""
Given = Mapping[str, np.ndarray]
"""The inputs for samples, each [n, ...]: sample i has row i modulo n; see `tasks.Request`."""
Classifier = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]
"""(x0, raw fields) -> log p of the request, [batch]."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Guide:
    """Another, worse network, away from which samples are guided (autoguidance, Karras et al. 2024b).

    Attributes:
      experiment: experiment of its run.
      params: its parameters.
      source: origin of the parameters, for the record.
    """

    experiment: Experiment
    params: Any
    source: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Generator:
    """A compiled sampler with a fixed batch size.

    Attributes:
      experiment: the network and its parameterization.
      sampler: the sampler.
      grid: its noise levels.
      guidance: the guidance rule.
      guide: the worse network, for a rule that needs one.
      classifier: the classifier of clean data, for a rule that needs one.
      negative: raw fields of one row that replace the null condition in guidance.
      task: the task for the inputs; None draws samples from noise.
      model: the experiment's model in another form (`Experiment.picture_model`); None is the trained form.
      batch_size: samples per call; rounded up to a multiple of the devices.
      path_points: 0 gives the samples; n > 0 gives instead n states between noise and each sample, on an axis after the
        batch, each divided by sqrt(alpha^2 + sigma^2) so that noise and data can be shown side by side.
    """

    experiment: Experiment
    sampler: Sampler | TokenSampler
    grid: TimeGrid
    guidance: Rule = dataclasses.field(default_factory=NoGuidance)
    guide: Guide | None = None
    classifier: Classifier | None = None
    negative: Given | None = None
    task: Task | None = None
    model: Model | None = None
    batch_size: int = 256
    path_points: int = 0

    def __post_init__(self):
        shards = self.experiment.layout.num_batch_shards
        object.__setattr__(self, "batch_size", -(-self.batch_size // shards) * shards)
        if self.guide is not None:
            self._check_guide(self.guide.experiment)
        if self.task is None:
            self.setting.check()
        else:
            self.task.check(self.setting)
        layout = self.experiment.layout
        object.__setattr__(self, "_run", jax.jit(layout.placed(self._sample), out_shardings=layout.batch_sharding))

    def _check_guide(self, other: Experiment) -> None:
        own = self.experiment
        if own.process.discrete or other.process.discrete:
            raise UserError("autoguidance works on images, not on tokens: leave out the guide")
        stages = [one.first_stage and one.first_stage.fingerprint for one in (own, other)]
        if stages[0] != stages[1]:
            raise UserError("the guide's first stage differs from this network's: both must have the same latents")
        if other.info.spec.shape != own.info.spec.shape or other.num_classes not in (0, own.num_classes):
            raise UserError(
                f"the guide makes {list(other.info.spec.shape)} images of {other.num_classes} classes, this network "
                f"{list(own.info.spec.shape)} of {own.num_classes}: both must be trained on the same data"
            )
        reads = [one.text and (one.text.tokenizer, one.text.length) for one in (own, other)]
        if other.told_text is not None and reads[0] != reads[1]:
            raise UserError("the guide reads texts by another tokenizer, word list or length: train it on the same")
        if other.model.is_flow_map != own.model.is_flow_map:
            raise UserError("the guide and the network must be of the same kind: one is a flow map")

    @property
    def setting(self) -> Setting:
        """The settings with which samples are drawn."""
        return Setting(
            model=self.model or self.experiment.model,
            sampler=self.sampler,
            grid=self.grid,
            guidance=self.guidance,
            clip_x0=self.experiment.config.sampling.clip_x0 and not self.experiment.process.discrete,
            denoiser=self.experiment.trainable.denoiser,
            negative=self.negative,
        )

    @functools.cached_property
    def network_evaluations(self) -> int:
        """Network evaluations per sample (NFE), including guidance's: the least for an adaptive sampler, the most for
        one that caches.
        """
        if self.task is not None:
            return self.task.network_evaluations(self.setting)
        if self.experiment.process.discrete:
            return self.setting.evaluations(self.grid.num_steps)
        return self.setting.evaluations(self.sampler.nfe(self.grid.num_steps, ends_clean=self.grid.ends_clean))

    def _sample(
        self, all_params: tuple[Any, Any], given: dict[str, jax.Array], key: jax.Array, index: jax.Array
    ) -> jax.Array:
        params, guide_params = all_params
        size, request = index.shape[0], _request(given)
        setting = dataclasses.replace(self.setting, others=functools.partial(self._others, guide_params, size))
        batch_key = BatchKey(key, index, self.batch_size)
        if self.task is not None:
            return self.task(setting, params, request, batch_key)
        if not self.path_points:
            return draw(setting, params, request.asked, batch_key)
        return self._paths(setting.guided(params, request.asked, size), params, batch_key)

    def _paths(self, denoise: Any, params: Any, key: BatchKey) -> jax.Array:
        """States on the way to each sample, decoded, [batch, points, ...]."""
        model, points = self.setting.model, self.path_indices
        shape, steps = model.diffused.shape, self.grid.num_steps
        if model.process.discrete:
            result = sample_tokens(self.sampler, denoise, model.process, steps, shape, key, return_trajectory=True)
            return jnp.moveaxis(model.decode(params, result.trajectory[points]), 0, 1)
        options = {**self.setting.options, "return_trajectory": True}
        result = sample(self.sampler, denoise, self.grid, shape, key, **options)
        scale = 1 / np.sqrt(self.grid.alphas[points] ** 2 + self.grid.sigmas[points] ** 2)
        states = jnp.moveaxis(result.trajectory[points] * scale.reshape(-1, 1, *(1,) * len(shape)), 0, 1)
        return jax.vmap(lambda z: model.decode(params, z), in_axes=1, out_axes=1)(states)

    def _others(
        self, guide_params: Any, size: int, raw: Mapping[str, jax.Array] | None, plain: Denoiser
    ) -> dict[str, Denoiser]:
        """What the guidance rule needs besides the network."""
        found, schedule = {}, self.grid.schedule
        if self.guide is not None:
            there = self.guide.experiment
            setting = dataclasses.replace(self.setting, model=there.model, denoiser=there.trainable.denoiser)
            worse = setting.plain(guide_params, raw, size)
            own = there.process.schedule
            found["worse"] = worse if own == schedule else on_schedule(worse, own, schedule)
        if self.classifier is not None:
            if raw is None:
                raise UserError("guidance classifier guides towards a class: give --label")
            judged = of_clean(plain, lambda x0: self.classifier(x0, raw))
            found["classifier"] = towards(schedule, judged)
        return found

    def lower(self, params: Any) -> jax.stages.Lowered:
        """The sampler, traced for parameters given as arrays or as shapes with shardings."""
        layout = self.experiment.layout
        row = jax.ShapeDtypeStruct((self.batch_size,), jnp.int32, sharding=layout.batch_sharding)
        key = jax.eval_shape(lambda: stream_key(0, "sample"))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=layout.replicated)
        given = {
            f"{ASKED}{name}": jax.ShapeDtypeStruct((self.batch_size, *shape), dtype, sharding=layout.batch_sharding)
            for part in self.experiment.conditioning.parts
            if set(part.gives) & set(self.experiment.conditioning.asked)
            for name, (shape, dtype) in part.fields.items()
        }
        return self._run.lower((params, self._guide_params), given, key, row)

    @property
    def _guide_params(self) -> Any:
        return None if self.guide is None else self.guide.params

    @property
    def path_indices(self) -> np.ndarray:
        """The points of the grid that `path_points` shows, including the first and the last."""
        return np.linspace(0, self.grid.num_steps, self.path_points).round().astype(int)

    @property
    def path_bytes(self) -> int:
        """Memory for all states of one sample, which a generator with `path_points` holds on the device."""
        return 4 * (self.grid.num_steps + 1) * math.prod(self.experiment.model.diffused.shape)

    def batches(
        self,
        params: Any,
        asked: Asked | np.ndarray | None,
        num_samples: int,
        seed: int,
        *,
        start: int = 0,
        given: Given | None = None,
        numbers: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Samples in [-1, 1], float32 (tokens of text int32), batch by batch; sample i depends on (seed, i, row i of
        `asked`); an array is a list of labels.

        `start`, a multiple of the batch size, is the first sample; `given` are the inputs of a task. `numbers` replace
        i, if samples of several requests shall depend only on their place in their own request.
        """
        layout = self.experiment.layout
        key = stream_key(seed, "sample")
        rows = slice(
            layout.host_index * self.batch_size // layout.host_count,
            (layout.host_index + 1) * self.batch_size // layout.host_count,
        )
        fields = {f"{ASKED}{name}": value for name, value in Asked.of(asked).fields.items()}
        for first in range(start, num_samples, self.batch_size):
            index = np.arange(first, first + self.batch_size)[rows]
            batch = {name: value[index % len(value)] for name, value in {**fields, **(given or {})}.items()}
            numbered = index if numbers is None else numbers[index % len(numbers)]
            placed = layout.global_batch({"index": numbered.astype(np.int32)})
            x = self._run((params, self._guide_params), layout.global_batch(batch), key, placed["index"])
            if jax.process_count() > 1:
                x = multihost_utils.process_allgather(x, tiled=True)
            x = np.asarray(x, self.experiment.shown.spec.dtype)[: num_samples - first]
            require_finite(x, first)
            yield x

    def generate(
        self,
        params: Any,
        asked: Asked | np.ndarray | None,
        num_samples: int,
        seed: int = 0,
        progress: Any = None,
        given: Given | None = None,
        numbers: np.ndarray | None = None,
    ) -> np.ndarray:
        """All samples as uint8 [num_samples, height, width, channels] (float32 for latents, int32 for text)."""
        parts = []
        for part in self.batches(params, asked, num_samples, seed, given=given, numbers=numbers):
            parts.append(part)
            if progress is not None:
                progress(sum(map(len, parts)))
        x = np.concatenate(parts)
        gives_data = self.task is None or self.task.gives == "data"
        return as_stored(self.experiment.shown.spec, x) if gives_data else x


def _request(given: Mapping[str, jax.Array]) -> Request:
    """The request of a task, from arrays by name."""
    raw = {
        begin: {name.removeprefix(begin): value for name, value in given.items() if name.startswith(begin)} or None
        for begin in (ASKED, SOURCE)
    }
    rest = {name: value for name, value in given.items() if "." not in name}
    return Request(asked=raw[ASKED], source=raw[SOURCE], **rest)


def require_finite(samples: np.ndarray, first: int) -> None:
    """Raise RunError if some samples are not finite; `first` is the number of the first sample."""
    bad = np.flatnonzero(~np.isfinite(samples.reshape(len(samples), -1)).all(axis=1))
    if len(bad):
        raise RunError(
            f"{len(bad)} of the {len(samples)} samples {first} to {first + len(samples) - 1} are not finite, the first "
            f"is {first + bad[0]}: look at the loss, take fewer or other steps, or another average of the parameters"
        )
