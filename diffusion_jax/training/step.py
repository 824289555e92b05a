"""One optimizer step as a pure function of (state, batch).

    keys         = fold_in(seed, stream, step), then by position in the global batch               (rng.py)
    z            = codec.encode(batch["data"]);  conditions = conditioning(batch), some of them dropped
    loss         = mean over the global batch of objective(denoiser, z, key)
    gradient     = d loss / d params, averaged over microbatches and devices
    params, ema  = optimizer(gradient), ema + (1 - decay) (params - ema)

The step gives the same update on one device, under `pmap`, under sharded `jit`, and with any number of microbatches,
because an example's random numbers depend only on its position in the global batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from diffusion_jax.conditioning import Conditions
from diffusion_jax.objectives import Context, Objective, with_copies
from diffusion_jax.parallel.activations import for_cpu
from diffusion_jax.rng import BatchKey, fold_name, stream_key
from diffusion_jax.schedulers import Denoiser
from diffusion_jax.specs import DATA, FEATURES
from diffusion_jax.systems import NETWORK, Model, Params
from diffusion_jax.training.ema import EmaConfig
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.teaching import UNGUIDED, drawn_scale, taught_by, told

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


OBJECTIVE = "objective"  # the group of the objective's own parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """A model and the loss that trains it.

    Attributes:
      model: network, codec, conditioning and process.
      objective: the loss.
      teacher: the frozen model to learn from, if the objective needs one; its parameters are in the state.
      guidance: bounds of the teacher's guidance scales, which the model receives too if it takes one.
    """

    model: Model
    objective: Objective
    teacher: Model | None = None
    guidance: tuple[float, float] = UNGUIDED

    def init_params(self, key: Key[Array, ""], init_network: Callable[[Any, Key[Array, ""]], Any]) -> Params:
        """Parameters of the model, its network's by `init_network(network, key)`, and of the objective."""
        return self.with_own(self.model.init_params(key, init_network), key)

    def with_own(self, params: Params, key: Key[Array, ""]) -> Params:
        """Parameters of the model with those of the objective beside them."""
        own = self.objective.init_params(fold_name(key, OBJECTIVE))
        own = with_copies(self.objective, own, params[NETWORK])
        return params if own is None else {**params, OBJECTIVE: own}

    def constrain(self, params: Params) -> Params:
        """The nearest parameters that the network and the loss allow, applied after an update."""
        loss = {OBJECTIVE: self.objective.constrain(params[OBJECTIVE])} if OBJECTIVE in params else {}
        return {**self.model.constrain(params), **loss}

    def denoiser(
        self, params: Params, conditions: Conditions, dropout_keys: Key[Array, " batch"] | None = None
    ) -> Denoiser:
        """The model's denoiser for samplers, which calls the network only at times that the loss trains."""
        return self.objective.for_sampling(self.model.denoiser(params, conditions, dropout_keys))

    def teacher_params(self, state: TrainState) -> Params | None:
        """The parameters of the teacher; for an adapter the teacher is its own model, whose groups are frozen."""
        return state.frozen if state.teacher is None and self.model.adapters else state.teacher

    def _with_network(self, params: Params, conditions: Conditions) -> Callable[[Any], Denoiser]:
        """Parameters of another network like this one -> its denoiser."""
        return lambda network: self.model.denoiser({**params, NETWORK: network}, conditions)

    def loss(self, params: Params, state: TrainState, batch: Batch, key: BatchKey) -> tuple[Float[Array, ""], Any]:
        """The training loss, with dropout of units and of conditions, and (metrics, values for `update_state`).

        Args:
          params: the parameters to differentiate with respect to.
          state: gives the step, the frozen groups, the target's and teacher's parameters and the objective's state.
          batch: examples.
          key: their keys.
        """
        params = state.whole(params)
        batch = {**batch, DATA: self.model.encode(params, batch[DATA], key)}
        dropout_keys = key.fold_in("dropout").per_example()
        return self._loss(params, state, batch, (self.model, key), dropout_keys, key.fold_in("objective"))

    def validation_loss(
        self, params: Params, state: TrainState, batch: Batch, key: BatchKey
    ) -> tuple[Float[Array, ""], Any]:
        """The same loss without dropout; `params` holds all groups, or only the trained ones."""
        params = state.whole(params)
        batch = {**batch, DATA: self.model.encode(params, batch[DATA])}
        return self._loss(params, state, batch, None, None, key)

    def _loss(self, params, state, batch, dropping, dropout_keys, key):
        model, size = self.model, key.index.shape[0]
        conditions = told(model, params, batch, size, dropping, dropout_keys)
        scale = None if self.guidance == UNGUIDED else drawn_scale(self.guidance, key)
        if model.embeds_guidance and scale is not None:
            conditions = model.with_guidance(conditions, scale)
        denoise = model.denoiser(params, conditions, dropout_keys)
        target = teacher = aligned = None
        if state.target is not None:
            averaged = state.whole(jax.lax.stop_gradient(state.target))
            target = model.denoiser(averaged, conditions, dropout_keys)
        if self.teacher is not None and self.teacher_params(state) is not None:
            theirs = self.teacher_params(state)
            asked = told(self.teacher, theirs, batch, size, dropping)
            teacher = taught_by(self.teacher, theirs, asked, scale, model)
        if FEATURES in model.network.sows:
            aligned = model.sowing(params, conditions, dropout_keys)
        null = model.without(params, conditions, size)
        context = Context(
            step=state.step,
            target=target,
            teacher=teacher,
            unconditional=model.denoiser(params, null, dropout_keys) if null else None,
            aligned=aligned,
            with_network=self._with_network(params, jax.lax.stop_gradient(conditions)),
            params=params.get(OBJECTIVE),
            state=state.objective_state,
        )
        return self.objective.loss_and_observed(denoise, batch, key, context)


def _microbatch(tree: Any, accumulation: int) -> Any:
    """[batch, ...] -> [accumulation, batch / accumulation, ...]; keeps every device's rows on that device."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]), 1, 0), tree
    )


def _whole(observed: Any, accumulation: int, axis_name: str | None) -> Any:
    """Per-example values of all microbatches and devices, in the order of the global batch."""
    if accumulation > 1:  # the inverse of `_microbatch`
        observed = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), observed)
    if axis_name is not None:
        observed = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), observed)
    return observed


def make_train_step(
    trainable: Trainable,
    optimizer: optax.GradientTransformation,
    *,
    ema: EmaConfig,
    learning_rate: optax.Schedule | None = None,
    batch_size: int,
    seed: int,
    accumulation: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Build `train_step(state, batch, axis_name=None) -> (state, metrics)`.

    Args:
      trainable: model and objective.
      optimizer: the Optax transformation whose state is in `state.opt_state`.
      ema: the averages kept in `state.ema`.
      learning_rate: reported in the metrics, where it is given; the optimizer holds its own copy.
      batch_size: examples of the global batch.
      seed: seed of all random streams.
      accumulation: microbatches per step; divides the batch of every device.
    """

    def train_step(state: TrainState, batch: Batch, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
        local = next(iter(batch.values())).shape[0]
        offset = 0 if axis_name is None else jax.lax.axis_index(axis_name) * local
        key = stream_key(seed, "train", state.step)
        index = offset + jnp.arange(local)

        def gradient_of(rows, row_index):
            batch_key = BatchKey(key, row_index, batch_size)
            gradient_fn = jax.value_and_grad(trainable.loss, has_aux=True)
            (_, (metrics, observed)), gradient = gradient_fn(state.params, state, rows, batch_key)
            return (gradient, metrics), observed

        if accumulation == 1:
            (gradient, metrics), observed = gradient_of(dict(batch), index)
        else:
            rows = _microbatch((dict(batch), index), accumulation)
            first, _ = jax.eval_shape(gradient_of, *jax.tree.map(lambda x: x[0], rows))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

            def add(sums, row):
                terms, observed = gradient_of(*row)
                return jax.tree.map(jnp.add, sums, terms), observed

            # In a loop XLA for CPU computes gradients of convolutions slowly (benchmarks/models.py).
            total, observed = jax.lax.scan(add, zeros, rows, unroll=for_cpu())
            gradient, metrics = jax.tree.map(lambda x: x / accumulation, total)
        if axis_name is not None:
            gradient, metrics = jax.lax.pmean((gradient, metrics), axis_name)
        objective_state = state.objective_state
        if objective_state is not None:
            observed = _whole(observed, accumulation, axis_name)
            objective_state = trainable.objective.update_state(objective_state, observed)

        gradient_norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = trainable.constrain(optax.apply_updates(state.params, updates))
        target = state.target
        if target is not None:
            decay = trainable.objective.target_decay_at(state.step)
            target = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), target, params)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(gradient_norm)
        metrics = {**metrics, "gradient_norm": gradient_norm}
        if learning_rate is not None:
            metrics["learning_rate"] = jnp.float32(learning_rate(state.step))
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema.update(state.ema, params, state.step, batch_size),
            nonfinite_step=jnp.where((state.nonfinite_step < 0) & ~finite, state.step + 1, state.nonfinite_step),
            target=target,
            teacher=state.teacher,
            objective_state=objective_state,
            frozen=state.frozen,
        ), metrics

    return train_step


def make_validation_step(trainable: Trainable, *, seed: int) -> Callable[..., Metrics]:
    """Build `validation_step(params, state, batch, first, size) -> metrics`; an example's noise is always the same.

    `params` are the parameters to evaluate, possibly an average; the loss takes everything else from `state`. `first`
    is the position of the batch's first row in the validation set of `size` examples.
    """

    def validation_step(params: Any, state: TrainState, batch: Batch, first: Array, size: int) -> Metrics:
        index = first + jnp.arange(next(iter(batch.values())).shape[0])
        key = BatchKey(stream_key(seed, "validation"), index, size)
        return trainable.validation_loss(params, state, batch, key)[1][0]

    return validation_step
