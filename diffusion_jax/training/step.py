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

from diffusion_jax.objectives import Objective
from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.schedulers import Denoiser, Parameterization
from diffusion_jax.training.ema import EmaConfig
from diffusion_jax.training.state import TrainState

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """What is trained: a network, what its output means, and the loss.

    Attributes:
      network: a Flax module called with (x, time, conditioning, dropout_keys).
      parameterization: turns the network into a denoiser.
      objective: the loss.
      conditioning_dropout: probability of replacing an example's conditioning by the null conditioning, which
        classifier-free guidance needs (Ho & Salimans 2022).
    """

    network: Any
    parameterization: Parameterization
    objective: Objective
    conditioning_dropout: float = 0.0

    def conditioning(self, batch: Batch) -> dict[str, Array]:
        """The part of a batch that the network is conditioned on."""
        return {name: batch[name] for name in self.network.null_conditioning(1)}

    def denoiser(self, params: Any, conditioning: Batch, dropout_keys: Key[Array, " batch"] | None = None) -> Denoiser:
        """The denoiser with parameters, conditioning and dropout masks bound."""

        def network_fn(x, time):
            return self.network.apply({"params": params}, x, time, conditioning, dropout_keys)

        return self.parameterization.denoiser(network_fn)

    def loss(self, params: Any, batch: Batch, key: BatchKey) -> tuple[Float[Array, ""], Metrics]:
        """The training loss, with dropout of units and of conditioning."""
        conditioning = self.conditioning(batch)
        if self.conditioning_dropout and conditioning:
            dropped = key.fold_in("conditioning").uniform() < self.conditioning_dropout
            null = self.network.null_conditioning(key.index.shape[0])
            conditioning = jax.tree.map(
                lambda value, none: jnp.where(dropped.reshape(-1, *(1,) * (value.ndim - 1)), none, value),
                conditioning,
                null,
            )
        denoise = self.denoiser(params, conditioning, key.fold_in("dropout").per_example())
        return self.objective.loss(denoise, batch, key.fold_in("objective"))

    def validation_loss(self, params: Any, batch: Batch, key: BatchKey) -> tuple[Float[Array, ""], Metrics]:
        """The same loss without any dropout."""
        return self.objective.loss(self.denoiser(params, self.conditioning(batch)), batch, key)


def _microbatch(tree: Any, accumulation: int) -> Any:
    """[batch, ...] -> [accumulation, batch / accumulation, ...]; keeps every device's rows on that device."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]), 1, 0), tree
    )


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
            (_, metrics), gradient = jax.value_and_grad(trainable.loss, has_aux=True)(state.params, rows, batch_key)
            return gradient, metrics

        if accumulation == 1:
            gradient, metrics = gradient_of(dict(batch), index)
        else:
            rows = _microbatch((dict(batch), index), accumulation)
            first = jax.eval_shape(gradient_of, *jax.tree.map(lambda x: x[0], rows))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
            total, _ = jax.lax.scan(
                lambda sums, row: (jax.tree.map(jnp.add, sums, gradient_of(*row)), None), zeros, rows
            )
            gradient, metrics = jax.tree.map(lambda x: x / accumulation, total)
        if axis_name is not None:
            gradient, metrics = jax.lax.pmean((gradient, metrics), axis_name)

        gradient_norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(gradient_norm)
        metrics = {**metrics, "gradient_norm": gradient_norm, "learning_rate": jnp.float32(learning_rate(state.step))}
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema.update(state.ema, params, state.step, batch_size),
            nonfinite_step=jnp.where((state.nonfinite_step < 0) & ~finite, state.step + 1, state.nonfinite_step),
        ), metrics

    return train_step


def make_validation_step(trainable: Trainable, *, seed: int) -> Callable[..., Metrics]:
    """Build `validation_step(params, batch, first, size) -> metrics`; the same noise at every call for an example.

    `first` is the position of the batch's first row in the validation set of `size` examples.
    """

    def validation_step(params: Any, batch: Batch, first: Array, size: int) -> Metrics:
        index = first + jnp.arange(next(iter(batch.values())).shape[0])
        return trainable.validation_loss(params, batch, BatchKey(stream_key(seed, "validation"), index, size))[1]

    return validation_step
