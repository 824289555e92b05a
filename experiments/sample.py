"""Draw samples from a trained run.

    python -m experiments.sample --workdir=runs/digits --num_samples=64 [--sampler=dpmpp_2m --steps=20 --out=x.npz]

Writes x.npz with uint8 `images` [n, height, width, channels] and `labels` [n], classes balanced, and x.png, the grid.
Of text x.npz has `tokens` [n, length], and x.txt the texts. Sample i depends on the seed, i and its label; on the batch
size by rounding only.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
WORKDIR = FLAGS.path("workdir", None, "directory of the run")
NUM_SAMPLES = FLAGS.integer("num_samples", 64, "how many", lower=1, upper=cli.MOST_SAMPLES)
OUT = FLAGS.path("out", None, "where to write; by default samples/samples.npz in the workdir", suffix=".npz")
SAMPLER = FLAGS.string(
    "sampler", None, "such as heun or dpmpp_2m, a wrong name lists all; by default what the config says"
)
STEPS = FLAGS.integer("steps", None, "transitions of the time grid", lower=1, upper=cli.MOST_STEPS)
SEED = FLAGS.integer("seed", 0, "of the samples", upper=cli.MOST_SEED)
GUIDANCE = FLAGS.number(
    "guidance_scale", None, "of classifier-free guidance, or of the guide; 1 is none", lower=0, upper=1000
)
GUIDE = FLAGS.path("guide", None, "workdir of a worse network to guide away from (autoguidance)")
GUIDE_EMA = FLAGS.string("guide_ema", None, "which average of the guide's parameters; by default its config's")
LABELS = FLAGS.strings(
    "labels",
    None,
    "classes to draw, in turn, for example 3,7; by default all",
    check=cli.number_text(0, cli.MOST_COUNT),
    allowed="numbers of classes, from 0 on, with commas between them",
)
EMA = FLAGS.string("ema", None, "which average of the parameters (also width_W, post hoc), or 'params' for none")
CHECKPOINT = FLAGS.integer("checkpoint", None, "step of the checkpoint; by default the newest")
BATCH_SIZE = FLAGS.integer(
    "batch_size", None, "samples per call; changes the speed, and the samples by rounding only", lower=1, upper=2**20
)
cli.begin(FLAGS)

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_jax import parallel
from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from experiments.building.restoring import restore_params
from experiments.building.wiring import check_sampler
from experiments.evaluating import evaluation
from experiments.evaluating.pictures import balanced_labels, save_grid
from experiments.evaluating.texts import save_texts
from experiments.ground import workdir
from experiments.ground.fields import CODEC


def main(argv: Sequence[str]) -> None:
    if not WORKDIR.value:
        raise UserError("give --workdir=..., the directory of a trained run")
    out = Path(OUT.value or f"{WORKDIR.value}/samples/samples.npz")
    if out.suffix != ".npz":
        raise UserError(f"--out must end in .npz, got {out}")
    workdir.read_config(WORKDIR.value)  # which registers the run's own parts
    cli.writable_directory(out.parent)
    if SAMPLER.value:
        check_sampler(SAMPLER.value)
    if CODEC in workdir.read_config(WORKDIR.value):
        raise UserError(f"{WORKDIR.value} is a first stage, which draws no samples: experiments.evaluate reconstructs")
    experiment, params, source = restore_params(WORKDIR.value, step=CHECKPOINT.value, ema=EMA.value)
    cli.assign_flags(experiment.config.sampling, GUIDE, GUIDE_EMA)
    info = experiment.shown
    labels = chosen_labels(LABELS.value, experiment.num_classes, NUM_SAMPLES.value)
    make = evaluation.generator(
        experiment,
        sampler=SAMPLER.value,
        steps=STEPS.value,
        guidance_scale=GUIDANCE.value,
        batch_size=min(BATCH_SIZE.value or experiment.config.sampling.batch_size, NUM_SAMPLES.value),
    )
    images = evaluation.draw(make, params, labels, NUM_SAMPLES.value, SEED.value)
    if not parallel.is_primary():
        return
    with_labels = {} if labels is None else {"labels": labels}
    if info.is_text:
        save_npz(out, tokens=images.reshape(len(images), -1), **with_labels)
    else:
        save_npz(out, images=images, **with_labels)
    print(
        f"{len(images)} samples of step {source['step']} ({source['parameters']}), "
        f"{make.network_evaluations} network evaluations each: {out}"
    )
    if info.is_image:
        shown = min(len(images), evaluation.GRID_SIZE)
        grid_labels = None if labels is None else labels[:shown]
        save_grid(images[:shown], out.with_suffix(".png"), labels=grid_labels, **evaluation.class_names(experiment))
        print(f"picture: {out.with_suffix('.png')}")
    if info.is_text:
        save_texts(images, experiment.pipeline.tokenizer, out.with_suffix(".txt"))
        print(f"texts: {out.with_suffix('.txt')}")


def chosen_labels(names: list[str] | None, num_classes: int, num_samples: int) -> np.ndarray | None:
    """The label of every sample.

    Raises:
      UserError: a label that is no class, or labels for a network without classes.
    """
    if not names:
        return balanced_labels(num_samples, num_classes) if num_classes else None
    if not num_classes:
        raise UserError("--labels needs a class-conditional network; this one has no classes")
    wrong = [name for name in names if not name.strip().isdigit() or int(name) >= num_classes]
    if wrong:
        raise UserError(f"--labels: {wrong[0]!r} is no class; classes are 0 to {num_classes - 1}")
    return np.resize(np.array([int(name) for name in names], np.int32), num_samples)


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as a compressed .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    replace_file(path, buffer.getvalue())


if __name__ == "__main__":
    cli.run(main)
