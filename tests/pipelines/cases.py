"""Access to the reference runs of tests/golden/pipelines: arrays, draws and tolerances, with channels last."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.pipelines import Pipeline
from diffusion_jax.rng import BatchKey

GOLDEN = Path(__file__).parent.parent / "golden" / "pipelines"
INDEX = json.loads((GOLDEN / "index.json").read_text())
ADAPTERS = ("lora", "textual_inversion", "ip_adapter", "image_encoder")  # loaded into a pipeline, in separate tests
NAMES = sorted(
    name
    for name, case in INDEX["cases"].items()
    if (GOLDEN / "cases" / f"{name}.npz").is_file() and not set(ADAPTERS) & set(case["components"])
)


@functools.cache
def arrays(name):
    """All arrays of a case."""
    found = dict(np.load(GOLDEN / "cases" / f"{name}.npz"))
    for key, said in INDEX["cases"][name]["arrays"].items():
        if said.startswith("= concat("):
            found[key] = np.concatenate([found[part.strip()] for part in said[len("= concat(") : -1].split(",")])
        elif said.startswith("= "):
            found[key] = found[said[2:]]
    return found


def last(x):
    """Move channels to the last axis; Flux's packed tokens [n, tokens, 4 c] are handled by `unpacked`."""
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def unpacked(x, height, width):
    """Turn Flux's [n, (h/2)(w/2), 4 c] into [n, h, w, c]."""
    n, _, c = x.shape
    x = x.reshape(n, height // 2, width // 2, c // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, height, width, c // 4)


def draws(name):
    """The Gaussian draws of a case in order, with channels last, and the place of each."""
    found = arrays(name)
    return [(last(found[draw["name"]]), draw["where"]) for draw in INDEX["cases"][name]["draws"]]


@dataclasses.dataclass(frozen=True)
class StoredKey(BatchKey):
    """A key that returns stored draws in a sampler's steps: `noise`, [steps, batch, ...]."""

    noise: np.ndarray | None = None

    def fold_in(self, name):
        return self

    def counter_based(self):
        return self

    def at_step(self, step):
        return dataclasses.replace(self, noise=np.asarray(self.noise)[min(int(step), len(self.noise) - 1)])

    def normal(self, shape, dtype=None):
        return self.noise


@functools.cache
def _model(folder, pipeline_class, parts):
    """A pipeline with these parts, read only once."""
    parts = dict(parts)
    if "low_res_scheduler" in parts:
        parts["low_res_scheduler"] = json.loads(parts["low_res_scheduler"])
    return Pipeline.from_pretrained(GOLDEN / folder, pipeline_class=pipeline_class, **parts)


def pipeline(name):
    """The pipeline of a case."""
    case = INDEX["cases"][name]
    parts = {
        part: said for part, said in case["components"].items() if part not in ("pipeline", "scheduler", *ADAPTERS)
    }
    low = parts.pop("low_res_scheduler", None)
    nets = parts.pop("controlnet", None)
    found = {part: None if said is None else GOLDEN / said for part, said in parts.items()}
    if nets:
        found["controlnet"] = tuple(GOLDEN / net for net in ([nets] if isinstance(nets, str) else nets))
    if "refiner" in name:
        found["requires_aesthetics_score"] = True
    if low:
        found["low_res_scheduler"] = json.dumps({"_class_name": low["class"], **low["config"]})
    pipe = _model(case["components"]["pipeline"], case["pipeline"], tuple(sorted(found.items())))
    said = case["components"]["scheduler"]
    return pipe.with_scheduler({"_class_name": said["class"], **said["config"]})


def arguments(name):
    """The arguments of a case's call, with pictures as PIL images and latents with channels last."""
    case, found = INDEX["cases"][name], arrays(name)

    def given(value):
        if isinstance(value, list) and value and isinstance(value[0], str) and value[0].startswith("@"):
            return [given(one) for one in value]
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        array = found[value[1:]]
        if array.dtype == np.uint8:
            return [Image.fromarray(one) for one in array]
        return latents(name, array)

    call = {key: given(value) for key, value in case["call"].items() if not key.startswith("_")}
    if "controlnet" in case["components"]:
        call["control_image"] = call.pop("image")
        if isinstance(call["control_image"][0], list):
            call["control_image"] = [one[0] for one in call["control_image"]]
    if name.startswith("flux_img2img") or name in ("sd3_img2img", "sd3_inpaint"):
        call.setdefault("height", 32)
    given_draws: dict = {}
    steps = []
    for noise, where in draws(name):
        if where.startswith("scheduling_"):
            steps.append(noise)
        elif where == "vae.py:sample":
            nine = "inpaint9" in name or "fill" in name
            given_draws.setdefault("masked" if nine or "encode" in given_draws else "encode", noise)
        elif "upscale" in where:
            given_draws["low"] = noise
        else:
            given_draws["latents"] = noise
    if steps:
        wanted = call["num_inference_steps"]
        zeros = [np.zeros_like(steps[0])] * (wanted - len(steps))
        given_draws["steps"] = np.stack([*steps, *zeros])
    if "latents" not in given_draws and "masked" in given_draws and not nine:
        del given_draws["masked"]
    call["draws"] = given_draws
    return call


def latents(name, array):
    """Reference latents in the layout of this package."""
    if array.ndim == 4:
        return last(array)
    if name.startswith("ideogram"):
        return ideogram(array, 4, 4)
    return unpacked(array, 8, 8)


def ideogram(x, rows, columns):
    """Turn Ideogram 4's [n, tokens, c] into [n, rows, columns, c]."""
    return x.reshape(len(x), rows, columns, -1)
