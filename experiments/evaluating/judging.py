"""The judges of a run: metrics of its samples, in the feature spaces that they need, and metrics of the model.

A metric states its own needs (`metrics.Facts`); nothing here knows a metric by name.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax import data, weights
from diffusion_jax.errors import UserError
from diffusion_jax.likelihood import METRICS, continuous_bound
from diffusion_jax.metrics import (
    CLIP,
    DINOV2,
    INCEPTION,
    PROXY,
    RECONSTRUCTIONS,
    Facts,
    FeatureSpace,
    ImageSet,
    Metric,
    clip_features,
    dinov2_features,
    inception_features,
)
from diffusion_jax.metrics.base import checked_result
from diffusion_jax.metrics.proxy import ProxyTraining, accuracy, fingerprint, proxy_features, proxy_shapes, train_proxy
from diffusion_jax.models.autoencoders import to_tokens
from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.specs import DATA
from experiments.building.wiring import Experiment
from experiments.evaluating.asked import Asked, asked_for

LIKELIHOOD_DRAWS = 128
HELD = {"pixels": "images", "latents": "latents", "tokens": "text"}  # what metrics say that they are of, by data
Spaces = dict[str, FeatureSpace]
# By the field of config.evaluation that names them: the weights of a space, and their published place.
WEIGHTS = {
    INCEPTION: ("the weights of Inception-v3", weights.INCEPTION_SOURCE),
    DINOV2: ("the weights of DINOv2", weights.DINOV2_SOURCE),
    CLIP: ("a folder with CLIP", weights.CLIP_SOURCE),
}
OF_PROMPTS = {"scene": "scenes", "word": "glyphs"}  # the data whose prompts require such things
SPACE_FIELDS = (*WEIGHTS, "convention")


def available(experiment: Experiment, names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics that this config and this machine allow, and for each other one the reason why it is left out.

    Raises:
      UserError: a name is unknown, or no metric is left.
    """
    found = {name: _obstacle(experiment, METRICS.facts(name)) for name in names}
    reasons = {name: reason for name, reason in found.items() if reason}
    if names and len(reasons) == len(names):
        raise UserError(in_words(reasons))
    return tuple(name for name in names if name not in reasons), reasons


def unread_fields(names: Sequence[str]) -> set[str]:
    """The fields of config.evaluation that none of these metrics reads, of those that only some metrics read."""
    facts = [METRICS.facts(name) for name in names]
    reads = {word for one in facts for word in one.reads}
    needs = {one.needs for one in facts}
    read = {
        **dict.fromkeys(("bins", "likelihood_images"), "model" in reads),
        **{kind: kind in needs for kind in WEIGHTS},
        "convention": INCEPTION in needs,
        "prompt": "texts" in reads,
        **{METRICS.facts(name).reference_field: False for name in METRICS if METRICS.facts(name).reference_field},
        **{one.reference_field: True for one in facts if one.reference_field},
    }
    return {name for name, is_read in read.items() if not is_read}


def in_words(reasons: dict[str, str]) -> str:
    """One line about the metrics that are left out, grouped by reason."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return "; ".join(f"no {', '.join(group)}: {reason}" for reason, group in groups.items())


def of_model(name: str) -> bool:
    """Whether a metric reads the model itself instead of samples."""
    return "model" in METRICS.facts(name).reads


def by_prompts(names: tuple[str, ...]) -> bool:
    """Whether one of the metrics needs samples for the data's own prompts."""
    return any("prompts" in METRICS.facts(name).reads for name in names)


def _obstacle(experiment: Experiment, facts: Facts) -> str:
    """Why this config or this machine does not allow a metric; "" if both do."""
    info, config = experiment.shown, experiment.config
    held = HELD[info.spec.kind]
    if "held_out" in facts.reads and not config.data.validation_split:
        return "it needs held-out data: set data.validation_split"
    if facts.of != held:
        others = [n for n in METRICS if METRICS.facts(n).of == held and METRICS.facts(n).reads == facts.reads]
        instead = f"; for {held} there is {' and '.join(others)}" if others else f"; {config.data.dataset} holds {held}"
        return f"it measures {facts.of}{instead}"
    if RECONSTRUCTIONS in facts.reads and not experiment.reconstructs:
        return "it measures a first stage's reconstructions, not samples"
    if min(info.spec.shape[:2]) < facts.least_side:
        least, (height, width, _) = facts.least_side, info.spec.shape
        return f"it needs pictures of {least}x{least} pixels or more, but the data's are {height}x{width}"
    if "model" in facts.reads and experiment.reconstructs:
        return "a first stage alone gives pictures no probability"
    if "model" in facts.reads and experiment.codec.learned:
        return "the model gives a probability to latents, which says nothing about pixels"
    if "model" in facts.reads and not experiment.objective.bounds_likelihood:
        if experiment.objective.makes == "consistency":
            return f"objective {config.objective.name} teaches to jump to the end of the flow; it has no likelihood"
        return f"the loss of objective {config.objective.name} is not a bound on a likelihood"
    if "classes" in facts.reads and not (info.num_classes if experiment.reconstructs else experiment.num_classes):
        return "it counts samples of the class that was asked for, and this network is told none"
    if "texts" in facts.reads and not (experiment.num_classes and info.class_names):
        return "its texts are made of the names of classes, and the samples have none"
    if "prompts" in facts.reads and experiment.told_text is None:
        return "its samples are asked for in words, and this network is told none: set conditioning.text"
    if "prompts" in facts.reads:
        prompts = experiment.pictures.prompts
        if not prompts or prompts.requires != facts.requires:
            return (
                "its prompts, which say what a picture must show, come with "
                f"{OF_PROMPTS[facts.requires]}; {config.data.dataset} has none"
            )
    pictures = experiment.pictures
    if facts.needs == PROXY and not pictures.info.num_classes and pictures.kinds(max_examples=1) is None:
        return f"its features are those of a classifier of the data, and {config.data.dataset} has no classes"
    lacking = [module for module in facts.modules if importlib.util.find_spec(module) is None]
    if lacking:
        return f"it needs {' and '.join(lacking)}: `pip install '.[{facts.extra}]'`"
    return _no_weights(config.evaluation, facts.needs)


def space_kind(name: str) -> str | None:
    """The feature space that a metric needs, or None."""
    return METRICS.facts(name).needs


def _no_weights(config: Any, kind: str | None) -> str:
    """Why there is no space of this kind; "" if there is one."""
    if kind not in WEIGHTS:
        return ""
    path = config[kind]
    if path and (Path(path).is_dir() if kind == CLIP else Path(path).is_file()):
        return ""
    what, source = WEIGHTS[kind]
    found = f"there is no {'folder' if kind == CLIP else 'file'} {path!r}" if path else "none is named"
    return (
        f"it needs {what}, and {found}: get {source} and give its path with --config.evaluation.{kind}=..., or "
        f"--{kind}=... of experiments.evaluate"
    )


def build_metrics(
    experiment: Experiment, names: tuple[str, ...], train: ImageSet | None, spaces: Spaces | None = None
) -> dict[str, Metric]:
    """The metrics of samples by name, each with its feature space.

    Args:
      experiment: names the weights and the reference.
      names: names of metrics.
      train: the images that a proxy is trained on; None if no metric uses a proxy.
      spaces: existing spaces by kind, for the same data and weights; new ones are added. A space caches the features of
        the real images for several evaluations.

    Raises:
      UserError: weights cannot be read, or a proxy cannot be trained on the data.
    """
    config, spaces = experiment.config.evaluation, {} if spaces is None else spaces
    for kind in {space_kind(name) for name in names} - {None, *spaces}:
        if kind == CLIP:
            clip = _clip(config.clip)
            spaces[kind] = clip_features(clip.image, clip.image_params, fingerprint=clip.fingerprint)
        elif kind == DINOV2:
            network, params, digest = weights.read_dinov2(config.dinov2)
            spaces[kind] = dinov2_features(network, params, fingerprint=digest)
        elif kind == INCEPTION:
            params, digest = weights.read_inception(config.inception)
            spaces[kind] = inception_features(params, fingerprint=digest, convention=config.convention)
        else:
            spaces[kind] = proxy(experiment, train)[0]
    specs: dict[str, dict[str, Any]] = {name: {"name": name} for name in names}
    for name, spec in specs.items():
        facts = METRICS.facts(name)
        if facts.reference_field and config[facts.reference_field]:
            spec["reference"] = config[facts.reference_field]
        if "texts" in facts.reads:
            of_texts = _clip(config.clip).of_texts([config.prompt.format(text) for text in experiment.info.class_names])
            spec["of_texts"] = tuple(map(tuple, of_texts.tolist()))
    stage = experiment.first_stage
    given = {"prompts": experiment.pictures.prompts, "round_trip": stage and stage.round_trip}
    return {name: METRICS.build(spec, space=spaces.get(space_kind(name)), **given) for name, spec in specs.items()}


@functools.lru_cache(maxsize=1)
def _clip(path: str) -> weights.Clip:
    return weights.read_clip(path)


def labelled(pictures: data.Pipeline, split: str, most: int, spill: Path | None = None) -> ImageSet:
    """Real images with their classes, or where the data has none, with the kinds of pictures that it tells apart."""
    images, labels = pictures.arrays(split, max_examples=most, spill=spill)
    return ImageSet(images=images, labels=pictures.kinds(split, max_examples=most) if labels is None else labels)


def proxy(experiment: Experiment, train: ImageSet) -> tuple[FeatureSpace, Path]:
    """The space of a classifier of the training images, trained now or before, and its file.

    The file lies beside the data, under the fingerprint of the images and of the training. Runs on the same data share
    one classifier, and only then may their numbers be compared.
    """
    how = ProxyTraining()
    root = Path(experiment.config.data.data_dir or data.default_data_dir()).expanduser()
    path = root / "proxy_features" / f"{fingerprint(train, how)[:16]}.safetensors"
    names, structure = jax.tree_util.tree_flatten_with_path(proxy_shapes(train))
    keys = ["/".join(entry.key for entry in entries) for entries, _ in names]
    if path.exists():
        state = weights.read_state(path)
        if set(state) != set(keys):
            raise UserError(f"{path} is not a classifier of this data; remove it, and it is trained again")
        params = jax.tree_util.tree_unflatten(structure, [state[key] for key in keys])
    else:
        params = train_proxy(train, how)
        path.parent.mkdir(parents=True, exist_ok=True)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        weights.write_state(path, dict(zip(keys, leaves, strict=True)))
    return proxy_features(params, train, how), path


def settings_of(metrics: dict[str, Metric], test: ImageSet) -> dict[str, Any]:
    """The settings that the numbers depend on besides the samples, for the record."""
    found, judges = {}, {name: metric.judges for name, metric in metrics.items() if METRICS.facts(name).modules}
    for name, metric in metrics.items():
        facts = METRICS.facts(name)
        if facts.needs is None:
            continue
        found[name] = dict(metric.space.settings)
        if facts.reference_field and metric.reference:
            found[name]["reference"] = metric.reference
        if facts.needs == PROXY and test.labels is not None:
            found[name]["classifier_test_accuracy"] = accuracy(metric.space, test)
    return {**({"feature_spaces": found} if found else {}), **({"judges": judges} if judges else {})}


def judge_model(experiment: Experiment, params: Any, name: str, seed: int) -> dict[str, float]:
    """The numbers of a metric of the model itself. Every process must call this.

    Raises:
      UserError: the metric returned no numbers, or not its headline.
    """
    metric = METRICS.build(name)
    return checked_result(name, metric, metric(ModelOnHeldOut(experiment=experiment, params=params, seed=seed)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelOnHeldOut:
    """A trained model with held-out data, in the form for metrics of the model (`likelihood.Judged`).

    For continuous data the bound is the VDM's, in continuous time (`continuous_bound`); for tokens it is the
    objective's, whose levels are the objective's values. Class-conditional models are given the true class.
    """

    experiment: Experiment
    params: Any
    seed: int
    evaluations: int = LIKELIHOOD_DRAWS

    @property
    def bins(self) -> int:
        """Levels of the data."""
        experiment = self.experiment
        if experiment.process.discrete:
            return experiment.process.num_tokens
        return experiment.config.evaluation.bins

    def nats(self) -> np.ndarray:
        """A bound on -log P of every held-out example, per number of the example."""
        experiment, bins = self.experiment, self.bins

        def of_tokens(denoiser: Any, x0: jax.Array, keys: BatchKey) -> jax.Array:
            if experiment.info.spec.kind == "pixels":
                x0 = to_tokens(x0.astype(np.float32) / 127.5 - 1.0, bins)
            return _token_bound(experiment, denoiser, x0, keys)

        def of_levels(denoiser: Any, image: jax.Array, keys: BatchKey) -> jax.Array:
            level = jnp.round(image.astype(np.float32) * ((bins - 1) / 255.0)) * (2.0 / (bins - 1)) - 1.0
            schedule = experiment.process.schedule
            bits = continuous_bound(denoiser, schedule, level, keys, num_draws=self.evaluations, bins=bins)
            return bits * math.log(2.0)

        value = of_tokens if experiment.process.discrete else of_levels
        return _of_held_out(experiment, self.params, value, self.seed)


def _token_bound(experiment: Experiment, denoiser: Any, x0: jax.Array, keys: BatchKey) -> jax.Array:
    """The objective's bound in nats per token, averaged over many times for each example."""

    def draw(number: jax.Array) -> jax.Array:
        return experiment.objective.bound(
            denoiser, x0, dataclasses.replace(keys, key=jax.random.fold_in(keys.key, number))
        )

    return jnp.mean(jax.lax.map(draw, jnp.arange(LIKELIHOOD_DRAWS)), axis=0)


def _of_held_out(
    experiment: Experiment, params: Any, value: Callable[[Any, jax.Array, BatchKey], jax.Array], seed: int
) -> np.ndarray:
    """`value(denoiser, examples, keys)` for config.evaluation.likelihood_images held-out examples, in float64."""
    config, layout = experiment.config, experiment.layout
    limit = config.evaluation.likelihood_images
    images, labels = experiment.pipeline.arrays(config.data.validation_split, max_examples=limit)
    told = asked_for(experiment, len(images)) if experiment.told_text else Asked.of(labels)
    size = -(-min(config.sampling.batch_size, len(images)) // layout.num_batch_shards) * layout.num_batch_shards
    key = stream_key(seed, "likelihood")

    def of_batch(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        model = experiment.model
        denoiser = experiment.trainable.denoiser(params, model.conditions(params, batch, len(batch["index"])))
        return value(denoiser, batch[DATA], BatchKey(key, batch["index"], size))

    run = jax.jit(layout.placed(of_batch), out_shardings=layout.batch_sharding)
    host = slice(layout.host_index * size // layout.host_count, (layout.host_index + 1) * size // layout.host_count)
    found = []
    for first in range(0, len(images), size):
        index = np.arange(first, first + size)
        rows = (index % len(images))[host]
        batch = {"index": index[host].astype(np.int32), DATA: images[rows]}
        if experiment.num_classes or experiment.told_text:
            batch |= told.rows(rows)
        result = run(params, layout.global_batch(batch), key)
        if jax.process_count() > 1:
            result = multihost_utils.process_allgather(result, tiled=True)
        found.append(np.asarray(result, np.float64)[: len(images) - first])
    return np.concatenate(found)
