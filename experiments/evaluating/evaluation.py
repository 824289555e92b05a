"""Draws samples of a trained network and judges them by the metrics that the config or the command line names."""

import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import parallel
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.files import locked, replace_file
from diffusion_jax.metrics import ImageSet, evaluate_all, nearest
from diffusion_jax.samplers.guidance import ClassifierFree, Negative, Rule, name_of
from diffusion_jax.systems import Model
from diffusion_jax.tasks import Task
from experiments.building.checks import check_told_scale
from experiments.building.restoring import restore_params
from experiments.building.wiring import Experiment
from experiments.evaluating import judging, reconstruction
from experiments.evaluating.asked import Asked, asked_for, asked_in_words
from experiments.evaluating.drawing import Drawing
from experiments.evaluating.generation import Classifier, Generator, Given, Guide
from experiments.evaluating.pictures import save_animation, save_captioned, save_grid, save_neighbours
from experiments.evaluating.texts import MOST_SHOWN, save_texts
from experiments.ground.progress import ProgressBar

GRID_SIZE = 100  # samples in final.png
PICTURE_SIZE, COLUMNS = 40, 10  # samples in the picture of a cell, and in a row of it
NEIGHBOURS = 20  # pairs in neighbours.png
ANIMATED, MOMENTS = 40, 36  # samples and frames of an animation, at most
PATHS, PATH_POINTS = 10, 9  # samples and moments in denoising.png
MOST_PATH_BYTES = 2**25  # bytes of one sample's states at all points of the grid, above which denoising.png is omitted


def generator(
    experiment: Experiment,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative: str | None = None,
    batch_size: int | None = None,
    task: Task | None = None,
    model: Model | None = None,
    shift: float = 1.0,
    stand_in: bool = False,
) -> Generator:
    """The config's sampling settings, with given changes.

    Args:
      experiment: the run; `config.sampling.guidance` is its guidance.
      sampler: name of a sampler, used with its default options.
      steps: transitions of the grid.
      guidance_scale: scale of the rule, instead of the config's.
      negative: a text that replaces the null condition in guidance; "" is nothing.
      batch_size: samples per call.
      task: the task, instead of drawing from noise.
      model: the experiment's model in another form, see `Generator`.
      shift: how far times move towards noise, for pictures of other sizes; 1: not at all.
      stand_in: use the null condition for a guide that is not named, for programs that are only planned or counted.

    Raises:
      UserError: a sampler or a guidance rule does not fit, or a guide cannot be read or has other data.
    """
    rule = _rule(experiment, guidance_scale, negative)
    needs_guide = "worse" in rule.others and not rule.neutral
    if needs_guide and stand_in and not rule.guide:
        rule = ClassifierFree(scale=rule.scale, interval=rule.interval, rescale=rule.rescale)
        needs_guide = False
    if needs_guide:
        require_guide(experiment)
    return Generator(
        experiment=experiment,
        sampler=experiment.sampler(sampler),
        grid=experiment.grid(steps, shift),
        guidance=rule,
        guide=read_guide(rule.guide, rule.guide_ema) if needs_guide else None,
        classifier=_classifier(experiment) if "classifier" in rule.others and not rule.neutral else None,
        negative=None if rule.negative == "" or rule.neutral else _negative(experiment, str(rule.negative)),
        batch_size=batch_size or experiment.config.sampling.batch_size,
        task=task,
        model=model,
    )


def _rule(experiment: Experiment, scale: float | None, negative: str | None) -> Rule:
    """The config's guidance rule, with another scale or a negative prompt."""
    rule = experiment.guidance()
    if scale is not None:
        check_told_scale(experiment, scale)
        rule = dataclasses.replace(rule, scale=scale)
    if negative is None:
        return rule
    _negative(experiment, negative)  # raises its error
    if rule.neutral or rule.others:
        raise UserError("a negative prompt replaces the null condition: it needs guidance without a guide")
    if not negative:
        return rule
    return Negative(scale=rule.scale, interval=rule.interval, rescale=rule.rescale, negative=negative)


def _negative(experiment: Experiment, said: str) -> dict[str, np.ndarray]:
    """Raw fields of one row to guide away from: a text, or a class if the network has no text condition."""
    if experiment.told_text is None and experiment.num_classes:
        return experiment.conditioning.said(said)
    return dict(asked_in_words(experiment, [said]).fields)


def require_guide(experiment: Experiment) -> None:
    """Raise UserError if the guidance rule needs a worse network and the config names none."""
    rule = experiment.guidance()
    if "worse" in rule.others and not rule.neutral and not rule.guide:
        raise UserError(
            "guidance autoguidance guides away from a worse network, but none is named: give the workdir of its run "
            "with --config.sampling.guidance.guide=..., or --guide=... of experiments.sample and experiments.evaluate"
        )


def _classifier(experiment: Experiment) -> Classifier:
    """The proxy metrics' classifier of real images, as log p of a class; it is trained here if necessary."""
    if not (experiment.info.spec.kind == "pixels" and experiment.num_classes):
        raise UserError(
            "guidance classifier needs pictures of classes and a network that is told the class; use classifier_free"
        )
    space, _ = judging.proxy(experiment, real_images(experiment, experiment.config.data.split))

    def log_probability(x0: jax.Array, raw: Any) -> jax.Array:
        logs = space.apply(space.params, (x0 + 1.0) * 127.5)["log_probabilities"]
        return jnp.take_along_axis(logs, raw["label"][:, None], axis=1)[:, 0]

    return log_probability


def read_guide(directory: str, ema: str) -> Guide:
    """The run of a worse network, with the average `ema` of its parameters, by default its config's."""
    experiment, params, source = restore_params(directory, ema=ema or None)
    return Guide(experiment=experiment, params=params, source={"workdir": directory, **source})


def draw(
    make: Generator,
    params: Any,
    asked: Asked | np.ndarray | None,
    num_samples: int,
    seed: int,
    given: Given | None = None,
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """Samples, or results of a task, with a progress bar."""
    with ProgressBar(total=num_samples, description="sample", primary=parallel.is_primary()) as progress:
        return make.generate(params, asked, num_samples, seed, progress.update, given, numbers)


def real_images(experiment: Experiment, split: str, spill: Path | None = None) -> ImageSet:
    """Real images in the network's form, cropped and resized, not augmented; a large set is stored in `spill`."""
    return judging.labelled(experiment.pictures, split, experiment.config.evaluation.max_real, spill)


def evaluate(
    experiment: Experiment,
    params: Any,
    directory: Path,
    *,
    metrics: tuple[str, ...] | None = None,
    num_samples: int | None = None,
    make: Generator | None = None,
    seed: int | None = None,
    source: dict[str, Any],
    out: Path | None = None,
    picture: Path | None = None,
    spaces: judging.Spaces | None = None,
) -> dict[str, dict[str, float]]:
    """Draw and judge samples; writes evaluation.json and the pictures, or the texts, of the report.

    If another process evaluates in the same workdir, this one waits for it.

    With `out` only the numbers are written, to that file, and the report's files stay as they are; with `picture` some
    of the samples are written too. `spaces` are feature spaces that evaluations share, see `build_metrics`.

    Raises:
      UserError: a metric is unknown, this config and machine allow none of the metrics (before anything is drawn), or
        the data does not fit a metric. If only some metrics are not allowed, they are left out; the record says why.
      RunError: a sample or a metric is not finite.
    """
    busy = f"process {{holder}} evaluates in {directory}"
    with locked(directory / ".evaluation.lock", busy, wait=True) if parallel.is_primary() else contextlib.nullcontext():
        return _evaluate(experiment, params, directory, metrics, num_samples, make, seed, source, out, picture, spaces)


def _evaluate(
    experiment: Experiment,
    params: Any,
    directory: Path,
    metrics: tuple[str, ...] | None,
    num_samples: int | None,
    make: Generator | None,
    seed: int | None,
    source: dict[str, Any],
    out: Path | None,
    picture: Path | None,
    spaces: judging.Spaces | None,
) -> dict[str, dict[str, float]]:
    config = experiment.config
    names = tuple(config.evaluation.metrics) if metrics is None else metrics
    names, missing = judging.available(experiment, names)
    if names and not config.data.validation_split:
        raise UserError("metrics need held-out data; set data.validation_split")
    if missing and parallel.is_primary():
        print(judging.in_words(missing), file=sys.stderr)
    if experiment.reconstructs:
        wanted = num_samples or config.evaluation.num_samples
        return reconstruction.evaluate(experiment, params, directory, names, wanted, source, missing, out)
    make = make or generator(experiment)
    seed = config.seed if seed is None else seed
    wanted = num_samples or config.evaluation.num_samples
    kind = experiment.shown.spec.kind
    if kind == "latents":
        return {}  # it has neither pictures nor metrics here
    count = max(wanted, MOST_SHOWN if kind == "tokens" else GRID_SIZE)
    asked = asked_for(experiment, count, prompts=judging.by_prompts(names)).first(count)
    labels = asked.labels
    drawing = Drawing.of(directory, make, count, seed, source, asked.digest)
    images = drawing.draw(make, params, asked, seed)
    of_model = {n: judging.judge_model(experiment, params, n, seed) for n in names if judging.of_model(n)}
    if kind == "tokens":
        if parallel.is_primary():
            drawing.place.require("while it was evaluated")
            if out is None:
                save_texts(images[:MOST_SHOWN], experiment.pipeline.tokenizer, directory / "samples" / "final.txt")
            if names:
                _keep(out or directory / "evaluation.json", of_model, _settings(make, wanted, seed, missing), source)
            drawing.forget()
        return of_model
    follows = out is None and make.path_bytes <= MOST_PATH_BYTES
    if follows:
        follow = dataclasses.replace(make, path_points=PATH_POINTS, batch_size=PATHS)
        path_images = follow.generate(params, asked, PATHS, seed)
    if not parallel.is_primary():
        return {}
    drawing.place.require("while it was evaluated")
    if out is None:
        shown = asked.first(min(GRID_SIZE, count))
        save_asked(images[: len(images[:GRID_SIZE])], shown, experiment, directory / "samples" / "final.png")
    if picture is not None:
        save_grid(images[:PICTURE_SIZE], picture, columns=COLUMNS)
    if follows:
        save_paths(make, path_images, directory / "samples" / "denoising.png")
    if not names:
        drawing.forget()
        return {}
    images, labels = images[:wanted], None if labels is None else labels[:wanted]
    said = asked.texts[:wanted] or None
    splits = (config.data.split, config.data.validation_split)
    train, test = (real_images(experiment, split, drawing.directory) for split in splits)
    metrics = judging.build_metrics(experiment, tuple(name for name in names if name not in of_model), train, spaces)
    results = (
        evaluate_all(metrics, ImageSet(images=images, labels=labels, texts=said), train=train, test=test) | of_model
    )
    results = {name: results[name] for name in names}
    drawing.place.require("while it was evaluated")
    if out is None:
        distances, indices = nearest(images, train.images)
        closest = np.argsort(distances, kind="stable")[:NEIGHBOURS]
        save_neighbours(
            images[closest], train.images[indices[closest]], directory / "neighbours.png", distances=distances[closest]
        )
    settings = {**_settings(make, wanted, seed, missing), **judging.settings_of(metrics, test)}
    _keep(out or directory / "evaluation.json", results, settings, source)
    drawing.forget()
    return results


def _settings(make: Generator, num_samples: int, seed: int, missing: dict[str, str]) -> dict[str, Any]:
    """The settings of the samples, and the metrics that were left out."""
    return {
        "num_samples": num_samples,
        "seed": seed,
        "sampler": str(make.sampler),
        "network_evaluations": make.network_evaluations,
        "grid": dict(make.experiment.config.sampling.grid),
        "guidance": dataclasses.asdict(make.guidance) | {"name": name_of(make.guidance)},
        **({"guide": make.guide.source} if make.guide else {}),
        "devices": jax.device_count(),
        **({"unavailable": missing} if missing else {}),
    }


def _keep(path: Path, results: dict[str, Any], settings: dict[str, Any], source: dict[str, Any]) -> None:
    """Write the measured numbers.

    Raises:
      RunError: some numbers are not finite.
    """
    bad = [f"{name}.{key}" for name, group in results.items() for key, value in group.items() if not _is_finite(value)]
    if bad:
        raise RunError(f"{', '.join(bad)} of {source['step']} steps are not finite; {path} was not written")
    text = json.dumps({**results, "settings": {**settings, **source}}, indent=2)
    replace_file(path, (text + "\n").encode())


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def save_paths(make: Generator, images: np.ndarray, path: Path) -> None:
    """A row for each sample, from noise on the left to the finished picture; the time t is above each column."""
    times = make.grid.times[dataclasses.replace(make, path_points=PATH_POINTS).path_indices]
    moments = np.tile(np.arange(PATH_POINTS), len(images))
    captions = [f"{time:.2f}" for time in times]
    save_grid(images.reshape(-1, *images.shape[2:]), path, labels=moments, class_names=captions, columns=PATH_POINTS)


def require_path(make: Generator) -> None:
    """Raise UserError if the way from noise to a sample cannot be shown."""
    if make.experiment.shown.spec.kind != "pixels":
        raise UserError("--animate shows pictures, but this run draws none")
    if make.path_bytes > MOST_PATH_BYTES:
        raise UserError(
            f"--animate keeps all {make.grid.num_steps} steps of a sample, {make.path_bytes / 2**20:.0f} MiB, and "
            f"{MOST_PATH_BYTES / 2**20:.0f} MiB are the most: take fewer --steps"
        )


def animate(make: Generator, params: Any, asked: Asked, num_samples: int, seed: int, path: Path) -> None:
    """An animation of the first samples from noise to data, in the layout of their grid.

    Frames are scaled so that noise and signal together have constant strength (see `Generator.path_points`). The last
    frame shows the samples themselves. Every process must call this; the first one writes.
    """
    shown, moments = min(num_samples, ANIMATED), min(MOMENTS, make.grid.num_steps + 1)
    follow = dataclasses.replace(make, path_points=moments, batch_size=min(shown, make.batch_size))
    paths = follow.generate(params, asked.first(shown), shown, seed)
    if parallel.is_primary():
        labels = None if asked.texts else asked.first(shown).labels
        save_animation(np.moveaxis(paths, 1, 0), path, labels=labels, **class_names(make.experiment))


def save_asked(
    images: np.ndarray, asked: Asked, experiment: Experiment, path: Path, *, make_folder: bool = True
) -> None:
    """The grid of samples: with the request under each, or else with a column for each class."""
    if asked.texts:
        save_captioned(images, asked.texts, path, make_folder=make_folder)
    else:
        save_grid(images, path, make_folder=make_folder, labels=asked.labels, **class_names(experiment))


def class_names(experiment: Experiment) -> dict[str, Any]:
    """Captions for grids, if the data names its classes."""
    names = experiment.info.class_names
    return {"class_names": names} if names else {}
