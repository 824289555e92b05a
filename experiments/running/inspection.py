"""What a config comes to before it is trained: parts, shapes, parameters, steps and epochs, and the first batch."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.models import is_frozen
from diffusion_jax.specs import DATA
from experiments.building import kinds
from experiments.building.wiring import Experiment
from experiments.evaluating.pictures import save_grid
from experiments.ground.fields import CODEC

_SHOWN = 36  # examples of a batch that its picture shows


class Rows(NamedTuple):
    """What a table of `experiments.reports.tables` is made from."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numbers: tuple[str, ...] = ()
    title: str = ""


def look_at(config: ConfigDict) -> tuple[Experiment, str]:
    """The experiment of a config, and why its data is not there; "" where it is.

    Where the data is not there, the experiment is one to look at and not to run, as far as its data is known.

    Raises:
      UserError: the config names a part that there is not, or data of which nothing is known.
    """
    try:
        experiment = kinds.open_experiment(config)
        _ = experiment.info
    except UserError as error:
        if CODEC in config or config.teacher.inherit:
            raise
        return kinds.plan_experiment(config), str(error)
    return experiment, ""


def parts_of(experiment: Experiment) -> Rows:
    """What the names in the config stand for, one part a row."""
    return Rows(("part", "is"), list(_parts(experiment)), title="Parts")


def _parts(experiment: Experiment) -> Iterator[tuple[str, str]]:
    config, info, objective = experiment.config, experiment.info, experiment.objective
    classes = f", {info.num_classes:,} classes" if info.num_classes else ", no classes"
    beside = f", with {', '.join(info.fields)}" if info.fields else ""
    amount = f"{info.num_examples:,} examples of " if info.num_examples else ""
    yield "data", f"{info.name}, {info.split}: {amount}{info.spec.kind} {shape_text(info.spec.shape)}{classes}{beside}"
    yield "held out", config.data.validation_split or "nothing"
    if experiment.reconstructs:
        yield "codec", f"{config.codec.name}, {type(experiment.codec).__name__}"
    else:
        codec = experiment.codec
        yield "codec", f"{type(codec).__name__}, {shape_text(codec.spec(info.spec).shape)} is diffused"
        yield "network", f"{experiment.title}, {type(experiment.network).__name__}"
        slots = experiment.conditioning.gives.items()
        told = [f"{slot} {shape_text(spec.shape)} ({spec.role})" for slot, spec in slots]
        yield "told", ", ".join(told) or "nothing but the time"
        for name, part in vars(experiment.process).items():
            yield f"process.{name}", str(part)
    yield "objective", f"{config.objective.name}, {type(objective).__name__}"
    for name, part in vars(objective).items():
        told = {"process", *(() if experiment.reconstructs else vars(experiment.process))}
        if name not in told and part is not None and part != "":
            yield f"objective.{name}", str(part)
    yield "optimizer", f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}"
    yield "averages", ", ".join(experiment.ema.names) or "none"
    if not experiment.reconstructs:
        sampler = experiment.sampler()
        yield "sampler", f"{type(sampler).__name__}, {config.sampling.steps} steps"
        yield "guidance", str(config.sampling.guidance.name)
    lengths = [f"{axis}:{n}" for axis, n in experiment.layout.mesh.shape.items() if n > 1]
    yield "devices", " ".join(lengths) or "one"
    yield "metrics", ", ".join(config.evaluation.metrics) or "none"


def shapes_of(experiment: Experiment) -> Rows:
    """The fields of a batch."""
    batch = experiment.abstract_batch(experiment.config.train.batch_size)
    rows = [(name, shape_text(value.shape), str(value.dtype)) for name, value in batch.items()]
    return Rows(("field", "shape", "type"), rows, title="A batch")


def groups_of(experiment: Experiment) -> Rows:
    """The groups of parameters, with how many each has, and whether it is trained."""
    state = experiment.abstract_state
    rows = [
        (name, "trained" if trained else "frozen", f"{_count(group):,}", bytes_text(_bytes(group)))
        for groups, trained in ((state.params, True), (state.frozen or {}, False))
        for name, group in groups.items()
        if _count(group)
    ]
    numbers = ("parameters", "bytes")
    return Rows(("group", "", *numbers), rows, numbers=numbers, title="Parameters by group")


def parameter_table(name: str, shapes: Any, depth: int) -> Rows:
    """The tree of parameters down to `depth` levels, 0 for all, each with what is below it."""
    leaves = [
        (tuple(entry.key for entry in path), leaf, is_frozen(path))
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    total = sum(math.prod(leaf.shape) for _, leaf, _ in leaves)
    groups: dict[tuple[str, ...], list[Any]] = {}
    for path, leaf, frozen in leaves:
        for level in range(1, len(path) + 1):
            if not depth or level <= depth:
                groups.setdefault(path[:level], []).append((path, leaf, frozen))
    rows = []
    for path, members in groups.items():
        count = sum(math.prod(leaf.shape) for _, leaf, _ in members)
        is_leaf = len(members) == 1 and members[0][0] == path
        shape = "x".join(map(str, members[0][1].shape)) or "scalar" if is_leaf else ""
        label = "  " * (len(path) - 1) + path[-1] + (" (frozen)" if is_leaf and members[0][2] else "")
        rows.append((label, shape, f"{count:,}", f"{100 * count / total:.1f}%", bytes_text(4 * count)))
    numbers = ("parameters", "share", "bytes")
    return Rows(("module", "shape", *numbers), rows, numbers=numbers, title=f"{name}: parameters")


def schedule_of(experiment: Experiment) -> Rows:
    """Steps, examples and epochs of the training, and what happens on the way."""
    config = experiment.config
    train, log, steps = config.train, config.log, config.train.steps
    unit = experiment.info.spec.unit
    rows = [("steps", f"{steps:,} of {train.batch_size:,} {unit}, {steps * train.batch_size:,} in all")]
    rows.append(("epochs", epochs_text(experiment)))
    for name, every in (
        ("logged", log.every),
        ("validated", log.validate_every),
        ("drawn", log.sample_every),
        ("saved", config.checkpoint.every),
    ):
        rows.append((name, f"every {every:,} steps, {steps // every:,} times" if every else "never"))
    return Rows(("training", ""), rows, title="Steps")


def epochs_text(experiment: Experiment) -> str:
    """How often a training sees every example."""
    train, examples = experiment.config.train, experiment.info.num_examples
    if not examples:
        return "not known before the data is there"
    return f"{train.steps * train.batch_size / examples:,.4g} of {examples:,} {experiment.info.spec.unit}"


def first_batch(experiment: Experiment) -> Mapping[str, np.ndarray]:
    """The batch of the first step, augmented as in training.

    Raises:
      UserError: an example that cannot be read.
    """
    return experiment.pipeline.reader()[0]


def save_batch(experiment: Experiment, path: str) -> None:
    """Examples of the first batch, as training sees them, as a PNG file.

    Raises:
      UserError: the data is no pictures, or an example cannot be read.
    """
    if experiment.info.spec.kind != "pixels":
        raise UserError(f"--picture needs pictures, but the data is {experiment.info.spec.kind}: leave it out")
    batch = first_batch(experiment)
    labels = batch.get("label")
    few = labels is not None and experiment.info.num_classes <= _SHOWN // 2
    named = {"labels": labels[:_SHOWN], "class_names": experiment.info.class_names} if few else {}
    save_grid(batch[DATA][:_SHOWN], path, **named)


def rehearse(experiment: Experiment) -> list[str]:
    """Everything of a start that changes nothing: all checks, the first batch, and the step, traced and not compiled.

    Returns:
      Lines that say what was found.

    Raises:
      UserError: the first thing that is wrong.
    """
    experiment.check()
    first_batch(experiment)
    expected = experiment.abstract_batch(experiment.config.train.batch_size)
    state, layout = experiment.abstract_state, experiment.layout
    jax.eval_shape(lambda s, b: experiment.train_step()(s, b, None), state, expected)
    count = sum(_count(group) for group in state.params.values())
    train = experiment.config.train
    return [
        f"{experiment.title}: {count:,} parameters, {bytes_text(_bytes(state))} with optimizer and averages, on "
        f"{layout.num_batch_shards} device{'s' * (layout.num_batch_shards > 1)}",
        f"{train.steps:,} steps of {train.batch_size:,}: {epochs_text(experiment)}",
    ]


def bytes_text(number: int) -> str:
    """A number of bytes for people."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"


def shape_text(shape: tuple[int | None, ...]) -> str:
    """A shape for people: 64x64x3; an axis of any length is "?"."""
    return "x".join("?" if n is None else str(n) for n in shape) or "one number"


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
