"""The fields of the runner: what each may be, and what it means. The fields of parts are those of the parts themselves.

A config is held against this table before anything starts, whether a value came from a file, a flag or JSON.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from diffusion_jax.domains import ANY, DEPTH, NOT_NEGATIVE, POSITIVE, SHARE, SIZE, STEPS, Bounds, check
from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name

COUNT = Bounds(low=0, high=10**9)
Rules = tuple[tuple[str, str | tuple[str | None, ...]], ...]
# Field: (type, bounds, meaning).
FIELDS: Mapping[str, tuple[Any, Bounds, str]] = {
    "seed": (int, Bounds(low=0, high=2**32 - 1), "of all random streams"),
    "imports": (tuple[str, ...], ANY, "modules with parts of your own, which every command of the run imports"),
    "data.dataset": (str, ANY, "a data set's name, or folder:/path/to/images"),
    "data.split": (str, ANY, "what is trained on, in TFDS notation"),
    "data.validation_split": (str, ANY, "what is held out; empty: nothing"),
    "data.data_dir": (str | None, ANY, "where prepared data lies; empty: $TFDS_DATA_DIR, else ./data"),
    "data.image_size": (int | None, SIZE, "side of the square images; None: as they are"),
    "data.crop": (str, ANY, "how images become square"),
    "data.flip": (bool, ANY, "mirror half of the images"),
    "data.num_workers": (int, Bounds(low=0, high=4096), "processes that read; 0: threads of this one"),
    "data.prefetch": (int, Bounds(low=0, high=4096), "batches kept ready"),
    "data.memory_limit": (int, Bounds(low=0, high=2**50), "bytes up to which a split is held in memory"),
    "data.features": (str, ANY, "a file of another network's features, for alignment"),
    "train.steps": (int, STEPS, "optimizer steps"),
    "train.batch_size": (int, Bounds(low=1, high=2**24), "examples in a step, over all devices"),
    "train.accumulation": (int, Bounds(low=1, high=2**20), "microbatches in a step"),
    "train.dtype": (str, ANY, "what activations are computed in"),
    "train.trained": (
        tuple[str, ...],
        ANY,
        "patterns of the groups that are trained; empty: those not read from elsewhere",
    ),
    "train.class_conditional": (bool, ANY, "whether the network is told the class"),
    "train.conditioning_dropout": (float, SHARE, "share of examples without their class, for guidance"),
    "optimizer.learning_rate": (float, NOT_NEGATIVE, "the highest"),
    "optimizer.warmup_steps": (int, COUNT, "steps up to it"),
    "optimizer.decay": (Literal["constant", "cosine", "linear", "inverse_sqrt"], ANY, "what follows"),
    "optimizer.decay_steps": (int, COUNT, "where inverse_sqrt begins to fall"),
    "optimizer.clip_norm": (float, NOT_NEGATIVE, "of the gradient; 0: not clipped"),
    "ema.decays": (tuple[float, ...], Bounds(low=0, high=1, below=True), "averages by decay in a step"),
    "ema.half_lives": (tuple[float, ...], POSITIVE, "averages by half-life in images"),
    "ema.widths": (tuple[float, ...], Bounds(low=0, high=12**-0.5, above=True, below=True), "averages by width (EDM2)"),
    "ema.ramp_up_ratio": (float, POSITIVE, "a half-life is at most this share of the images seen"),
    "parallel.strategy": (str, ANY, "how devices are used"),
    **{
        f"parallel.{axis}": (int, Bounds(low=-1, high=2**20), f"devices along the axis {axis}; -1: the rest")
        for axis in ("data", "fsdp", "tensor", "context")
    },
    "parallel.rules": (Rules, ANY, "(pattern, axes) of parameters; empty: by the mesh"),
    "sampling.steps": (int, Bounds(low=1, high=10**6), "of the sampler"),
    "sampling.guidance_scale": (float, Bounds(low=-1000, high=1000), "1: no guidance"),
    "sampling.guidance_interval": (tuple[float, ...], Bounds(low=0, infinite=True), "noise levels; empty: all"),
    "sampling.guide": (str, ANY, "the workdir of a worse network, for autoguidance"),
    "sampling.guide_ema": (str, ANY, "which average of its parameters"),
    "sampling.clip_x0": (bool, ANY, "clip predictions to [-1, 1]"),
    "sampling.ema": (str, ANY, "which average of the parameters; empty: the first"),
    "sampling.batch_size": (int, Bounds(low=1, high=2**24), "samples drawn at once"),
    "log.every": (int, STEPS, "steps between rows"),
    "log.validate_every": (int, COUNT, "steps between validations; 0: none"),
    "log.validation_examples": (int, Bounds(low=1, high=10**9), "examples of a validation"),
    "log.sample_every": (int, COUNT, "steps between pictures; 0: none"),
    "log.num_samples": (int, Bounds(low=1, high=10_000), "samples in a picture"),
    "checkpoint.directory": (str, ANY, "empty: in the workdir; may be a bucket"),
    "checkpoint.every": (int, STEPS, "steps between checkpoints"),
    "checkpoint.keep_last": (int, DEPTH, "how many of the newest are kept"),
    "checkpoint.keep_best": (int, Bounds(low=0, high=10_000), "how many of the best besides"),
    "checkpoint.best_metric": (Literal["loss", "validation_loss"], ANY, "what is best by"),
    "checkpoint.best_mode": (Literal["min", "max"], ANY, "whether the least or the greatest is best"),
    "evaluation.metrics": (tuple[str, ...], ANY, "what samples are judged by"),
    "evaluation.num_samples": (int, STEPS, "samples that are judged"),
    "evaluation.max_real": (int, STEPS, "real images that they are held against, at most"),
    "evaluation.convention": (Literal["tf", "torch"], ANY, "how images are resized for Inception"),
    "evaluation.likelihood_images": (int, STEPS, "images for bits per dimension, at most"),
    "evaluation.bins": (int, Bounds(low=2, high=2**16), "values of a pixel, for bits per dimension"),
    **{
        f"evaluation.{name}": (str, ANY, f"a file: {what}")
        for name, what in (
            ("inception", "weights of Inception-v3"),
            ("reference", "statistics for fid"),
            ("dinov2", "weights of DINOv2"),
            ("dinov2_reference", "statistics for fd_dinov2"),
            ("clip", "a folder with CLIP"),
        )
    },
    "evaluation.prompt": (str, ANY, "the text of a class for clip_score, with {} for its name"),
    "first_stage.path": (str, ANY, "the folder of a trained first stage, whose latents are diffused; empty: pixels"),
    "first_stage.online": (bool, ANY, "encode in every step; False: the data is latents that were prepared"),
    "teacher.workdir": (str, ANY, "the run to learn from"),
    "teacher.initialize": (bool, ANY, "start from its weights"),
}
PARTS = (
    "codec",
    "model",
    "schedule",
    "prediction",
    "time_input",
    "time_sampler",
    "objective",
)  # their fields are those of parts
PARTS_WITHIN = ("data.options", "data.augmentation", "sampling.sampler", "sampling.grid", "optimizer")


def check_fields(config: ConfigDict) -> None:
    """Hold every field of the runner against the table.

    Raises:
      UserError: the first field that is unknown, of another type or out of bounds, or two that do not fit.
    """
    groups = {name.partition(".")[0] for name in FIELDS}
    for group, value in config.items():
        if group in PARTS:
            if not isinstance(value, ConfigDict | str):
                raise UserError(f"{group} must be a group with a name, it is {value!r}")
        elif group not in groups:
            raise UserError(unknown_name("group of the config", group, sorted({*groups, *PARTS})))
        elif group in FIELDS:
            check(group, value, *FIELDS[group][:2])
        elif not isinstance(value, ConfigDict):
            raise UserError(f"{group} must be a group of fields, it is {value!r}")
        else:
            _check_group(group, value)
    interval = tuple(config.sampling.guidance_interval) if "guidance_interval" in config.sampling else ()
    if interval and not (len(interval) == 2 and interval[0] < interval[1]):
        raise UserError(f"sampling.guidance_interval must be (low, high) with low below high, or (), it is {interval}")


def _check_group(group: str, fields: ConfigDict) -> None:
    for field, value in fields.items():
        name = f"{group}.{field}"
        if name in FIELDS:
            check(name, value, *FIELDS[name][:2])
        elif group not in PARTS_WITHIN and name not in PARTS_WITHIN:
            known = [known for known in FIELDS if known.startswith(f"{group}.")]
            raise UserError(unknown_name("field of the config", name, known))
