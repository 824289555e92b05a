"""Draw pictures of prompts with a published text-to-image model, or with a run of one's own.

    python -m experiments.generate --model=FOLDER --prompt="a red square" --num_images=4 --out=pictures
    python -m experiments.generate --model=FOLDER --prompts=prompts.txt [--sampler=dpmpp_2m --steps=20 --seed=7]
    python -m experiments.generate --model=FOLDER --prompt="snow" --image=a.png [--mask=m.png] --strength=0.6
    python -m experiments.generate --model=FOLDER --prompt="a house" --control=CONTROLNET_FOLDER:edges.png[:0.7]
    python -m experiments.generate --model=FOLDER --prompt="a fox" --guidance=apg --set=guidance.eta=0.2
    python -m experiments.generate --model=FOLDER --prompt="a house" --lora=style.safetensors[:0.8]
    python -m experiments.generate --model=FOLDER --prompt="a house" --ip_adapter=FILE --reference=a.png[:0.6]
    python -m experiments.generate --workdir=runs/scenes --prompt="a red star" [--height=48 --width=32]
    python -m experiments.generate --workdir=runs/scenes --prompt="a blue ring" --image=a.png --mask=m.png --out=b.png
    python -m experiments.generate --workdir=runs/scenes --prompt="a blue ring" --image=a.png --expand=0,0,12,0
    python -m experiments.generate --workdir=runs/edits --image=a.png --instruction="make the star green"

FOLDER is a pipeline in the format of diffusers (model_index.json), or one .safetensors file in its authors' layout; if
the file does not lie in such a folder, --model_config names a folder with its sizes and tokenizers. Writes a PNG file
for each picture, with its settings in the text "parameters", and grid.png; --out=b.png writes only one picture. Picture
k of a prompt depends on the seed and k, and on no other prompt. A picture of any size may have a hole: the run sees a
part of it, and outside the mask the result has the bytes of the picture. --expand gives the pixels to add on the left,
top, right and bottom. A run draws other sizes than it was trained at (--height, --width): its times are
shifted for them, and large pictures are decoded in tiles (docs/sizes.md).
"""

from experiments.ground import cli
from experiments.ground.sampling_flags import SamplingFlags

FLAGS = cli.Flags(__name__, __doc__)
MODEL = FLAGS.path("model", None, "folder of a published pipeline, or a whole model in one file")
MODEL_CONFIG = FLAGS.path("model_config", None, "folder of the same model, for a model in one file")
WORKDIR = FLAGS.path("workdir", None, "instead of --model, the directory of a text-to-image run")
PROMPT = FLAGS.words("prompt", None, "what to draw, in words")
PROMPTS = FLAGS.path("prompts", None, 'file of prompts: one per line, or the "text" of each line of a .jsonl')
INSTRUCTION = FLAGS.string("instruction", None, "edit of --image in words, instead of a prompt", allowed="a text")
NEGATIVE = FLAGS.words("negative_prompt", None, "what to guide away from, in words")
IMAGE = FLAGS.path("image", None, "a picture to start from, to edit, or to fill under a mask")
MASK = FLAGS.path("mask", None, "a picture of the same size: white is drawn, black stays, grey blends")
EXPAND = FLAGS.strings(
    "expand", None, "pixels that a run draws around the picture: left,top,right,bottom",
    check=cli.number_text(0, 2**12), allowed="four numbers of pixels with commas between them",
)  # fmt: skip
STRENGTH = FLAGS.number("strength", None, "how much of the picture is replaced; 1 is all", lower=0, upper=1)
CONTROL = FLAGS.repeated(
    "control",
    "a ControlNet, its picture, and its scale",
    check=cli.folder_and_picture,
    allowed="FOLDER:PICTURE[:SCALE]",
)
LORA = FLAGS.repeated(
    "lora", "a file of LoRA or a variant, and its weight", check=cli.path_and_scale, allowed="FILE[:WEIGHT]"
)
WORDS = FLAGS.repeated(
    "textual_inversion", "a file with the vectors of a new word, and the word", check=cli.path_and_word,
    allowed="FILE[:WORD]",
)  # fmt: skip
IP_ADAPTER = FLAGS.repeated(
    "ip_adapter", "a file of an IP-Adapter, which lets a picture be a prompt", check=cli.path_of, allowed="FILE"
)
REFERENCE = FLAGS.repeated(
    "reference", "the picture of each --ip_adapter, and how much it counts", check=cli.path_and_scale,
    allowed="PICTURE[:SCALE]",
)  # fmt: skip
IMAGE_ENCODER = FLAGS.path(
    "image_encoder", None, "its image encoder; by default the model's, or the one beside the file"
)
NUM_IMAGES = FLAGS.integer("num_images", 1, "pictures of each prompt", lower=1, upper=cli.MOST_SAMPLES)
SAMPLING = SamplingFlags(FLAGS)
SEED = FLAGS.integer("seed", 0, "seed of the pictures", upper=cli.MOST_SEED)
HEIGHT = FLAGS.integer("height", None, "side in pixels; by default that of the training", lower=8, upper=2**14)
WIDTH = FLAGS.integer("width", None, "side in pixels; by default that of the training", lower=8, upper=2**14)
SHIFT = FLAGS.number("shift", None, "shift of a run's times to noise; by default sqrt(pixels / trained pixels)",
                     lower=1e-3, upper=1000)  # fmt: skip
DTYPE = FLAGS.choice("dtype", None, ("float32", "bfloat16"), "type of parameters and activations; by default float32")
BATCH_SIZE = FLAGS.integer("batch_size", 8, "pictures at once", lower=1, upper=2**16)
OUT = FLAGS.path("out", "pictures", "folder to write into, or for one picture a .png file")
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin

from diffusion_jax import parallel
from diffusion_jax.data.canvas import blended, resized
from diffusion_jax.data.pictures import read_image
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, locked, replace_file
from diffusion_jax.pipelines import Pipeline
from diffusion_jax.pipelines.single_file import is_single_file, read_single_file
from experiments.building.checks import check_sampler
from experiments.building.restoring import restore_params
from experiments.evaluating import prompted
from experiments.evaluating.asked import read_prompts
from experiments.evaluating.pictures import save_grid
from experiments.ground import workdir
from experiments.ground.progress import ProgressBar

_OF_MODELS = (
    *("control", "lora", "textual_inversion", "ip_adapter", "reference", "image_encoder", "dtype", "model_config"),
)
_GRID = 64  # pictures in the grid
GRID = "grid.png"


class Steps:
    """Finished steps for the progress bar, of earlier batches and of this one."""

    def __init__(self, bar: ProgressBar):
        self.bar, self.before = bar, 0

    def __call__(self, index: Any) -> None:
        self.bar.update(self.before + int(index) + 1)


def main(argv: Sequence[str]) -> None:
    if (MODEL.value is None) == (WORKDIR.value is None):
        raise UserError("give --model=FOLDER of a published pipeline, or --workdir=RUN of a run of your own")
    prompts = what_is_said()
    out = Path(OUT.value)
    alone = out.suffix.lower() == ".png"
    if alone and len(prompts) * NUM_IMAGES.value > 1:
        raise UserError(f"--out={out} is one picture, but {len(prompts) * NUM_IMAGES.value} are drawn: name a folder")
    if alone:
        cli.writable_file(out, read=(IMAGE.value, MASK.value, *(picture for picture, _ in REFERENCE.value)))
    else:
        require_own_pictures(cli.writable_directory(out))
    images, about = (of_model if MODEL.value else of_run)(prompts)
    if not parallel.is_primary():
        return
    each = NUM_IMAGES.value
    if alone:
        save_png(images[0], out, settings(prompts[0], 0, images[0], about))
        print(f"picture in {about['steps']} steps of {about['sampler']}, seed {SEED.value}: {out}")
        return
    with locked(out / ".lock", f"process {{holder}} writes pictures into {out}", wait=True):
        for number, image in enumerate(images):
            prompt = prompts[number // each]
            save_png(image, out / _name(number), settings(prompt, number % each, image, about))
        shown = np.stack([np.asarray(image) for image in images[:_GRID]])
        save_grid(shown, out / GRID, columns=each if each > 1 and len(prompts) > 1 else None, scale=1)
    print(f"{len(images)} pictures in {about['steps']} steps of {about['sampler']}, seed {SEED.value}: {out}")
    print(f"picture: {out / GRID}")


def what_is_said() -> list[str]:
    """The prompts, or the instruction.

    Raises:
      UserError: there are none, an instruction has no picture, or both are given.
    """
    prompts, instruction = read_prompts(PROMPT.value, PROMPTS.value), INSTRUCTION.value
    if instruction is None:
        if prompts is None:
            raise UserError('give --prompt="..." or --prompts=FILE')
        return prompts
    if prompts is not None:
        raise UserError("--instruction says what to do with a picture and --prompt what to draw: give one of them")
    if IMAGE.value is None:
        raise UserError("--instruction needs a picture: give --image=... too")
    for name in ("mask", "strength", "expand"):
        if FLAGS[name] is not None:
            raise UserError(f"--{name} and --instruction are two ways to change a picture: leave one of them out")
    return [instruction]


def require_own_pictures(folder: Path) -> None:
    """Refuse a folder in which pictures of others have the names that this command gives."""
    first = folder / _name(0)
    there = [path for path in (first, folder / GRID) if path.exists()]
    if not there:
        return
    try:
        with Image.open(first, formats=("PNG",)) as image:
            ours = "parameters" in image.text
    except (OSError, ValueError, SyntaxError):
        ours = False
    if not ours:
        raise UserError(f"--out={folder}: {there[0].name} there was not drawn by this command: give another folder")


def _name(number: int) -> str:
    return f"{number:05d}.png"


def of_model(prompts: Sequence[str]) -> tuple[list[Image.Image], dict[str, Any]]:
    """Pictures of a published model, and their settings."""
    if SHIFT.value is not None:
        raise UserError("--shift is for a run (--workdir): a published model has the shift of its own scheduler")
    if EXPAND.value:
        raise UserError("--expand is for a run (--workdir): give a published model a larger --image and its --mask")
    if MASK.value is not None and IMAGE.value is None:
        raise UserError("--mask needs a picture: give --image=... too")
    controls = list(CONTROL.value)
    dtype = jnp.bfloat16 if DTYPE.value == "bfloat16" else jnp.float32
    given = {"image": opened(IMAGE.value, "image"), "mask_image": opened(MASK.value, "mask")}
    hole = None if MASK.value is None else prompted.read_hole(MASK.value, as_rgb(given["image"]))
    given |= {"strength": STRENGTH.value, "height": HEIGHT.value, "width": WIDTH.value}
    if controls:
        shown = [opened(picture, "control") for _, picture, _ in controls]
        given["control_image"] = shown if len(shown) > 1 else shown[0]
        scales = [scale for _, _, scale in controls]
        given["controlnet_conditioning_scale"] = scales if len(scales) > 1 else scales[0]
    pipe = opened_model(dtype, [folder for folder, _, _ in controls])
    if INSTRUCTION.value is not None and not pipe.follows_instructions:
        raise UserError(
            f"{MODEL.value} does not edit by instruction: give --prompt with --image, and --strength or --mask"
        )
    for file, word in WORDS.value:
        print(f"{file} is the word {pipe.load_textual_inversion(file, token=word)}")
    for number, (file, weight) in enumerate(LORA.value):
        pipe.load_lora_weights(file, adapter_name=f"{number}", weight=weight)
    given |= referred(pipe)
    steps = SAMPLING.steps.value or pipe.family.steps
    rule = SAMPLING.of_model()
    scale = pipe.family.guidance if SAMPLING.scale.value is None else SAMPLING.scale.value
    scale = (rule or {}).get("scale", scale)
    images: list[Image.Image] = []
    batches = list(divided(len(prompts), NUM_IMAGES.value, BATCH_SIZE.value))
    with ProgressBar(total=steps * len(batches), description="draw", primary=parallel.is_primary()) as bar:
        on_step = Steps(bar)
        for rows, first, count in batches:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are the notes
                made = pipe(
                    [prompts[row] for row in rows],
                    negative_prompt=NEGATIVE.value,
                    num_inference_steps=steps,
                    guidance_scale=SAMPLING.scale.value,
                    guidance=rule,
                    num_images_per_prompt=count,
                    first_image=first,
                    seed=SEED.value,
                    on_step=on_step if len(jax.local_devices()) == 1 else None,
                    **given,
                )
            for note in dict.fromkeys(made.notes):
                bar.message(f"note: {note}")
            images += made.images
            on_step.before += steps
            bar.update(on_step.before)
    if hole is not None:
        images = [put_back(made, given["image"], hole) for made in images]
    return images, {"steps": steps, "sampler": SAMPLING.sampler.value or pipe.parts.scheduler.kind, "scale": scale,
                    "name": Path(expanded(MODEL.value)).name}  # fmt: skip


def opened_model(dtype: Any, controls: Sequence[str]) -> Pipeline:
    """The model of --model, from a folder or a file."""
    if not is_single_file(MODEL.value):
        if MODEL_CONFIG.value is not None:
            raise UserError(
                f"--model_config is for a model in one file, but --model={MODEL.value} is not one: leave it out"
            )
        return Pipeline.from_pretrained(
            MODEL.value, dtype=dtype, scheduler=SAMPLING.sampler.value, controlnet=list(controls) or None
        )
    if controls:
        raise UserError(
            "--control needs a model in a folder: python -m experiments.convert --source=FILE --target=FOLDER makes one"
        )
    parts, notes = read_single_file(
        MODEL.value, config=MODEL_CONFIG.value, dtype=dtype, scheduler=SAMPLING.sampler.value
    )
    for note in notes:
        print(f"note: {note}")
    return Pipeline(parts)


def referred(pipe: Pipeline) -> dict[str, Any]:
    """Activate the IP-Adapters, and return the call arguments for their pictures.

    Raises:
      UserError: the numbers of pictures and adapters differ, or a file does not fit.
    """
    files, references = list(IP_ADAPTER.value), list(REFERENCE.value)
    if len(files) != len(references):
        raise UserError(
            f"--ip_adapter is given {len(files)} times and --reference {len(references)} times: each IP-Adapter has "
            "one picture"
        )
    if not files:
        if IMAGE_ENCODER.value:
            raise UserError("--image_encoder belongs to --ip_adapter=FILE: give both, or neither")
        return {}
    shown = [opened(picture, "reference") for picture, _ in references]
    pipe.load_ip_adapter(files, image_encoder_folder=IMAGE_ENCODER.value, scale=[scale for _, scale in references])
    return {"ip_adapter_image": shown}


def divided(prompts: int, each: int, most: int) -> list[tuple[list[int], int, int]]:
    """Batches: the prompts, the first picture for each, and the number of pictures."""
    if each >= most:
        starts = range(0, each, most)
        return [([row], first, min(most, each - first)) for row in range(prompts) for first in starts]
    together = most // each
    return [(list(range(row, min(row + together, prompts))), 0, each) for row in range(0, prompts, together)]


def of_run(prompts: Sequence[str]) -> tuple[list[Image.Image], dict[str, Any]]:
    """Pictures of a text-to-image run."""
    for name in _OF_MODELS:
        if FLAGS[name]:
            raise UserError(f"--{name} is for published models (--model); for a run see experiments.sample")
    if EXPAND.value and len(EXPAND.value) != 4:
        raise UserError(f"--expand needs four numbers of pixels, left,top,right,bottom, not {len(EXPAND.value)}")
    workdir.read_config(WORKDIR.value)  # which registers the run's own parts
    if SAMPLING.sampler.value:
        check_sampler(SAMPLING.sampler.value)
    experiment, params, _ = restore_params(WORKDIR.value)
    if experiment.told_pictures:
        raise UserError(
            f"{WORKDIR.value} trained {experiment.config.adapter.name}, which is told a picture: write it by "
            "experiments.convert, and draw with --model and --control or --ip_adapter"
        )
    (prompted.require_pictures if INSTRUCTION.value is None else prompted.require_editor)(experiment)
    begun = prompted.Begun.read(
        experiment.shown.spec.shape[-1],
        IMAGE.value,
        mask=MASK.value,
        strength=STRENGTH.value,
        expand=None if EXPAND.value is None else [int(pixels) for pixels in EXPAND.value],
    )
    size = {"height": HEIGHT.value, "width": WIDTH.value, "shift": SHIFT.value}
    if parallel.is_primary():
        for remark in prompted.remarks(experiment, [*prompts, NEGATIVE.value or ""], begun, size):
            print(remark, file=sys.stderr, flush=True)
    sampling, scale = experiment.config.sampling, SAMPLING.scale.value
    if scale is not None and sampling.guidance.name == "none":
        sampling.guidance = ConfigDict({"name": "classifier_free", "scale": scale})
    SAMPLING.apply(sampling)
    drawn, make = prompted.draw(
        experiment,
        params,
        prompts,
        each=NUM_IMAGES.value,
        begun=begun,
        seed=SEED.value,
        batch_size=BATCH_SIZE.value,
        sampler=SAMPLING.sampler.value,
        steps=SAMPLING.steps.value,
        guidance_scale=scale,
        negative=NEGATIVE.value,
        **size,
    )
    images = [Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture) for picture in drawn]
    return images, {"steps": make.grid.num_steps, "sampler": SAMPLING.sampler.value or sampling.sampler.name,
                    "scale": make.guidance.scale, "name": Path(WORKDIR.value).name}  # fmt: skip


def put_back(made: Image.Image, image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Paste the drawn part into the hole of the picture, which keeps its size unless --height or --width are given."""
    drawn, picture = as_rgb(made), as_rgb(image)
    if HEIGHT.value is not None or WIDTH.value is not None:
        height, width = drawn.shape[:2]
        picture, mask = resized(picture, height, width), resized(mask[..., None], height, width)[..., 0]
    return Image.fromarray(blended(picture, resized(drawn, *picture.shape[:2]), mask))


def as_rgb(image: Image.Image) -> np.ndarray:
    """The bytes of a picture, [height, width, 3]."""
    return np.asarray(image.convert("RGB"))


def opened(path: str | None, flag: str) -> Image.Image | None:
    """The picture of a file as it is seen: RGB, and of a mask grey.

    Raises:
      UserError: no such file, or no picture.
    """
    if path is None:
        return None
    try:
        found = read_image(path, channels=1 if flag == "mask" else 3)
    except UserError as error:
        raise UserError(f"--{flag}={path}: {error}") from error
    return Image.fromarray(found[..., 0] if flag == "mask" else found)


def settings(prompt: str, number: int, image: Image.Image, about: dict[str, Any]) -> str:
    """The settings of a picture, in the form that image viewers read from Stable Diffusion's PNG files."""
    lines = [prompt]
    if NEGATIVE.value:
        lines.append(f"Negative prompt: {NEGATIVE.value}")
    facts = {
        "Steps": about["steps"],
        "Sampler": about["sampler"],
        "CFG scale": f"{about['scale']:g}",
        "Seed": SEED.value,
        "Size": f"{image.width}x{image.height}",
        "Model": about["name"],
    }
    if LORA.value:
        facts["Lora"] = " ".join(f"{Path(file).stem}:{weight:g}" for file, weight in LORA.value)
    if SAMPLING.guidance.value or SAMPLING.options.value:
        facts["Guidance"] = " ".join(filter(None, (SAMPLING.guidance.value, *SAMPLING.options.value))).replace(",", " ")
    if SHIFT.value is not None:
        facts["Shift"] = f"{SHIFT.value:g}"
    if EXPAND.value:
        facts["Expand"] = " ".join(EXPAND.value)
    if REFERENCE.value:
        facts["IP-Adapter"] = " ".join(f"{Path(picture).name}:{scale:g}" for picture, scale in REFERENCE.value)
    if STRENGTH.value is not None:
        facts["Denoising strength"] = f"{STRENGTH.value:g}"
    if NUM_IMAGES.value > 1:
        facts["Picture"] = number
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])


def save_png(image: Image.Image, path: Path, parameters: str) -> None:
    """Write a picture with its settings, whole or not at all."""
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("parameters", parameters)
    image.save(buffer, format="PNG", pnginfo=text)
    replace_file(path, buffer.getvalue())


if __name__ == "__main__":
    cli.run(main)
