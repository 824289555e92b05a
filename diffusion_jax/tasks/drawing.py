"""Samples of a model: one call for a script or a notebook, and the pure function that it compiles."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from diffusion_jax.data import to_uint8
from diffusion_jax.data.samples import Samples
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.samplers import GUIDANCE, SAMPLERS, Rule, sample_tokens, samplers_of
from diffusion_jax.samplers import sample as walk
from diffusion_jax.samplers.guidance import Negative, name_of
from diffusion_jax.schedulers import GRIDS, SCHEDULES, TimeGrid, shifted
from diffusion_jax.systems import Model, Params
from diffusion_jax.systems.recipe import Spec
from diffusion_jax.tasks.frame import Raw, Setting

_GIVEN_BY = {"label": "labels=", "text": "prompts="}
_FITTING = {"denoiser": "dpmpp_2m", "consistency": "consistency", "flow_map": "flow_map"}


def sample(
    model: Model,
    params: Params,
    *,
    labels: int | str | Sequence[int | str] | None = None,
    prompts: str | Sequence[str] | None = None,
    asked: Mapping[str, Sequence[Any]] | None = None,
    negative_prompt: str | int | None = None,
    num_images: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance: Spec | None = None,
    sampler: Spec | None = None,
    grid: Spec | None = None,
    height: int | None = None,
    width: int | None = None,
    shift: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Samples:
    """Draw pictures.

        model, params = load_model("runs/digits")
        sample(model, params, labels=[3, 7], num_inference_steps=20, guidance_scale=1.5, seed=0)

    Arguments that are left out take their values from the model's recipe (`Model.sampling`): a run is sampled as its
    config says, and the same seed gives the pictures of `experiments.sample`. The first stage of a model of latents
    decodes them.

    Args:
      model: the model, from `load_model` or made from parts.
      params: its parameters by group.
      labels: one class or several, by number or name.
      prompts: one text or several.
      asked: what else the network is told, under the data's names: {"source": pictures}, one value for each picture.
      negative_prompt: what guidance leads away from, instead of nothing: a text, or a class if the model is told no
        texts.
      num_images: how many pictures; by default one for each label or prompt. Picture i uses value i, modulo the number
        of values.
      num_inference_steps: steps of the sampler.
      guidance_scale: how strongly guidance leads towards what is asked for; 1 switches it off.
      guidance: name or {"name": ..., **options}, from `GUIDANCE`.
      sampler: name or options of a sampler in `SAMPLERS` that fits the model.
      grid: name or options, from `GRIDS`: the times that the sampler visits.
      height, width: size of the pictures in pixels; by default the data's.
      shift: how far times move towards noise; by default the shift of the size (`shift_of_size`).
      seed: seed of the random numbers; picture i depends on the seed, on i and on what it is asked for, and on
        `batch_size` only by rounding.
      batch_size: pictures drawn at once.

    Returns:
      `Samples`, uint8 [num_images, height, width, channels]: a notebook shows a grid, `np.asarray` gives the array.

    Raises:
      UserError: something is asked for that the model has no condition for, parts do not fit, or the model draws no
        pictures.
      RunError: a picture is not finite.
    """
    _require_pictures(model)
    counts = {"num_images": num_images, "batch_size": batch_size, "num_inference_steps": num_inference_steps}
    for name, number in counts.items():
        if number is not None and number < 1:
            raise UserError(f"{name} must be at least 1, it is {number}")
    trained, model = model, model.of_size(height, width) if height or width else model
    if shift is None and model.diffused != trained.diffused:
        shift = model.shift_from(trained)
    said = _said(labels, prompts, asked)
    rows = _prepared(model, said)
    count = num_images or max((len(value) for value in rows.values()), default=1)
    rule = _rule(model, bool(rows), guidance, guidance_scale, negative_prompt)
    times = _times(model, model.sampling.grid if grid is None else grid, num_inference_steps, shift)
    setting = _setting(model, rule, sampler, times, negative_prompt)
    found = _drawn(setting, params, rows, count, seed, batch_size)
    texts = said.get("text", ())
    of_classes = rows.get("label") if not texts else None
    return Samples(
        images=to_uint8(found),
        labels=None if of_classes is None else of_classes[np.arange(count) % len(of_classes)],
        class_names=next((part.class_names for part in model.conditioning.parts if part.class_names), ()),
        captions=tuple(str(texts[i % len(texts)]) for i in range(count)) if texts else (),
    )


def draw(setting: Setting, params: Params, asked: Raw | None, key: BatchKey) -> Array:
    """The samples of one batch, a pure function.

    Args:
      setting: model, sampler, times and guidance.
      params: parameters by group.
      asked: raw fields that say what the samples shall show, [batch, ...]; None asks for nothing.
      key: keys of the batch.

    Returns:
      Data as the codec decodes it: float32 [batch, height, width, channels] in [-1, 1] for pixels, int32 for texts.
    """
    model, size = setting.model, key.index.shape[0]
    denoiser, shape = setting.guided(params, asked, size), model.diffused.shape
    if model.process.discrete:
        z = sample_tokens(setting.sampler, denoiser, model.process, setting.grid.num_steps, shape, key).tokens
    else:
        z = walk(setting.sampler, denoiser, setting.grid, shape, key, **setting.options).x0
    return model.decode(params, z)


def _drawn(
    setting: Setting, params: Params, rows: Mapping[str, np.ndarray], count: int, seed: int, batch_size: int
) -> np.ndarray:
    """All samples, batch by batch, as `draw` gives them."""
    size, key = min(batch_size, count), stream_key(seed, "sample")

    @jax.jit
    def run(params: Params, given: Raw, key: Key[Array, ""], index: Int[Array, " batch"]) -> Array:
        return draw(setting, params, given or None, BatchKey(key, index, size))

    parts = []
    for first in range(0, count, size):
        index = np.arange(first, first + size)
        given = {name: value[index % len(value)] for name, value in rows.items()}
        parts.append(np.asarray(run(params, given, key, index.astype(np.int32))))
    found = np.concatenate(parts)[:count]
    bad = np.flatnonzero(~np.isfinite(found.reshape(count, -1)).all(axis=1))
    if len(bad):
        raise RunError(
            f"{len(bad)} of {count} pictures are not finite, the first is {bad[0]}: take fewer or other steps, or "
            "another average of the parameters"
        )
    return found


def _require_pictures(model: Model) -> None:
    kind = model.shown.kind
    if kind == "tokens":
        raise UserError("the model draws tokens of a text, not pictures: experiments.sample --workdir=RUN writes texts")
    if kind == "latents":
        raise UserError("the model draws latents, and has no first stage to decode them: use diffusion_jax.tasks.draw")


def _said(labels: Any, prompts: Any, asked: Mapping[str, Sequence[Any]] | None) -> dict[str, list[Any]]:
    """What is asked for by the names of the data, each as a list of values."""
    given = dict(asked or {})
    for name, value in {"label": labels, "text": prompts}.items():
        if value is not None and name in given:
            raise UserError(f"asked names {name!r}, and so does {_GIVEN_BY[name]}...: give one of them")
        if value is not None:
            given[name] = [value] if isinstance(value, str) or np.ndim(value) == 0 else list(value)
    lengths = {name: len(values) for name, values in given.items()}
    for name, length in lengths.items():
        if not length:
            raise UserError(f"{name} has no value: give at least one, or leave it out")
    if len(set(lengths.values()) - {1}) > 1:
        raise UserError(f"{', '.join(f'{n} has {c}' for n, c in lengths.items())} values: give as many of each, or one")
    return given


def _prepared(model: Model, said: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Raw fields of a batch from what a person says."""
    parts = {name: part for part in model.conditioning.parts for name in part.prepares}
    for name in said:
        if name not in parts:
            raise UserError(unknown_name("condition of this model", name, list(parts)))
    found: dict[str, np.ndarray] = {}
    for part in model.conditioning.parts:
        missing = [name for name in part.prepares if name not in said]
        if said and missing and (len(missing) < len(part.prepares) or missing[0] in _GIVEN_BY):
            told, lacks = ", ".join(parts), missing[0]
            raise UserError(f"this model is told {told}, but {lacks} is missing: give {_giving(lacks)}")
        if not missing and part.prepares:
            found |= part.prepare({name: list(said[name]) for name in part.prepares})
    return found


def _giving(name: str) -> str:
    return f"{_GIVEN_BY[name]}..." if name in _GIVEN_BY else f'asked={{"{name}": ...}}'


def _rule(model: Model, is_asked: bool, guidance: Spec | None, scale: float | None, negative: str | int | None) -> Rule:
    """The guidance rule that is named, or the recipe's; without a request the recipe's rule is switched off."""
    of_recipe = model.sampling.guidance if is_asked or scale is not None else "none"
    spec = of_recipe if guidance is None else guidance
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    if scale is not None:
        named = spec.get("name") if guidance is not None or spec.get("name") != "none" else "classifier_free"
        spec = {**spec, "name": named, "scale": float(scale)}
    rule = GUIDANCE.build(spec)
    if rule.others and not rule.neutral:
        raise UserError(
            f"guidance {name_of(rule)} needs another network, which experiments.sample brings: give guidance="
            "'classifier_free' here, or guidance_scale=1"
        )
    if negative is None or negative == "":
        return rule
    if rule.neutral:
        raise UserError("negative_prompt has no effect without guidance: give guidance_scale=..., such as 2")
    return Negative(scale=rule.scale, interval=rule.interval, rescale=rule.rescale, negative=negative)


def _setting(model: Model, rule: Rule, sampler: Spec | None, times: TimeGrid, negative: str | int | None) -> Setting:
    recipe, discrete, wanted = model.sampling, model.process.discrete, model.process.process_kind
    makes = "flow_map" if model.is_flow_map else recipe.makes
    fitting = samplers_of(wanted)[0] if discrete else _FITTING[makes]
    way = SAMPLERS.build(sampler or recipe.sampler or fitting)
    setting = Setting(
        model=model,
        sampler=way,
        grid=times,
        guidance=rule,
        clip_x0=recipe.clip_x0 and not discrete,
        denoiser=lambda params, conditions: recipe.asking(model.denoiser(params, conditions)),
        negative=None if negative in (None, "") else model.conditioning.said(negative),
    )
    if way.process_kind != wanted:
        raise UserError(
            f"sampler {type(way).__name__} is for the process {way.process_kind}, but the model has {wanted}: use "
            f"{', '.join(samplers_of(wanted))}"
        )
    if setting.sampler_kind not in (makes, *(("denoiser",) if makes == "flow_map" else ())):
        others = [name for name in samplers_of(wanted) if SAMPLERS.example(name).denoiser_kind == makes]
        raise UserError(
            f"sampler {type(way).__name__} needs a {setting.sampler_kind}, but the model is a {makes}: use "
            f"{', '.join(others)}"
        )
    setting.check()
    return setting


def _times(model: Model, grid: Spec, steps: int | None, shift: float | None) -> TimeGrid:
    recipe = model.sampling
    count = recipe.steps if steps is None else steps
    if recipe.most_steps is not None and count > recipe.most_steps:
        raise UserError(f"{count} steps are more than the model was trained for, which are {recipe.most_steps}")
    if model.process.discrete and shift not in (None, 1.0):
        raise UserError("shift moves the times of Gaussian noise, but this model draws tokens: leave it out")
    if model.process.discrete:  # at equal times; a grid's alphas and sigmas mean nothing to tokens
        return GRIDS.build("uniform")(SCHEDULES.build("rectified_flow"), count)
    return shifted(GRIDS.build(grid), shift)(model.process.schedule, count)
