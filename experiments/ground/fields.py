"""The fields of the runner, defined once: type, default, allowed values and meaning of each.

`configs/base.py` gives a config with the defaults, from which every config starts. `complete` fills in the fields that
another config leaves out. `check_fields` checks a config against the table before anything starts, whether a value came
from a file, a flag or JSON. The parts define their own fields. docs/config.md shows all fields.
"""

import functools
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from ml_collections import ConfigDict

from diffusion_jax.domains import ANY, DEPTH, NOT_NEGATIVE, POSITIVE, SHARE, SIZE, STEPS, Bounds, check
from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name

COUNT = Bounds(low=0, high=10**9)
EXAMPLES = Bounds(low=1, high=2**24)
EMA_WIDTH = Bounds(low=0, high=12**-0.5, above=True, below=True)
DEVICES = Bounds(low=-1, high=2**20)
Rules = tuple[tuple[str, str | tuple[str | None, ...]], ...]
Decay = Literal["constant", "cosine", "linear", "inverse_sqrt"]


class _NoDefault:
    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return self._text


CODEC: Final = "codec"
"""The group that only the config of a first stage has."""
ADAPTER: Final = "adapter"
"""The group of an adapter, which is trained instead of a model."""
INIT: Final = "init.folder"
"""The field that a config sets if it starts from a model."""
REQUIRED: Final = _NoDefault("required")
"""Marks a field without a default, which every config must state."""
ABSENT: Final = _NoDefault("absent")
"""Marks a field of a part that only some other parts read; it is stated where it is read."""


class Field(NamedTuple):
    """A field of the runner: its type, its default, the bounds of its number (or of each number in a tuple), its
    meaning."""

    kind: Any
    default: Any
    bounds: Bounds
    meaning: str


FIELDS: Mapping[str, Field] = {
    "seed": Field(int, 0, Bounds(low=0, high=2**32 - 1), "seed of all random streams"),
    "imports": Field(tuple[str, ...], (), ANY, "modules with parts of your own, imported by every command of the run"),
    "data.dataset": Field(str, REQUIRED, ANY, "name of the data set, or a path such as folder:/path/to/images"),
    "data.split": Field(str, "train", ANY, "split to train on, in TFDS notation"),
    "data.validation_split": Field(str, "", ANY, "split that is held out for validation; empty: none"),
    "data.data_dir": Field(str | None, "", ANY, "folder of prepared data; empty: $TFDS_DATA_DIR, else ./data"),
    "data.image_size": Field(int | None, None, SIZE, "side of the square images in pixels; None: as they are"),
    "data.crop": Field(str, "none", ANY, "crop that makes images square"),
    "data.flip": Field(bool, False, ANY, "mirror each image with probability 1/2"),
    "data.shuffle_captions": Field(bool, False, ANY, "give every example the caption of another one: a control"),
    "data.num_workers": Field(int, 0, Bounds(low=0, high=4096), "processes that read data; 0: threads of the trainer"),
    "data.prefetch": Field(int, 4, Bounds(low=0, high=4096), "batches kept ready, by each process that reads"),
    "data.memory_limit": Field(int, 2**30, Bounds(low=0, high=2**50), "bytes up to which a split is kept in memory"),
    "data.features": Field(str, "", ANY, "file of another network's features of the data, for alignment (REPA)"),
    "data.trigger": Field(
        str, "", ANY, "trigger word for the learned subject or style, put before captions that lack it; empty: none"
    ),
    "data.instance": Field(
        str, "", ANY, "folder of pictures of one subject (DreamBooth), instead of data.dataset; empty: none"
    ),
    "data.instance_prompt": Field(str, "", ANY, "caption of every picture of data.instance, with a rare word"),
    "data.class_pictures": Field(
        str, "", ANY, "folder of pictures of the subject's class; empty: drawn from the model before training"
    ),
    "data.buckets": Field(
        tuple[str, ...],
        (),
        ANY,
        'heights and widths such as "192x320"; each picture is cut to the nearest shape, a batch has one shape; empty: '
        "squares",
    ),
    "data.class_prompt": Field(str, "", ANY, "caption of every picture of the class, without the rare word"),
    "data.num_class_images": Field(
        int, 0, Bounds(low=0, high=10**6), "pictures of the class, for prior preservation; 0: none"
    ),
    "train.steps": Field(int, REQUIRED, STEPS, "steps of the optimizer"),
    "train.batch_size": Field(int, 128, EXAMPLES, "examples in a step, over all devices"),
    "train.accumulation": Field(int, 1, Bounds(low=1, high=2**20), "microbatches in a step, one after the other"),
    "train.dtype": Field(str, "float32", ANY, "type in which activations are computed: float32 or bfloat16"),
    "train.trained": Field(
        tuple[str, ...],
        (),
        ANY,
        "patterns of the parameter groups to train; empty: all that are not read from elsewhere",
    ),
    "train.text_encoder": Field(
        bool, False, ANY, "train the text encoders of the model of init.folder too, or adapt their attention"
    ),
    "train.class_conditional": Field(bool, False, ANY, "tell the network the class of an example"),
    "train.conditioning_dropout": Field(float, 0.0, SHARE, "share of examples without class and text, for guidance"),
    "train.guidance_embedding": Field(
        float | None,
        None,
        NOT_NEGATIVE,
        "guidance scale for a network that embeds one; None: the default of its family",
    ),
    "optimizer.learning_rate": Field(float, REQUIRED, NOT_NEGATIVE, "highest learning rate"),
    "optimizer.warmup_steps": Field(int, 0, COUNT, "steps in which the learning rate rises from 0"),
    "optimizer.decay": Field(Decay, "constant", ANY, "course of the learning rate after the warm-up"),
    "optimizer.decay_steps": Field(int, 0, COUNT, "step at which inverse_sqrt begins to fall"),
    "optimizer.clip_norm": Field(float, 0.0, NOT_NEGATIVE, "norm to which the gradient is clipped; 0: never"),
    "ema.decays": Field(
        tuple[float, ...], (), Bounds(low=0, high=1, below=True), "decays per step; each gives one average"
    ),
    "ema.half_lives": Field(tuple[float, ...], (), POSITIVE, "half-lives in images; each gives one average"),
    "ema.widths": Field(tuple[float, ...], (), EMA_WIDTH, "relative widths (EDM2); each gives one average"),
    "ema.ramp_up_ratio": Field(float, 0.05, POSITIVE, "a half-life is at most this share of the images seen so far"),
    "parallel.strategy": Field(str, "jit", ANY, "how devices are used"),
    "parallel.data": Field(int, -1, DEVICES, "devices that share the batch; -1: the rest"),
    "parallel.fsdp": Field(int, 1, DEVICES, "devices that share the batch and the parameters; -1: the rest"),
    "parallel.tensor": Field(int, 1, DEVICES, "devices that share the channels of a layer; -1: the rest"),
    "parallel.context": Field(int, 1, DEVICES, "devices that share the tokens of an example; -1: the rest"),
    "parallel.rules": Field(Rules, (), ANY, "pairs (pattern of parameters, axes); empty: the rules of the mesh"),
    "sampling.steps": Field(int, REQUIRED, Bounds(low=1, high=10**6), "steps of the sampler"),
    "sampling.clip_x0": Field(bool, False, ANY, "clip predictions of the data to [-1, 1]"),
    "sampling.ema": Field(str, "", ANY, "average of the parameters to sample with; empty: the first"),
    "sampling.batch_size": Field(int, 250, EXAMPLES, "samples drawn at once"),
    "log.every": Field(int, 100, STEPS, "steps between logged rows"),
    "log.validate_every": Field(int, 0, COUNT, "steps between validations; 0: none"),
    "log.validation_examples": Field(int, 256, Bounds(low=1, high=10**9), "held-out examples in a validation"),
    "log.sample_every": Field(int, 0, COUNT, "steps between pictures of samples; 0: none"),
    "log.num_samples": Field(int, 64, Bounds(low=1, high=10_000), "samples in a picture"),
    "checkpoint.directory": Field(
        str, "", ANY, "directory of checkpoints, possibly in a bucket; empty: in the workdir"
    ),
    "checkpoint.every": Field(int, 5_000, STEPS, "steps between checkpoints"),
    "checkpoint.keep_last": Field(int, 2, DEPTH, "newest checkpoints that are kept"),
    "checkpoint.keep_best": Field(int, 0, Bounds(low=0, high=10_000), "best checkpoints that are also kept"),
    "checkpoint.best_metric": Field(
        Literal["loss", "validation_loss"], "validation_loss", ANY, "number that decides which are best"
    ),
    "checkpoint.best_mode": Field(
        Literal["min", "max"], "min", ANY, "whether the smallest or the largest value is best"
    ),
    "evaluation.metrics": Field(tuple[str, ...], (), ANY, "metrics computed after training"),
    "evaluation.num_samples": Field(int, 64, STEPS, "number of samples to judge"),
    "evaluation.max_real": Field(int, 50_000, STEPS, "largest number of real images to compare with"),
    "evaluation.inception": Field(str, "", ANY, "file with the weights of Inception-v3, for fid and related metrics"),
    "evaluation.convention": Field(Literal["tf", "torch"], "tf", ANY, "way in which images are resized for Inception"),
    "evaluation.reference": Field(str, "", ANY, "file with statistics of the real images, for fid"),
    "evaluation.dinov2": Field(str, "", ANY, "file with the weights of DINOv2, for fd_dinov2"),
    "evaluation.dinov2_reference": Field(str, "", ANY, "file with statistics of the real images, for fd_dinov2"),
    "evaluation.clip": Field(str, "", ANY, "folder with CLIP, for cmmd and clip_score"),
    "evaluation.prompt": Field(str, "a photo of a {}", ANY, "text of a class for clip_score, with {} for its name"),
    "evaluation.likelihood_images": Field(int, 1_000, STEPS, "held-out examples for bits per dimension, at most"),
    "evaluation.bins": Field(int, 256, Bounds(low=2, high=2**16), "values of a pixel, for bits per dimension"),
    "first_stage.path": Field(
        str, "", ANY, "folder of a first stage, trained here or of diffusers, whose latents are diffused; empty: none"
    ),
    "first_stage.online": Field(bool, False, ANY, "encode in every step; False: the data is prepared latents"),
    "init.folder": Field(
        str,
        "",
        ANY,
        "model to start from, instead of model and process: a run, a folder of save_model or of a published "
        "pipeline; empty: none",
    ),
    "init.published": Field(
        str, "", ANY, "published model whose sizes experiments.plan and params use while init.folder does not exist"
    ),
    "init.remat": Field(
        Literal["none", "full", "dots"],
        "none",
        ANY,
        "activations of its blocks that the backward pass recomputes",
    ),
    "teacher.workdir": Field(str, "", ANY, "workdir of the run to learn from, or to start from"),
    "teacher.initialize": Field(bool, True, ANY, "start from the weights of that run"),
    "teacher.inherit": Field(
        bool,
        False,
        ANY,
        "take data, first stage, network, conditions, process and judges from that run, except fields that the config "
        "sets to another value than the default",
    ),
    "teacher.guidance_scale": Field(
        tuple[float, ...],
        (),
        Bounds(low=-1000, high=1000),
        "classifier-free guidance of the teacher: one scale, or the bounds of a uniform draw; empty: none",
    ),
}
PARTS: Mapping[str, tuple[Any, str]] = {
    "data.options": ({}, "arguments of the data set"),
    "data.augmentation": ({"name": "none"}, "augmentation whose parameters the network receives"),
    "data.holes": ({"name": "none"}, "holes that a network learns to fill; it receives their mask"),
    "codec": (ABSENT, "first stage to train instead of a denoiser: such a config has no model"),
    "conditioning.text": (ABSENT, "conditioner of captions; without it the network has no text condition"),
    "conditioning.picture": (ABSENT, "conditioner of a picture beside the input; without it the network has none"),
    "adapter": (ABSENT, "adapter to train instead of the model of init.folder, which stays frozen"),
    "model": (REQUIRED, "network"),
    "process": (REQUIRED, "what is diffused, how, and what the network's input and output mean"),
    "process.schedule": (ABSENT, "noise schedule"),
    "process.prediction": (ABSENT, "what the network's output means"),
    "process.time_input": (ABSENT, "form in which the network receives the time"),
    "process.input_scale": (ABSENT, "factor on the network's input; without it the one that suits the prediction"),
    "process.token_schedule": (ABSENT, "share of the tokens that is kept at each time"),
    "time_sampler": (ABSENT, "distribution of the times in training"),
    "objective": (REQUIRED, "loss"),
    "optimizer": ({}, "optimizer, beside the runner's own fields of that group"),
    "sampling.sampler": (REQUIRED, "sampler"),
    "sampling.grid": ({"name": "uniform"}, "times that the sampler visits"),
    "sampling.guidance": (
        {"name": "classifier_free", "scale": 1.0, "interval": (), "rescale": 0.0},
        "guidance rule; at scale 1 there is none",
    ),
    "sampling.projection": ({"name": "replacement"}, "how experiments.sample --task=inpaint uses the known part"),
    "sampling.inversion": ({"name": "ddim"}, "method from pictures to noise, for its tasks edit and invert"),
}
"""Groups that name a part and its arguments: (default, meaning). `experiments.building.wiring` builds them."""
OF_DENOISERS = frozenset({"model", "process", "sampling.sampler", "sampling.steps"})
"""The fields without a default that the config of a first stage leaves out."""
OF_MODELS = frozenset({"model", "process"})
"""The fields without a default that a config which starts from a model leaves out."""
INHERIT: Final = "teacher.inherit"
"""The field that lets a config take from its teacher what it does not state."""
OF_TEACHERS = frozenset({"data.dataset", "model", "process"})
"""The fields without a default that such a config leaves out."""
GROUPS = tuple(dict.fromkeys(name.partition(".")[0] for name in (*FIELDS, *PARTS) if "." in name or name in PARTS))
"""The groups of a config."""


def runner() -> ConfigDict:
    """A new config with all fields of the runner that have a default."""
    config = ConfigDict()
    for name, default in _defaults().items():
        _set_default(config, name, default)
    return config


def complete(config: ConfigDict, *, whole: bool = True) -> None:
    """Give a config the defaults for all fields that it leaves out.

    With `whole` false, fields without a default may be missing.

    Raises:
      UserError: it has an unknown field, or leaves out one that has no default; the message names it.
    """
    _check_names(config)
    with config.unlocked():
        for name, default in _defaults().items():
            _set_default(config, name, default)
    for name, (default, meaning) in _described().items():
        if name in _left_out(config):
            continue
        value = _value(config, name)
        is_empty = value is ABSENT or (isinstance(value, ConfigDict) and not len(value))
        if whole and default is REQUIRED and is_empty:
            raise UserError(f"the config lacks {name}, which has no default: {meaning}")


def check_fields(config: ConfigDict) -> None:
    """Check every field of the runner against the table.

    Raises:
      UserError: the first field that is unknown, missing, of another type or out of bounds, or two that do not fit.
    """
    _check_names(config)
    for name, field in sorted(FIELDS.items(), key=lambda item: item[0] != INHERIT):  # the others depend on it
        value = _value(config, name)
        if value is ABSENT and name in _left_out(config):
            continue
        if value is ABSENT:
            taught = f", or set {INHERIT}=True, which takes it from the teacher" if name in OF_TEACHERS else ""
            raise UserError(f"the config lacks {name}: {field.meaning}{taught}")
        check(name, value, field.kind, field.bounds)


def _left_out(config: ConfigDict) -> frozenset[str]:
    """The fields that this config need not state, though they have no default."""
    if CODEC in config:
        return OF_DENOISERS
    if _value(config, INHERIT) is True:
        return OF_TEACHERS
    return OF_MODELS if _value(config, INIT) not in ("", ABSENT) else frozenset()


def _check_names(config: ConfigDict) -> None:
    """Raise UserError for an unknown group or field of the runner, and for a value instead of a group."""
    for group, value in config.items():
        if group in FIELDS:
            continue
        if group not in GROUPS:
            raise UserError(unknown_name("group of the config", group, [*GROUPS, "seed", "imports"]))
        if group in PARTS and isinstance(value, str) and group != "optimizer":
            continue
        if not isinstance(value, ConfigDict):
            raise UserError(f"{group} must be a group of fields, it is {value!r}")
        for field in value if group not in PARTS else ():
            name = f"{group}.{field}"
            if name not in FIELDS and name not in PARTS:
                known = [known for known in (*FIELDS, *PARTS) if known.startswith(f"{group}.")]
                raise UserError(unknown_name("field of the config", name, known))


@functools.cache
def _described() -> Mapping[str, tuple[Any, str]]:
    """(default, meaning) for every field of the runner and for every group of a part."""
    return {**{name: (field.default, field.meaning) for name, field in FIELDS.items()}, **PARTS}


@functools.cache
def _defaults() -> Mapping[str, Any]:
    """The defaults, for all fields that have one."""
    return {name: value for name, (value, _) in _described().items() if not isinstance(value, _NoDefault)}


def _value(config: ConfigDict, name: str) -> Any:
    *groups, field = name.split(".")
    for group in groups:
        config = config[group] if group in config else ConfigDict()
    return config.get(field, ABSENT)


def _set_default(config: ConfigDict, name: str, default: Any) -> None:
    *groups, field = name.split(".")
    for group in groups:
        if group not in config:
            config[group] = ConfigDict()
        config = config[group]
    if field not in config:
        config[field] = ConfigDict(default) if isinstance(default, dict) else default
