"""Checks of an experiment before anything starts: whether the parts of its config fit each other."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
from ml_collections import ConfigDict

from diffusion_jax import weights
from diffusion_jax.data.buckets import sides_of
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_npz
from diffusion_jax.likelihood import METRICS
from diffusion_jax.models import example_inputs, parameter_shapes
from diffusion_jax.objectives import Objective
from diffusion_jax.registry import Registry
from diffusion_jax.samplers import SAMPLERS
from diffusion_jax.schedulers import TIME_SAMPLERS
from diffusion_jax.specs import FEATURES, GUIDANCE
from diffusion_jax.weights.sniffing import recognise
from experiments.building.latents import check_first_stage
from experiments.ground.fields import ADAPTER, INIT, PARTS, check_fields

if TYPE_CHECKING:
    from experiments.building.wiring import Experiment

READ_BY_OBJECTIVES: Mapping[str, Registry] = {
    "time_sampler": TIME_SAMPLERS,
}
"""Groups of a config that only some objectives read, see `Objective.reads`."""
_SIDES = re.compile(r"\b(left|right|(counter)?clockwise)\b", re.IGNORECASE)
_CAPTIONS_LOOKED_AT = 1_000  # captions of the split that are searched for words that mirroring makes wrong


def check_metric(name: str) -> None:
    """Raise UserError for a name that is no metric."""
    _ = METRICS[name]


def check_sampler(name: str) -> None:
    """Raise UserError for a name that is no sampler, of images or of tokens."""
    _ = SAMPLERS[name]


def check(experiment: "Experiment") -> None:
    """Build everything that the config names, so that a wrong name is an error before training starts.

    Raises:
      UserError: the first thing that is wrong.
    """
    config = experiment.config
    check_fields(config)
    if ADAPTER in config and not experiment.has_base:
        raise UserError(f"{ADAPTER} changes an existing model: name it with {INIT}")
    if config.train.guidance_embedding is not None and "guidance" not in experiment.conditioning.gives:
        raise UserError("train.guidance_embedding: this network embeds no guidance scale; leave it at None")
    if config.train.text_encoder and not experiment.has_base:
        raise UserError(f"train.text_encoder needs an existing model: name it with {INIT}, or leave it out")
    for name in config.evaluation.metrics:
        check_metric(name)
    experiment.layout.check_batch(config.train.batch_size, config.train.accumulation)
    check_first_stage(config, experiment.info, experiment.first_stage)
    check_read(experiment)
    _ = (experiment.trainable, experiment.optimizer)
    check_sampling(experiment)
    if experiment.process.discrete:
        values, known = experiment.process.num_tokens, experiment.info.spec.num_values
        if known not in (0, values):
            raise UserError(f"process.num_tokens is {values}; the text has {known} tokens: set it to that")
    check_groups(experiment)
    if "teacher" in experiment.objective.needs and experiment.teacher_model is None:
        raise UserError(
            f"objective {config.objective.name} learns from a trained network: train one first, for example with "
            "--config=configs/digits_unet.py --workdir=runs/digits, and give --config.teacher.workdir=runs/digits"
        )
    check_teacher(experiment)
    if experiment.objective.num_times != experiment.network.num_times:
        raise UserError(
            f"objective {config.objective.name} needs a network of {experiment.objective.num_times} times, but the "
            f"config's has {experiment.network.num_times}: set model.num_times={experiment.objective.num_times}"
        )
    check_judges(config)
    check_features(experiment)
    check_subject(experiment)
    if experiment.objective.reads_lpips:
        require_lpips(experiment, "objective.distance=squared")
    told, labels = experiment.augment_slot, experiment.pipeline.augment_labels
    if labels and told not in (0, labels):  # without augmentation the labels say that nothing was done
        raise UserError(
            f"model.augment_channels={told}, but data.augmentation gives {labels} labels: set one to the other"
        )
    _ = experiment.guidance()
    if experiment.validation_pipeline is not None:
        if config.data.validation_split == config.data.split:
            raise UserError(
                f"data.validation_split={config.data.split} is the split that is trained on: name another one, or '' "
                "for none"
            )
        _ = experiment.validation_size
    elif config.log.validate_every or config.evaluation.metrics:
        raise UserError("log.validate_every and evaluation.metrics need held-out data: set data.validation_split")


def check_sampling(experiment: "Experiment") -> None:
    """Raise UserError if the config's sampler and its steps do not fit, or no such average is kept."""
    experiment.known_ema(experiment.config.sampling.ema)
    sampler, grid = experiment.sampler(), experiment.grid()
    if experiment.process.discrete:
        sampler.check(experiment.process, grid.num_steps)
    else:
        sampler.constants(grid)


def check_judges(config: ConfigDict) -> None:
    """Raise UserError if a file that an evaluation after training would read is there, and of another kind."""
    for name in ("inception", "dinov2"):
        path = config.evaluation[name]
        if path and expanded(path).is_file():
            reader, what = recognise(expanded(path))
            if reader is None and what is not None:
                raise UserError(f"evaluation.{name}={path} is {what}, and should be a file of weights")
    for name in ("reference", "dinov2_reference"):
        path = config.evaluation[name]
        if path and expanded(path).is_file():
            read_npz(path)


def teacher_guidance(config: ConfigDict) -> tuple[float, float]:
    """The bounds of the teacher's guidance scales.

    Raises:
      UserError: they are neither one scale nor two in increasing order.
    """
    scales = tuple(config.teacher.guidance_scale)
    if len(scales) > 2 or list(scales) != sorted(scales):
        raise UserError(f"teacher.guidance_scale is one scale, or (low, high) of a uniform draw, it is {scales}")
    return (scales[0], scales[-1]) if scales else (1.0, 1.0)


def check_told_scale(experiment: "Experiment", scale: float) -> None:
    """Raise UserError if a student with a guidance scale as input is asked for a scale that it was not taught."""
    low, high = teacher_guidance(experiment.config)
    if experiment.config.teacher.guidance_scale and experiment.model.embeds_guidance and not low <= scale <= high:
        raise UserError(
            f"guidance scale {scale:g} is not among those that the network was taught, {low:g} to {high:g}: ask for "
            "one of these"
        )


def check_teacher(experiment: "Experiment") -> None:
    """Raise UserError if student and teacher do not fit: other data, other conditions, or a scale without an input for
    it."""
    model, theirs = experiment.model, experiment.teacher_model
    scales = teacher_guidance(experiment.config)
    if theirs is None:
        if experiment.config.teacher.guidance_scale:
            raise UserError(
                f"teacher.guidance_scale guides a teacher, and objective {experiment.config.objective.name} learns "
                "from none: leave it out"
            )
        return
    check_same_conditions(experiment)
    can_be_guided = theirs.conditioning.asked or theirs.embeds_guidance
    if scales != (1.0, 1.0) and not can_be_guided:
        raise UserError("teacher.guidance_scale guides a teacher that has no conditions: leave it out")
    if scales[0] != scales[1] and not model.embeds_guidance:
        raise UserError(
            f"teacher.guidance_scale draws from {scales}, but the student is not told which: give one scale, or a "
            "network that is told it (model.guidance_channels=64)"
        )
    if model.embeds_guidance and not experiment.config.teacher.guidance_scale:
        raise UserError("the student is told the guidance scale, but its teacher has none: set teacher.guidance_scale")


def check_same_conditions(experiment: "Experiment") -> None:
    """Raise UserError if a teacher has other data than its student, or conditions that the student's batch lacks."""
    model, theirs, teacher = experiment.model, experiment.teacher_model, experiment.teacher
    if model.diffused != theirs.diffused:
        raise UserError(
            f"the teacher diffuses {theirs.diffused.kind} {list(theirs.diffused.shape)}, the student "
            f"{model.diffused.kind} {list(model.diffused.shape)}: give both the same data and first stage"
        )
    if teacher is None:
        return  # it is the model itself
    for scale in teacher_guidance(experiment.config):
        check_told_scale(teacher, scale)
    stages = [one.first_stage and one.first_stage.fingerprint for one in (experiment, teacher)]
    if stages[0] != stages[1]:
        raise UserError("the teacher's first stage differs from the student's: both must have the same latents")
    own, there = ({s for s in one.conditioning.gives if s != GUIDANCE} for one in (model, theirs))
    lacking = sorted({s for s in there if theirs.conditioning.gives[s].role == "asked"} - own)
    if lacking or teacher.num_classes not in (0, experiment.num_classes):
        told = ", ".join(lacking) or f"{teacher.num_classes} classes"
        raise UserError(
            f"the teacher in {experiment.config.teacher.workdir} is told {told}, but the student "
            f"{', '.join(sorted(own)) or 'nothing'}: give the student the teacher's conditions"
        )
    if teacher.told_text is not None:
        reads = [(one.text.tokenizer, one.text.length) for one in (experiment, teacher)]
        if reads[0] != reads[1]:
            raise UserError(
                f"the teacher in {experiment.config.teacher.workdir} reads captions by another tokenizer, word list or "
                "length: train the student on the same captions, with the teacher's conditioning.text"
            )


def check_read(experiment: "Experiment") -> None:
    """Raise UserError for a group that the objective does not read; it is tolerated in runs of earlier versions."""
    config, reads = experiment.config, experiment.objective.reads
    unread = [group for group in READ_BY_OBJECTIVES if group in config and group not in reads]
    if experiment.objective.discrete:
        unread += _unread_by_tokens(config)
    if unread:
        raise UserError(
            f"objective {config.objective.name} does not read {', '.join(unread)}, which the config sets: it "
            f"would have no effect, so leave it out; of such groups this objective reads {', '.join(reads) or 'none'}"
        )


def require_lpips(experiment: "Experiment", instead: str) -> None:
    """Check that the files of LPIPS exist; `instead` is the setting that works without them."""
    try:
        weights.require_lpips(experiment.objective.vgg, experiment.objective.lpips)
    except UserError as error:
        raise UserError(f"{error}; name the files as objective.vgg and objective.lpips, or set {instead}") from None


def _unread_by_tokens(config: ConfigDict) -> list[str]:
    """Fields of sampling that no token sampler reads, and that the config sets to other values than the defaults."""
    sampling = config.sampling
    stated = {name: sampling[name] for name in ("grid", "projection", "inversion")}
    specs = {name: {"name": spec} if isinstance(spec, str) else spec.to_dict() for name, spec in stated.items()}
    groups = [name for name, spec in specs.items() if spec != PARTS[f"sampling.{name}"][0]]
    return [f"sampling.{name}" for name in [*groups, *(["clip_x0"] if sampling.clip_x0 else [])]]


def check_buckets(experiment: "Experiment") -> None:
    """Raise UserError where sizes are told that nobody knows, or first stage or network take no picture of a bucket."""
    spec, config = experiment.info.spec, experiment.config
    if experiment.told_beside and spec.kind != "pixels":
        raise UserError(
            "model.size_channels tells the network how a picture was cut, which prepared latents do not say: set it to "
            "0, or first_stage.online=True and pictures as data"
        )
    for height, width in sides_of(tuple(config.data.buckets), "data.buckets"):
        try:
            model = experiment.model.of_size(height, width)
            inputs = example_inputs(model.network, 1, model.diffused.shape)
            jax.eval_shape(model.network.apply, {"params": parameter_shapes(model.network)}, *inputs)
        except UserError as error:
            raise UserError(f"data.buckets has {height}x{width}: {error}") from error


def check_picture(experiment: "Experiment") -> None:
    """Raise UserError if holes are drawn for no condition, or if the two pictures of an edit would no longer match."""
    told, data = experiment.told_picture, experiment.config.data
    has_holes = experiment.pipeline.drawn_holes.any
    if has_holes != (told is not None and told.needs_holes):
        raise UserError(
            "data.holes and conditioning.picture go together: "
            + (
                "set conditioning.picture.name=hole, or leave data.holes out"
                if has_holes
                else "set data.holes.name=boxes"
            )
        )
    if told is not None and not told.needs_holes and (data.flip or dict(data.augmentation) != {"name": "none"}):
        raise UserError(
            "data.flip and data.augmentation change a picture and not the one that it is made from: leave them out"
        )


def check_captions(experiment: "Experiment") -> None:
    """Raise UserError if captions are shuffled for no condition, or say left and right of mirrored pictures."""
    if experiment.config.data.shuffle_captions and experiment.told_text is None:
        raise UserError(
            "data.shuffle_captions needs captions, but the trained model gets none: set it to False, or "
            "conditioning.text"
        )
    if experiment.config.data.flip and experiment.told_text is not None:
        captions = experiment.pipeline.texts(max_examples=_CAPTIONS_LOOKED_AT)
        sided = next((caption for caption in captions if _SIDES.search(caption)), None)
        if sided is not None:
            raise UserError(
                f"data.flip mirrors half of the pictures and leaves their captions as they are, and {sided!r} would be "
                "wrong for its mirror image: set data.flip=False"
            )


def check_subject(experiment: "Experiment") -> None:
    """Check that the words for what is learned are read, and that pictures of a subject's class count in the loss."""
    config, wanted, text = experiment.config, experiment.config.data, experiment.text
    words = {"data.trigger": (wanted.trigger, "")} if wanted.trigger else {}
    if wanted.instance:
        words["data.instance_prompt"] = (wanted.instance_prompt, wanted.class_prompt)
    for field, (said, instead) in words.items():
        if text is None:
            raise UserError(f"{field} has no effect: the trained model has no text condition")
        if all((rows[0] == rows[1]).all() for rows in text.prepare({"text": [said, instead]}).values()):
            against = f"just as it reads {instead!r}" if instead else "as nothing"
            raise UserError(f"{field}: the tokenizer reads {said!r} {against}; take another word")
    if wanted.num_class_images:
        check_class(config, experiment.objective)
    elif config.objective.get("prior_loss_weight", 1.0) != 1.0:
        raise UserError(
            "objective.prior_loss_weight weighs pictures of a class, but there are none: set data.num_class_images"
        )


def check_class(config: ConfigDict, objective: Objective) -> None:
    """Raise UserError if a batch has no halves, all its captions share a word, or the loss does not weight the
    class."""
    if config.data.trigger:
        raise UserError(
            f"data.trigger={config.data.trigger!r} would be put before captions of the class too: write it into "
            "data.instance_prompt"
        )
    if config.train.batch_size % 2:
        raise UserError(
            f"train.batch_size={config.train.batch_size} is odd: half of a batch shows the subject, half its class"
        )
    if not objective.reads_prior:
        raise UserError(
            f"objective {config.objective.name} does not weigh pictures of a class: use denoising or flow_matching, or "
            "set data.num_class_images=0"
        )


def check_groups(experiment: "Experiment") -> None:
    """Check that the trained groups exist, and that the frozen ones have a source."""
    check_buckets(experiment)
    check_picture(experiment)
    check_captions(experiment)
    state = experiment.abstract_state
    names = sorted({*state.params, *experiment.frozen_groups})
    for pattern in experiment.config.train.trained:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise UserError(f"train.trained: no group of parameters is {pattern!r}; there are: {', '.join(names)}")
    nowhere = sorted(set(experiment.frozen_groups) - set(experiment.sources))
    if nowhere:
        raise UserError(
            f"{', '.join(nowhere)} would be neither trained nor read from anywhere: add it to train.trained, or "
            "name its source"
        )


def check_features(experiment: "Experiment") -> None:
    """Check that the data has the features that the network is aligned to."""
    if "aligned" not in experiment.objective.needs:
        return
    wanted, found = experiment.network.sows.get(FEATURES), experiment.pipeline.features_shape
    if wanted is None:
        raise UserError(
            f"objective {experiment.config.objective.name} aligns the network's features: set model.align_depth of a "
            "dit"
        )
    if found is None:
        raise UserError(
            f"objective {experiment.config.objective.name} needs another network's features of the data, made once by "
            "python -m experiments.prepare_features; give the file with --config.data.features=..."
        )
    if tuple(found) != wanted:
        raise UserError(
            f"data.features have {found[0]} tokens and {found[1]} channels, the network's have {wanted[0]} and "
            f"{wanted[1]}: set model.align_channels={found[1]}, or make them again"
        )
