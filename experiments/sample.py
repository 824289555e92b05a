"""Draw samples from a trained run.

    python -m experiments.sample --workdir=runs/digits --num_samples=64 [--sampler=dpmpp_2m --steps=20 --out=x.npz]
    python -m experiments.sample --workdir=runs/scenes --prompt="a red star" [--negative_prompt="a blue ring"]

Writes x.npz with uint8 `images` [n, height, width, channels] and `labels` [n], classes balanced, or `prompts` [n], and
x.png, the grid. A run that is told texts draws captions of held-out data where no prompt is given. Of text x.npz has
`tokens` [n, length], and x.txt the texts. Sample i depends on the seed, i and what it is asked for; on the batch size
by rounding only.
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
PROMPT = FLAGS.words("prompt", None, "what to draw, in words; empty: nothing is said")
PROMPTS = FLAGS.path(
    "prompts", None, 'file of prompts, drawn in turn: one a line, or of a .jsonl the "text" of each line'
)
NEGATIVE = FLAGS.words("negative_prompt", None, "what to guide away from, in words; by default from saying nothing")
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
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_jax import parallel
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json_rows, read_text, replace_file
from experiments.building.restoring import restore_params
from experiments.building.wiring import Experiment, check_sampler
from experiments.evaluating import evaluation
from experiments.evaluating.asked import Asked, asked_for, asked_in_words
from experiments.evaluating.pictures import balanced_labels
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
    asked = what_is_asked(experiment, NUM_SAMPLES.value)
    make = evaluation.generator(
        experiment,
        sampler=SAMPLER.value,
        steps=STEPS.value,
        guidance_scale=GUIDANCE.value,
        negative=NEGATIVE.value,
        batch_size=min(BATCH_SIZE.value or experiment.config.sampling.batch_size, NUM_SAMPLES.value),
    )
    images = evaluation.draw(make, params, asked, NUM_SAMPLES.value, SEED.value)
    if not parallel.is_primary():
        return
    said = {} if asked.labels is None else {"labels": asked.labels}
    said |= {"prompts": np.array(asked.texts)} if asked.texts else {}
    if info.is_text:
        save_npz(out, tokens=images.reshape(len(images), -1), **said)
    else:
        save_npz(out, images=images, **said)
    print(
        f"{len(images)} samples of step {source['step']} ({source['parameters']}), "
        f"{make.network_evaluations} network evaluations each: {out}"
    )
    if info.is_image:
        shown = min(len(images), evaluation.GRID_SIZE)
        evaluation.save_asked(images[:shown], asked.first(shown), experiment, out.with_suffix(".png"))
        print(f"picture: {out.with_suffix('.png')}")
    if info.is_text:
        save_texts(images, experiment.pipeline.tokenizer, out.with_suffix(".txt"))
        print(f"texts: {out.with_suffix('.txt')}")


def what_is_asked(experiment: Experiment, num_samples: int) -> Asked:
    """What the flags ask for, of every sample; what is not read as it stands is said.

    Raises:
      UserError: prompts for a network that is told no text, or two kinds of prompts.
    """
    prompts = read_prompts(PROMPT.value, PROMPTS.value)
    if prompts is None and experiment.told_text is None:
        if NEGATIVE.value is not None:
            asked_in_words(experiment, [NEGATIVE.value])  # its error
        return Asked.of(chosen_labels(LABELS.value, experiment.num_classes, num_samples))
    if prompts is None and not LABELS.value:
        return asked_for(experiment, num_samples).first(num_samples)
    prompts = [""] if prompts is None else prompts
    labels = chosen_labels(LABELS.value, experiment.num_classes, num_samples)
    asked = asked_in_words(experiment, [prompts[i % len(prompts)] for i in range(num_samples)], labels)
    if parallel.is_primary():
        for remark in experiment.text.remarks([*prompts, NEGATIVE.value or ""], "prompts"):
            print(f"note: {remark}", file=sys.stderr, flush=True)
    return asked


def read_prompts(prompt: str | None, file: str | None) -> list[str] | None:
    """The prompts that are given; None where none are.

    Raises:
      UserError: both flags, no prompt in the file, or a line of it that is none.
    """
    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompts are two answers to one question: give one of them")
    if file is None:
        return None if prompt is None else [prompt]
    if file.endswith(".jsonl"):
        rows = [(number, row.get("text")) for number, row in read_json_rows(file)]
        for number, found in rows:
            if not isinstance(found, str):
                raise UserError(f'line {number} of {file} has no "text" that is a string')
        prompts = [found for _, found in rows]
    else:
        prompts = read_text(file).splitlines()
    if not prompts:
        raise UserError(f"{file} holds no prompt")
    return prompts


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
