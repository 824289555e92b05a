"""One optimizer step as a pure function of (state, batch).

    keys         = fold_in(seed, stream, step), then by position in the global batch               (rng.py)
    loss         = mean over the global batch of objective(denoiser, example, key)
    gradient     = d loss / d params, averaged over microbatches and devices
    params, ema  = optimizer(gradient), ema + (1 - decay) (params - ema)

The step gives the same update on one device, under `pmap`, under sharded `jit`, and with any number of microbatches,
because an example's random numbers depend on its position in the global batch alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from diffusion_jax.objectives import Context, Objective
from diffusion_jax.parallel.activations import for_cpu
from diffusion_jax.rng import BatchKey, fold_name, stream_key
from diffusion_jax.schedulers import Denoiser, on_schedule
from diffusion_jax.training.ema import EmaConfig
from diffusion_jax.training.state import TrainState

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


AUGMENT = "augment"  # conditioning that says what was done to the image, not what it shows
OBJECTIVE = "objective"  # where the objective's own parameters are, among those of the network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """What is trained: a network, what its output means, and the loss.

    Attributes:
      network: a Flax module called with (x, time, conditioning, dropout_keys).
      parameterization: turns the network into a denoiser: a `Parameterization`, or a `TokenParameterization` where the
        objective's modality is "tokens".
      objective: the loss.
      conditioning_dropout: probability of replacing an example's conditioning by the null conditioning, which
        classifier-free guidance needs (Ho & Salimans 2022).
      teacher: the frozen network to learn from, where the objective needs one; its parameters are in the state.
    """

    network: Any
    parameterization: Any
    objective: Objective
    conditioning_dropout: float | jax.Array = 0.0
    teacher: "Trainable | None" = None

    def init_params(self, key: Key[Array, ""], init_network: Callable[[Any, Key[Array, ""]], Any]) -> Any:
        """Parameters of the network, by `init_network(network, key)`, and of the objective."""
        params = init_network(self.network, key)
        own = self.objective.init_params(fold_name(key, OBJECTIVE))
        return params if own is None else {**params, OBJECTIVE: own}

    def constrain(self, params: Any) -> Any:
        """The parameters after an update, as the network allows them."""
        own = {name: value for name, value in params.items() if name != OBJECTIVE}
        loss = {OBJECTIVE: self.objective.constrain(params[OBJECTIVE])} if OBJECTIVE in params else {}
        return {**params, **self.network.constrain(own), **loss}

    def conditioning(self, batch: Batch, size: int) -> dict[str, Array]:
        """The part of a batch of `size` rows that the network is conditioned on; nothing was done to images without
        "augment"."""
        null = self.network.null_conditioning(size)
        return {name: batch.get(name, value) if name == AUGMENT else batch[name] for name, value in null.items()}

    def _without(self, conditioning: dict[str, Array], size: int) -> dict[str, Array]:
        """The null conditioning, which still says what was done to the image."""
        kept = {name: value for name, value in conditioning.items() if name == AUGMENT}
        return {**self.network.null_conditioning(size), **kept}

    def denoiser(self, params: Any, conditioning: Batch, dropout_keys: Key[Array, " batch"] | None = None) -> Denoiser:
        """The denoiser with parameters, conditioning and dropout masks bound: every call has the same masks.

        A network of two times is a flow map; asked without a second time it denoises, with s = t.
        """
        network_fn = self._network_fn(params, conditioning, dropout_keys)
        return self.objective.for_sampling(self.parameterization.denoiser(network_fn))

    def aligned(self, params: Any, conditioning: Batch, dropout_keys: Key[Array, " batch"] | None = None) -> Any:
        """The denoiser that also returns the features which the network sows, for `Context.aligned`."""

        def denoise(xt: Array, t: Array) -> tuple[Any, Array]:
            sown: list[Array] = []
            network_fn = self._network_fn(params, conditioning, dropout_keys, keep=sown.append)
            return self.parameterization.denoiser(network_fn)(xt, t), sown[0]

        return denoise

    def _network_fn(self, params, conditioning, dropout_keys, keep=None) -> Callable[..., Array]:
        """The network as a function of (x, time, second time); `keep` is given the features that it sows."""
        own = {name: value for name, value in params.items() if name != OBJECTIVE}

        def network_fn(x, time, second_time=None):
            second = (
                {} if self.network.num_times == 1 else {"second_time": time if second_time is None else second_time}
            )
            inputs = (x, time, {**conditioning, **second}, dropout_keys)
            if keep is None:
                return self.network.apply({"params": own}, *inputs)
            output, variables = self.network.apply({"params": own}, *inputs, mutable=["aligned"])
            keep(variables["aligned"]["features"])
            return output

        return network_fn

    def loss(self, params: Any, state: TrainState, batch: Batch, key: BatchKey) -> tuple[Float[Array, ""], Any]:
        """The training loss, with dropout of units and of conditioning, and (metrics, values for `update_state`).

        Args:
          params: the parameters to differentiate with respect to.
          state: gives the step, the target's and teacher's parameters and the objective's state.
          batch: examples.
          key: their keys.
        """
        size = key.index.shape[0]
        conditioning = self.conditioning(batch, size)
        never = isinstance(self.conditioning_dropout, int | float) and self.conditioning_dropout == 0
        if conditioning and not never:  # a traced probability may be 0
            dropped = key.fold_in("conditioning").uniform() < self.conditioning_dropout
            null = self._without(conditioning, size)
            conditioning = jax.tree.map(
                lambda value, none: jnp.where(dropped.reshape(-1, *(1,) * (value.ndim - 1)), none, value),
                conditioning,
                null,
            )
        dropout_keys = key.fold_in("dropout").per_example()
        return self._loss(params, state, batch, conditioning, dropout_keys, key.fold_in("objective"))

    def validation_loss(
        self, params: Any, state: TrainState, batch: Batch, key: BatchKey
    ) -> tuple[Float[Array, ""], Any]:
        """The same loss without any dropout."""
        return self._loss(params, state, batch, self.conditioning(batch, key.index.shape[0]), None, key)

    def _loss(self, params, state, batch, conditioning, dropout_keys, key):
        denoise = self.denoiser(params, conditioning, dropout_keys)
        target = teacher = None
        if state.target is not None:
            target = self.denoiser(jax.lax.stop_gradient(state.target), conditioning, dropout_keys)
        if state.teacher is not None and self.teacher is not None:
            teacher = self.teacher.denoiser(jax.lax.stop_gradient(state.teacher), conditioning)
            own, theirs = self.parameterization.schedule, self.teacher.parameterization.schedule
            teacher = teacher if own == theirs else on_schedule(teacher, theirs, own)
        null = self._without(conditioning, key.index.shape[0])
        context = Context(
            step=state.step,
            target=target,
            teacher=teacher,
            unconditional=self.denoiser(params, null, dropout_keys) if null else None,
            aligned=self.aligned(params, conditioning, dropout_keys)
            if getattr(self.network, "aligned_shape", None)
            else None,
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
    """Per-example values of all microbatches and devices in the order of the global batch."""
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
    learning_rate: optax.Schedule,
    batch_size: int,
    seed: int,
    accumulation: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Build `train_step(state, batch, axis_name=None) -> (state, metrics)`.

    Args:
      trainable: network, parameterization and objective.
      optimizer: the Optax transformation whose state is in `state.opt_state`.
      ema: the averages kept in `state.ema`.
      learning_rate: reported in the metrics; the optimizer holds its own copy.
      batch_size: examples of the global batch.
      seed: of all random streams.
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

            # In a loop XLA for CPU is slow at the gradients of convolutions (benchmarks/models.py).
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
        metrics = {**metrics, "gradient_norm": gradient_norm, "learning_rate": jnp.float32(learning_rate(state.step))}
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema.update(state.ema, params, state.step, batch_size),
            nonfinite_step=jnp.where((state.nonfinite_step < 0) & ~finite, state.step + 1, state.nonfinite_step),
            target=target,
            teacher=state.teacher,
            objective_state=objective_state,
        ), metrics

    return train_step


def make_validation_step(trainable: Trainable, *, seed: int) -> Callable[..., Metrics]:
    """Build `validation_step(params, state, batch, first, size) -> metrics`; an example's noise is always the same.

    `params` are those to judge, an average perhaps; the rest of what the loss needs is in `state`. `first` is the
    position of the batch's first row in the validation set of `size` examples.
    """

    def validation_step(params: Any, state: TrainState, batch: Batch, first: Array, size: int) -> Metrics:
        index = first + jnp.arange(next(iter(batch.values())).shape[0])
        key = BatchKey(stream_key(seed, "validation"), index, size)
        return trainable.validation_loss(params, state, batch, key)[1][0]

    return validation_step
