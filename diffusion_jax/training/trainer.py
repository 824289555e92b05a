"""Training from Python in a few lines, with the objects that are sampled.

model, params = load_model("runs/digits")
step = train_step(model, "denoising", optax.adam(1e-4), batch_size=128)
state = step.init(params)
for batch in batches:
    state, metrics = step(state, batch)
params = state.evaluation_params()
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion_jax import models
from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES, Objective, of_process
from diffusion_jax.rng import stream_key
from diffusion_jax.schedulers import TIME_SAMPLERS
from diffusion_jax.specs import DATA
from diffusion_jax.systems import CODEC, Model, Params, split_groups
from diffusion_jax.training.ema import EmaConfig
from diffusion_jax.training.state import TrainState, create_state
from diffusion_jax.training.step import Metrics, Trainable, make_train_step

Spec = str | Mapping[str, Any]
_NOT_HERE = {"teacher": "a frozen teacher", "aligned": "another network's features"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainStep:
    """One optimizer step, compiled when it is first called.

    Attributes:
      trainable: model and objective.
      optimizer: an Optax optimizer.
      ema: averages of the parameters to keep.
      batch_size: examples in a batch.
      seed: seed of all random numbers.
      trained: patterns of the names of groups to train.
    """

    trainable: Trainable
    optimizer: optax.GradientTransformation
    ema: EmaConfig
    batch_size: int
    seed: int
    trained: tuple[str, ...]

    def init(self, params: Params | None = None) -> TrainState:
        """The state before the first step.

        Args:
          params: parameters by group to start from, as `load_model` returns them; None starts from random ones.

        Raises:
          UserError: a group is missing, or no group is trained.
        """
        trainable, key = self.trainable, stream_key(self.seed, "init")
        if params is None:
            whole = jax.jit(functools.partial(trainable.init_params, init_network=models.init_params))(key)
        else:
            shapes = jax.eval_shape(
                functools.partial(trainable.model.init_params, init_network=models.init_params), key
            )
            missing = sorted(set(shapes) - set(params))
            if missing:
                raise UserError(
                    f"the parameters lack the group {', '.join(missing)}: give all groups that load_model returns"
                )
            copies = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
            whole = trainable.with_own({name: copies[name] for name in shapes}, key)
        if not split_groups(whole, self.trained)[0]:
            raise UserError(f"no group of {', '.join(whole)} is trained: the patterns are {', '.join(self.trained)}")
        return create_state(
            lambda: whole,
            self.optimizer,
            self.ema,
            with_target="target" in trainable.objective.needs,
            objective_state=trainable.objective.init_state(),
            trained=self.trained,
        )

    def __call__(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        """The next state, and metrics, "loss" among them.

        Args:
          state: the last state; its buffers are donated, so it can not be used again.
          batch: "data", float32 [batch_size, ...] in [-1, 1], and what the model is told, such as "label", int32
            [batch_size].

        Raises:
          UserError: the batch has no data, has another size, or lacks a field that the model is told.
        """
        rows = {name: jnp.asarray(value) for name, value in batch.items()}
        if DATA not in rows:
            raise UserError(f"the batch has no {DATA!r}, it has {', '.join(rows) or 'nothing'}")
        want = (self.batch_size, *self.trainable.model.data.shape)
        if rows[DATA].shape != want:
            raise UserError(f"batch[{DATA!r}] must be {list(want)}, it is {list(rows[DATA].shape)}")
        return self._compiled(state, rows)

    @functools.cached_property
    def _compiled(self) -> Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]:
        step = make_train_step(self.trainable, self.optimizer, ema=self.ema, batch_size=self.batch_size, seed=self.seed)
        return jax.jit(step, donate_argnums=0)


def train_step(
    model: Model,
    objective: Objective | Spec,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    seed: int = 0,
    time_sampler: Spec | None = None,
    ema: EmaConfig | None = None,
    trained: Sequence[str] = (f"(?!{CODEC}$).*",),
) -> TrainStep:
    """The step that trains a model, `state, metrics = step(state, batch)`.

    Args:
      model: the model, from `load_model` or made from parts.
      objective: the loss: an `Objective`, or name or {"name": ..., **options} from `OBJECTIVES`, which gets the
        model's process.
      optimizer: an Optax optimizer.
      batch_size: examples in a batch.
      seed: seed of all random numbers; the same seed, parameters and batches give the same training.
      time_sampler: name or options, from `TIME_SAMPLERS`: how a named objective draws times; None keeps its default.
      ema: averages of the parameters to keep; by default none.
      trained: patterns of the names of groups to train; by default all but the first stage.

    Raises:
      UserError: the objective is of another kind of process, or needs a teacher or features, which only a config can
        name.
    """
    loss = objective if isinstance(objective, Objective) else _built(model, objective, time_sampler)
    _require_kind(type(loss).__name__, loss.process_kind, model)
    for need, what in _NOT_HERE.items():
        if need in loss.needs:
            raise UserError(f"objective {type(loss).__name__} needs {what}: train it by a config, experiments.train")
    if loss.reads_lpips:
        raise UserError(
            f"objective {type(loss).__name__} reads files of LPIPS: train it by a config, experiments.train"
        )
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, it is {batch_size}")
    return TrainStep(
        trainable=Trainable(model=model, objective=loss),
        optimizer=optimizer,
        ema=EmaConfig() if ema is None else ema,
        batch_size=batch_size,
        seed=seed,
        trained=tuple(trained),
    )


def _built(model: Model, spec: Spec, time_sampler: Spec | None) -> Objective:
    """The named objective of the model's process."""
    process = model.process
    name = spec if isinstance(spec, str) else dict(spec).get("name")
    if name in OBJECTIVES:
        _require_kind(name, OBJECTIVES.example(name).process_kind, model)
    given = {field.name: getattr(process, field.name) for field in dataclasses.fields(process)}
    drawn = {} if time_sampler is None else {"time_sampler": TIME_SAMPLERS.build(time_sampler)}
    return OBJECTIVES.build(spec, **{**given, **drawn, "process": process})


def _require_kind(name: str, kind: str, model: Model) -> None:
    wanted = model.process.process_kind
    if kind != wanted:
        fitting = ", ".join(of_process(wanted))
        raise UserError(f"objective {name} is for the process {kind}, but the model has {wanted}: use {fitting}")
