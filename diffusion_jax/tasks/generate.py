"""Draw samples of a model with one call, for a script or a notebook."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from diffusion_jax.data import as_stored
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import GUIDANCE, SAMPLERS, sample, sample_tokens, samplers_of
from diffusion_jax.schedulers import GRIDS, SCHEDULES, ShiftGrid, TimeGrid, shift_of_size
from diffusion_jax.systems import Model, Params
from diffusion_jax.tasks.frame import Setting

Spec = str | Mapping[str, Any]


def generate(
    model: Model,
    params: Params,
    asked: Mapping[str, Sequence[Any]] | None = None,
    *,
    key: Key[Array, ""],
    num_samples: int | None = None,
    sampler: Spec = "heun",
    steps: int = 18,
    grid: Spec = "uniform",
    guidance: float | Spec = 1.0,
    negative: Mapping[str, Any] | None = None,
    clip_x0: bool = False,
    batch_size: int = 64,
    height: int | None = None,
    width: int | None = None,
    shift: float | None = None,
) -> np.ndarray:
    """Draw samples.

        generate(model, params, {"text": ["a red star", "two blue rings"]}, key=jax.random.key(0), guidance=3.0)

    Args:
      model: the model, from `load_model`.
      params: its parameters.
      asked: what the samples shall show, under the data's names and in words that people use: {"label": [3, 7]} or
        {"text": ["a red star"]}; sample i uses row i, modulo the number of rows. None asks for nothing.
      key: key of the random numbers; sample i depends on the key, i and its row, not on `batch_size`.
      num_samples: by default one for each row of `asked`, else one.
      sampler: name or {"name": ..., **options}, one of those in `SAMPLERS` that fit the process.
      steps: steps of the sampler.
      grid: name or options, from `GRIDS`.
      guidance: a scale of classifier-free guidance, or name and options, from `GUIDANCE`.
      negative: what guidance leads away from, {"text": "a blue ring"}, instead of nothing.
      clip_x0: whether predictions are clipped to [-1, 1].
      batch_size: samples drawn at once.
      height, width: of pictures in pixels; by default those of the data.
      shift: how far times are moved towards noise; by default as far as the size wants (`shift_of_size`).

    Returns:
      uint8 [num_samples, height, width, channels] for pixels, float32 for latents, int32 for tokens.

    Raises:
      UserError: parts do not fit, or something is asked for that the model has no condition for.
      RunError: samples are not finite.
    """
    if batch_size < 1 or (num_samples is not None and num_samples < 1):
        raise UserError(f"num_samples and batch_size must be at least 1, they are {num_samples} and {batch_size}")
    trained = model.diffused.shape
    model = model.of_size(height, width) if height or width else model
    rows = _prepared(model, asked or {})
    count = num_samples or max((len(value) for value in rows.values()), default=1)
    rule = {"name": "classifier_free", "scale": float(guidance)} if isinstance(guidance, int | float) else guidance
    discrete = model.process.discrete
    schedule = SCHEDULES.build("rectified_flow") if discrete else model.process.schedule
    way, wanted = SAMPLERS.build(sampler), model.process.process_kind
    if way.process_kind != wanted:
        raise UserError(
            f"sampler {type(way).__name__} is of the process {way.process_kind}, the model of {wanted}: use "
            f"{', '.join(samplers_of(wanted))}"
        )
    setting = Setting(
        model=model,
        sampler=way,
        grid=_grid("uniform" if discrete else grid, schedule, steps, shift, trained, model.diffused.shape),
        guidance=GUIDANCE.build(rule),
        clip_x0=clip_x0,
        negative={name: value[0] for name, value in _prepared(model, _alone(negative)).items()} or None,
    )
    setting.check()
    draw = jax.jit(functools.partial(_draw, setting, min(batch_size, count)))
    parts = []
    for first in range(0, count, batch_size):
        index = np.arange(first, first + min(batch_size, count))
        given = {name: value[index % len(value)] for name, value in rows.items()}
        parts.append(np.asarray(draw(params, given, key, index.astype(np.int32))))
    found = np.concatenate(parts)[:count]
    bad = np.flatnonzero(~np.isfinite(found.reshape(count, -1)).all(axis=1))
    if len(bad):
        raise RunError(f"{len(bad)} of {count} samples are not finite, the first is {bad[0]}")
    return as_stored(model.data, found)


def _grid(spec: Spec, schedule: Any, steps: int, shift: float | None, trained: Any, wanted: Any) -> TimeGrid:
    """The grid of a rule, shifted for pictures of another size."""
    rule = GRIDS.build(spec)
    if shift is None and wanted != trained:
        shift = shift_of_size(schedule, math.prod(wanted[:2]), math.prod(trained[:2]))
    return (rule if shift in (None, 1.0) else ShiftGrid(base=rule, shift=shift))(schedule, steps)


def _draw(setting: Setting, size: int, params: Params, given: Mapping[str, Array], key: Array, index: Array) -> Array:
    model, batch_key = setting.model, BatchKey(key, index, size)
    denoiser, shape = setting.guided(params, given or None, size), model.diffused.shape
    if model.process.discrete:
        z = sample_tokens(setting.sampler, denoiser, model.process, setting.grid.num_steps, shape, batch_key).tokens
    else:
        z = sample(setting.sampler, denoiser, setting.grid, shape, batch_key, **setting.options).x0
    return model.decode(params, z)


def _prepared(model: Model, asked: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Raw fields from values that people use."""
    parts = {name: part for part in model.conditioning.parts for name in part.prepares}
    for name in asked:
        if name not in parts:
            raise UserError(unknown_name("condition of this model", name, list(parts)))
    found: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        if name in asked:
            found |= part.prepare({each: list(asked[each]) for each in part.prepares})
    return found


def _alone(negative: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    return {name: [value] for name, value in (negative or {}).items()}
