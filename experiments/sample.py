"""Draw samples from a trained run, or apply a task to a picture.

    python -m experiments.sample --workdir=runs/digits --num_samples=64 [--sampler=dpmpp_2m --steps=20 --out=x.npz]
    python -m experiments.sample --workdir=runs/digits --num_samples=40 --animate --out=x.png
    python -m experiments.sample --workdir=runs/scenes --prompt="a red star" [--negative_prompt="a blue ring"]

Writes x.npz with uint8 `images` [n, height, width, channels] and `labels` [n], classes balanced, or `prompts` [n], and
x.png, the grid; --out=x.png writes only the grid. --animate also writes x.webp, the way from noise to the samples.
Without a prompt, a text-to-image run draws captions of held-out data. For text, x.npz has `tokens` [n, length], and
x.txt the texts. Sample i depends on the seed, i and its request; the batch size changes it only by rounding.

    ... --task=inpaint   --image=a.png --mask=m.png --out=b.png     draw what the mask has white; the rest stays exactly
    ... --task=edit      --image=a.png --label=3 --out=b.png        make a 3 of it; --source_label says what it is
    ... --task=variation --image=a.png --strength=0.5 --out=b.png   draw it again from noise of that time
    ... --task=invert    --image=a.png --out=z.npz                  the noise that gives it; --latents=z.npz comes back
"""

from experiments.ground import cli
from experiments.ground.sampling_flags import SamplingFlags

FLAGS = cli.Flags(__name__, __doc__)
# Flags that only some tasks read.
READS = {
    "sample": ("labels", "latents", "label"),
    "inpaint": ("image", "mask", "label", "projection"),
    "edit": ("image", "label", "source_label", "strength", "inversion"),
    "variation": ("image", "label", "strength"),
    "invert": ("image", "label", "inversion"),
}
# The endings of the files that may be written beside the one that is named.
BESIDE = {".npz": (".png", ".txt", ".webp"), ".png": (".webp",)}
# Flags that a task would pass over: it finds the one noise of a picture, by its own sampler and without guidance.
PASSED_OVER = {
    "invert": ("num_samples", "sampler", "guidance", "guidance_scale", "guide", "guide_ema", "negative_prompt"),
}
WORKDIR = FLAGS.path("workdir", None, "directory of the run")
TASK = FLAGS.choice("task", "sample", tuple(READS), "task to do")
NUM_SAMPLES = FLAGS.integer(
    "num_samples", None, "number of samples; by default 64, and 1 for a picture", lower=1, upper=cli.MOST_SAMPLES
)
OUT = FLAGS.path("out", None, "file to write, .npz or .png; by default in samples/ of the workdir")
IMAGE = FLAGS.path("image", None, "first picture of a task, in the size of the data")
MASK = FLAGS.path("mask", None, "a picture of the same size: white is drawn, black stays")
LABEL = FLAGS.string("label", None, "class of the result, by number or name; by default none")
SOURCE_LABEL = FLAGS.string("source_label", None, "class of --image; by default none")
STRENGTH = FLAGS.number(
    "strength", None, "time up to which noise replaces the picture; 1 replaces all", lower=0, upper=1
)
LATENTS = FLAGS.path("latents", None, "noise to begin with, as --task=invert wrote it")
SAMPLING = SamplingFlags(FLAGS, with_tasks=True)
ANIMATE = FLAGS.boolean("animate", False, "also write the path from noise to samples as an animated .webp file")
SEED = FLAGS.integer("seed", 0, "seed of the samples", upper=cli.MOST_SEED)
PROMPT = FLAGS.words("prompt", None, "what to draw, in words; empty: no condition")
PROMPTS = FLAGS.path(
    "prompts", None, 'file of prompts, drawn in turn: one per line, or the "text" of each line of a .jsonl'
)
NEGATIVE = FLAGS.words(
    "negative_prompt", None, "what to guide away from, in words, or a class; by default no condition"
)
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
    "batch_size", None, "samples per call; it changes the speed, and samples only by rounding", lower=1, upper=2**20
)
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax import parallel, tasks
from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from diffusion_jax.samplers import INVERSIONS, PROJECTIONS
from experiments.building.checks import check_sampler
from experiments.building.restoring import restore_params
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation, requests
from experiments.evaluating.asked import Asked, asked_for, asked_in_words, read_prompts
from experiments.evaluating.generation import ASKED, SOURCE, Generator
from experiments.evaluating.pictures import balanced_labels, save_grid
from experiments.evaluating.texts import save_texts
from experiments.ground import workdir
from experiments.ground.fields import CODEC


def main(argv: Sequence[str]) -> None:
    if not WORKDIR.value:
        raise UserError("give --workdir=..., the directory of a trained run")
    require_own_flags()
    out = out_path()
    workdir.read_config(WORKDIR.value)  # which registers the run's own parts
    if SAMPLING.sampler.value:
        check_sampler(SAMPLING.sampler.value)
    for suffix in (out.suffix, *BESIDE[out.suffix]):
        cli.writable_file(out.with_suffix(suffix), read=(IMAGE.value, MASK.value, LATENTS.value, PROMPTS.value))
    if CODEC in workdir.read_config(WORKDIR.value):
        raise UserError(f"{WORKDIR.value} is a first stage, which draws no samples: experiments.evaluate reconstructs")
    experiment, params, source = restore_params(
        WORKDIR.value, step=CHECKPOINT.value, ema=EMA.value, flag="--checkpoint"
    )
    SAMPLING.apply(experiment.config.sampling)
    if TASK.value == "sample" and not LATENTS.value:
        return draw(experiment, params, source, out)
    requests.require_pictures(experiment, TASK.value)
    return (invert if TASK.value == "invert" else make_pictures)(experiment, params, source, out)


def require_own_flags() -> None:
    """Refuse flags that the task does not read, and missing flags."""
    own = READS[TASK.value]
    for name in sorted({flag for flags in READS.values() for flag in flags} - set(own)):
        if FLAGS[name] is not None:
            readers = ", ".join(task for task, flags in READS.items() if name in flags)
            raise UserError(f"--task={TASK.value} does not read --{name}; it is for --task={readers}")
    for name in PASSED_OVER.get(TASK.value, ()):
        if FLAGS[name] is not None:
            raise UserError(f"--task={TASK.value} does not read --{name}: leave it out")
    for name in ("image", "mask"):
        if name in own and FLAGS[name] is None:
            raise UserError(f"--task={TASK.value} needs --{name}=..., a picture of the size of the data")
    if ANIMATE.value and (TASK.value != "sample" or LATENTS.value):
        raise UserError("--animate shows samples that are drawn from noise; leave it out here")
    if TASK.value != "sample" or LATENTS.value:
        for name in ("prompt", "prompts"):
            if FLAGS[name] is not None:
                raise UserError(f"--{name} is for samples drawn from noise; experiments.generate takes both")
    if STRENGTH.value == 0:
        raise UserError("--strength=0 would leave the picture as it is: give more than 0 and at most 1")
    if TASK.value == "sample" and LATENTS.value and LABELS.value:
        raise UserError("--labels are for samples drawn from noise; with --latents give --label")
    if TASK.value == "sample" and LABEL.value and not LATENTS.value:
        raise UserError("--label is for a picture; give the classes of samples as --labels")


def out_path() -> Path:
    """The path of the result."""
    of_picture = TASK.value in ("inpaint", "edit", "variation") or bool(LATENTS.value)
    several = (NUM_SAMPLES.value or 1) > 1
    named = {"sample": "samples.npz", "invert": "latents.npz"}
    default = f"{TASK.value}.{'npz' if several else 'png'}" if of_picture else named[TASK.value]
    out = Path(OUT.value or f"{WORKDIR.value}/samples/{default}")
    grid_alone = TASK.value == "sample" and not LATENTS.value
    endings = (".png", ".npz") if grid_alone or (of_picture and not several) else (".npz",)
    if out.suffix not in endings:
        raise UserError(f"--out must end in {' or '.join(endings)}, got {out}")
    return out


def draw(experiment: Experiment, params: Any, source: dict[str, Any], out: Path) -> None:
    """Draw samples from noise."""
    place = workdir.Place.of(WORKDIR.value) if OUT.value is None else workdir.Place()
    number = NUM_SAMPLES.value or 64
    if out.suffix == ".png" and experiment.shown.spec.kind != "pixels":
        raise UserError(f"--out={out}: the samples of this run are no pictures; let --out end in .npz")
    asked, make = what_is_asked(experiment, number), generator(experiment, number)
    if ANIMATE.value:
        evaluation.require_path(make)
    images = evaluation.draw(make, params, asked, number, SEED.value)
    if ANIMATE.value:  # all processes take part
        evaluation.animate(make, params, asked, number, SEED.value, out.with_suffix(".webp"))
    if not parallel.is_primary():
        return
    place.require("while samples were drawn")
    print(
        f"{len(images)} samples of step {source['step']} ({source['parameters']}), "
        f"{make.network_evaluations} network evaluations each: {out}"
    )
    save_samples(experiment, images, asked, out)


def save_samples(experiment: Experiment, images: np.ndarray, asked: Asked, out: Path) -> None:
    """Write the samples as arrays, unless `out` is a picture; also the grid of pictures, or the texts."""
    info = experiment.shown
    if out.suffix != ".png":
        said = {} if asked.labels is None else {"labels": asked.labels}
        said |= {"prompts": np.array(asked.texts)} if asked.texts else {}
        arrays = {"tokens": images.reshape(len(images), -1)} if info.spec.kind == "tokens" else {"images": images}
        save_npz(out, **arrays, **said)
    if info.spec.kind == "pixels":
        shown = min(len(images), evaluation.GRID_SIZE)
        evaluation.save_asked(images[:shown], asked.first(shown), experiment, out.with_suffix(".png"))
        some = f", the first {shown}" if shown < len(images) else ""
        print(f"picture: {out.with_suffix('.png')}{some}")
    if info.spec.kind == "tokens":
        save_texts(images, experiment.pipeline.tokenizer, out.with_suffix(".txt"))
        print(f"texts: {out.with_suffix('.txt')}")
    if ANIMATE.value:
        print(f"animation: {out.with_suffix('.webp')}")


def make_pictures(experiment: Experiment, params: Any, source: dict[str, Any], out: Path) -> None:
    """Do inpainting, editing, variations, or draw from given noise."""
    task, number, label, how = task_of(experiment), NUM_SAMPLES.value or 1, LABEL.value, {}
    given: dict[str, np.ndarray] = {}
    if LATENTS.value:
        given[requests.LATENTS], how = requests.read_latents(experiment, LATENTS.value)
        number, label = NUM_SAMPLES.value or len(given[requests.LATENTS]), label or how.get("label")
        if number > 1 and out.suffix == ".png":
            raise UserError(f"--latents={LATENTS.value} gives {number} pictures: let --out end in .npz")
    elif TASK.value == "edit":
        how = {"sampler": task.inversion.sampler}
    make = generator(experiment, number, task, how)
    images = evaluation.draw(make, params, None, number, SEED.value, given | rows_of(experiment, label))
    if not parallel.is_primary():
        return
    if out.suffix == ".png":
        save_picture(images[0], out)
    else:
        save_npz(out, images=images)
        save_grid(images[: evaluation.GRID_SIZE], out.with_suffix(".png"))
    print(
        f"{len(images)} of task {tasks.name_of(task)}, step {source['step']} ({source['parameters']}), by sampler "
        f"{SAMPLING.sampler.value or how.get('sampler') or experiment.config.sampling.sampler.name} in "
        f"{make.grid.num_steps} steps{f', label {label}' if label else ''}, {make.network_evaluations} network "
        f"evaluations each: {out}"
    )


def invert(experiment: Experiment, params: Any, source: dict[str, Any], out: Path) -> None:
    """Write the noise of a picture, with the settings that give the picture back."""
    task = task_of(experiment)
    make = generator(experiment, 1, task)
    latents = evaluation.draw(make, params, None, 1, SEED.value, rows_of(experiment, LABEL.value))
    if not parallel.is_primary():
        return
    how = {"sampler": task.inversion.sampler, "steps": make.grid.num_steps, "label": LABEL.value}
    requests.save_latents(out, latents, how)
    print(
        f"noise of step {source['step']} ({source['parameters']}), {make.network_evaluations} network evaluations: "
        f"{out}\nback with --latents={out}, by sampler {how['sampler']} in {how['steps']} steps"
    )


def generator(
    experiment: Experiment, number: int, task: tasks.Task | None = None, how: Mapping[str, Any] | None = None
) -> Generator:
    """The generator with the flags' settings, else those of `how`, else the config's."""
    how = how or {}
    if "sampler" in how:
        check_sampler(how["sampler"])
    return evaluation.generator(
        experiment,
        sampler=SAMPLING.sampler.value or how.get("sampler"),
        steps=SAMPLING.steps.value or how.get("steps"),
        negative=NEGATIVE.value,
        batch_size=min(BATCH_SIZE.value or experiment.config.sampling.batch_size, number),
        task=task,
        model=None if task is None else experiment.picture_model(),
    )


def task_of(experiment: Experiment) -> tasks.Task:
    """The task with its options from the flags and the config."""
    sampling, strength = experiment.config.sampling, STRENGTH.value
    if LATENTS.value:
        return tasks.FromLatents()
    with_strength = {} if strength is None else {"strength": strength}
    made = {
        "inpaint": lambda: tasks.Inpaint(projection=PROJECTIONS.build(sampling.projection)),
        "edit": lambda: tasks.Edit(inversion=INVERSIONS.build(sampling.inversion), **with_strength),
        "variation": lambda: tasks.Variation(**with_strength),
        "invert": lambda: tasks.Invert(inversion=INVERSIONS.build(sampling.inversion)),
    }
    return made[TASK.value]()


def rows_of(experiment: Experiment, label: str | None) -> dict[str, np.ndarray]:
    """The inputs of the task, one row each."""
    given: dict[str, np.ndarray] = {}
    if IMAGE.value:
        given["image"] = requests.in_unit_range(requests.read_picture(experiment, IMAGE.value))
    if MASK.value:
        given["mask"] = requests.read_mask(experiment, MASK.value)
    if experiment.num_classes and label is None and not experiment.config.train.conditioning_dropout:
        raise UserError("this network was always told the class (train.conditioning_dropout is 0): give --label")
    for begin, flag, value in ((ASKED, "label", label), (SOURCE, "source_label", SOURCE_LABEL.value)):
        if value is None:
            continue
        if not experiment.num_classes:
            raise UserError(f"--{flag} needs a class-conditional network; this one has no classes")
        rows = experiment.conditioning.said(value)
        given |= {f"{begin}{name}": row for name, row in rows.items()}
    return given


def what_is_asked(experiment: Experiment, num_samples: int) -> Asked:
    """The request for every sample from the flags; prints a note if a text is not read as it stands.

    Raises:
      UserError: there are prompts for a network without a text condition, or two kinds of prompts.
    """
    prompts = read_prompts(PROMPT.value, PROMPTS.value)
    if prompts is None and experiment.told_text is None:
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
        raise UserError(f"--labels: {wrong[0]!r} is not a class; classes are 0 to {num_classes - 1}")
    return np.resize(np.array([int(name) for name in names], np.int32), num_samples)


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as a compressed .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    replace_file(path, buffer.getvalue())


def save_picture(image: np.ndarray, path: Path) -> None:
    """Write one picture as a PNG file, pixel by pixel, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG", optimize=True)
    replace_file(path, buffer.getvalue())


if __name__ == "__main__":
    cli.run(main)
