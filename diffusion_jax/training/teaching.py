"""How a frozen teacher is evaluated while a student learns: with its own conditioners, and guided.

A text-to-image teacher draws well only with guidance, so a student should reach the guided prediction in fewer steps.
With the scale w of an example (Ho & Salimans 2022, arXiv:2207.12598),

    (1)   teacher = unconditional + w (conditional - unconditional),      w ~ U[low, high],

in x0 and in noise alike. A student with w as an input (`Model.with_guidance`) learns all scales at once, and one
evaluation of it replaces two of the teacher (Meng et al. 2022, arXiv:2210.03142). A teacher that takes w as an input
receives it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.conditioning import Conditions
from diffusion_jax.errors import UserError
from diffusion_jax.objectives.objective import Batch
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Denoiser, Prediction, on_schedule
from diffusion_jax.schedulers.arrays import like_data
from diffusion_jax.systems import Model, Params

UNGUIDED = (1.0, 1.0)
"""Bounds of the scale for a teacher without guidance."""


def drawn_scale(bounds: tuple[float, float], key: BatchKey) -> Float[Array, " batch"]:
    """w of (1), for every example."""
    low, high = bounds
    return low + (high - low) * key.fold_in("guidance").uniform()


def guided_by(
    conditional: Denoiser, unconditional: Denoiser, scale: Float[Array, " batch"] | Float[Array, ""]
) -> Denoiser:
    """The denoiser of (1)."""

    def denoise(xt: Array, t: Array, *s: Array) -> Prediction:
        towards, away = conditional(xt, t, *s), unconditional(xt, t, *s)
        w = like_data(scale, xt)
        return Prediction(x0=away.x0 + w * (towards.x0 - away.x0), noise=away.noise + w * (towards.noise - away.noise))

    return denoise


def told(
    model: Model,
    params: Params,
    batch: Batch,
    size: int,
    dropping: tuple[Model, BatchKey] | None,
    dropout_keys: Key[Array, " batch"] | None = None,
) -> Conditions:
    """A model's conditions for a batch.

    `dropping` is the model whose conditioning dropout rates apply, and the keys; `dropout_keys` are for the units in
    the conditioners.
    """
    conditions = model.conditions(params, batch, size, dropout_keys)
    if dropping is None:
        return conditions
    other, key = dropping
    dropout = {slots: rate for slots, rate in other.conditioning.dropout.items() if set(slots) <= set(conditions)}
    conditioning = dataclasses.replace(model.conditioning, dropout=dropout)
    return dataclasses.replace(model, conditioning=conditioning).dropped(params, conditions, key)


def taught_by(
    model: Model, params: Params, conditions: Conditions, scale: Float[Array, " batch"] | None, student: Model
) -> Denoiser:
    """The teacher's denoiser on the schedule of its student, guided if there is a scale.

    Raises:
      UserError: it is to be guided, but has no condition that could be dropped.
    """
    params = jax.lax.stop_gradient(params)
    if scale is not None and model.embeds_guidance:
        conditions, scale = model.with_guidance(conditions, scale), None
    denoise = model.denoiser(params, conditions)
    if scale is not None:
        if not model.conditioning.asked:
            raise UserError("teacher.guidance_scale guides a teacher that has no conditions: leave it out")
        null = model.without(params, conditions, jnp.shape(scale)[0])
        denoise = guided_by(denoise, model.denoiser(params, null), scale)
    own, theirs = student.process.schedule, model.process.schedule
    return denoise if own == theirs else on_schedule(denoise, theirs, own)
