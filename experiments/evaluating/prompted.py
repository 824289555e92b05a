"""Pictures for prompts, drawn by a run: from noise, from a picture, in a hole, or by an instruction."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from diffusion_jax import tasks
from diffusion_jax.data.canvas import expanded, resized, window_around
from diffusion_jax.data.pictures import read_image
from diffusion_jax.errors import UserError
from diffusion_jax.models import example_inputs
from diffusion_jax.samplers import PROJECTIONS
from diffusion_jax.specs import SOURCE
from diffusion_jax.systems import NETWORK, Model
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation, requests
from experiments.evaluating.asked import asked_in_words
from experiments.evaluating.generation import Generator


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Begun:
    """A picture to start from, of any size.

    Attributes:
      image: the picture.
      mask: the part to draw anew: white is drawn, black stays, grey blends; None: all of it changes, by `strength`.
      strength: the time up to which noise replaces the picture; None is the task's default.
    """

    image: UInt8[np.ndarray, "height width channels"]
    mask: UInt8[np.ndarray, "height width"] | None = None
    strength: float | None = None

    @classmethod
    def read(
        cls,
        channels: int,
        image: str | None,
        mask: str | None = None,
        strength: float | None = None,
        expand: Sequence[int] | None = None,
    ) -> "Begun | None":
        """Read the values of the flags with these names; None if there is no picture.

        Raises:
          UserError: a file is no picture, a mask has no picture, another size or is all black, or flags do not go
            together.
        """
        for name, value in (("mask", mask), ("strength", strength), ("expand", expand)):
            if value is not None and image is None:
                raise UserError(f"--{name} needs a picture: give --image=... too")
        if image is None:
            return None
        if strength is not None and (mask or expand):
            raise UserError(
                "--strength is for a picture that changes as a whole; the white part of a mask is drawn anew"
            )
        if strength == 0:
            raise UserError("--strength=0 would leave the picture as it is: give more than 0 and at most 1")
        picture = read_image(requests.regular(image, "image"), channels=channels)
        hole = None if mask is None else read_hole(mask, picture)
        if expand is None:
            return cls(image=picture, mask=hole, strength=strength)
        canvas, new = expanded(picture, *expand)
        left, top, right, bottom = expand
        both = new if hole is None else np.maximum(new, np.pad(hole, ((top, bottom), (left, right))))
        return cls(image=canvas, mask=both)


def read_hole(path: str, picture: UInt8[np.ndarray, "height width channels"]) -> UInt8[np.ndarray, "height width"]:
    """A mask of a picture's size: white where it is drawn, black where it stays, grey in between.

    Raises:
      UserError: there is no such file, it is no picture, has another size, or is all black.
    """
    found = read_image(requests.regular(path, "mask"), channels=1)[..., 0]
    if found.shape != picture.shape[:2]:
        raise UserError(
            f"--mask={path} is {found.shape[1]}x{found.shape[0]} pixels, the picture {picture.shape[1]}x"
            f"{picture.shape[0]}: they must have the same size"
        )
    if not found.any():
        raise UserError(f"--mask={path} is all black, so nothing would be drawn: make the part to draw white")
    return found


def draw(
    experiment: Experiment,
    params: Any,
    prompts: Sequence[str],
    *,
    each: int = 1,
    first: int = 0,
    begun: Begun | None = None,
    height: int | None = None,
    width: int | None = None,
    shift: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    **sampling: Any,
) -> tuple[list[UInt8[np.ndarray, "height width channels"]], Generator]:
    """Pictures for every prompt, and the settings that they were drawn with.

    Picture k of a prompt depends on the seed, on k, and on the given picture, and on no other prompt.

    Args:
      experiment: a run on pictures with a text condition.
      params: its parameters.
      prompts: what the pictures, or their holes, shall show.
      each: pictures for each prompt.
      first: number of the first of these.
      begun: a picture to start from; None draws from noise.
      height, width: size of the pictures in pixels; by default the data's.
      shift: how far times move towards noise; by default the shift of the size (`shift_of_size`).
      seed: seed of the random numbers.
      batch_size: pictures per batch.
      **sampling: `sampler`, `steps`, `guidance_scale` and `negative`, as in `evaluation.generator`.

    Raises:
      UserError: the run is of another kind, its network does not take the size, or arguments do not fit together.
    """
    require_pictures(experiment)
    model = _sized(experiment, params, height, width)
    rows, columns, _ = model.data.shape
    task, given, window = None, {}, None
    if begun is not None and begun.mask is not None:
        window = window_around(begun.mask, rows, columns)
        task = tasks.Inpaint(projection=PROJECTIONS.build(experiment.config.sampling.projection))
        given["mask"] = (window.cut_mask(begun.mask, rows, columns)[None, ..., None] > 0).astype(np.float32)
        given["image"] = requests.in_unit_range(window.cut(begun.image, rows, columns)[None])
    elif begun is not None and begun.strength is None and is_editor(experiment):
        task = tasks.Instruct()
        given["image"] = requests.in_unit_range(resized(begun.image, rows, columns)[None])
    elif begun is not None:
        task = tasks.Variation(**({} if begun.strength is None else {"strength": begun.strength}))
        given["image"] = requests.in_unit_range(resized(begun.image, rows, columns)[None])
    total = each * len(prompts)
    shift = model.shift_from(experiment.model) if shift is None else shift
    sampling |= {"task": task, "model": model, "shift": shift}
    make = evaluation.generator(experiment, batch_size=min(batch_size, total), **sampling)
    asked = asked_in_words(experiment, [prompt for prompt in prompts for _ in range(each)])
    numbers = first + np.tile(np.arange(each), len(prompts))
    drawn = evaluation.draw(make, params, asked, total, seed, given, numbers=numbers)
    if window is not None:
        drawn = [window.paste(picture, begun.image, begun.mask) for picture in drawn]
    return list(drawn), make


def remarks(experiment: Experiment, texts: Sequence[str], begun: Begun | None, size: Mapping[str, Any]) -> list[str]:
    """Notes about prompts that are not read as they stand, and about a picture that is resized."""
    said = [f"note: {remark}" for remark in experiment.text.remarks(texts, "prompts")]
    height, width, _ = experiment.shown.spec.shape
    wanted = (size.get("height") or height, size.get("width") or width)
    if begun is not None and begun.mask is None and begun.image.shape[:2] != wanted:
        own = f"{begun.image.shape[1]}x{begun.image.shape[0]}"
        said.append(f"note: the picture is {own} pixels, and is resized to {wanted[1]}x{wanted[0]}")
    return said


def require_pictures(experiment: Experiment) -> None:
    """Raise UserError if a run has no text condition, or draws something else than pictures with continuous values."""
    if experiment.shown.spec.kind != "pixels" or experiment.process.discrete:
        raise UserError("this run diffuses no pictures: draw its samples with experiments.sample")
    if experiment.told_text is None:
        raise UserError("this run is told no text: draw its samples with experiments.sample")


def is_editor(experiment: Experiment) -> bool:
    """Whether the network takes a picture to edit and an instruction."""
    return experiment.told_picture is not None and SOURCE in experiment.told_picture.reads


def require_editor(experiment: Experiment) -> None:
    """Raise UserError if a run does not edit by instruction."""
    require_pictures(experiment)
    if not is_editor(experiment):
        raise UserError(
            "this run does not edit by instruction: train one with configs/edits.py, or give experiments.generate "
            "--image with --prompt, and --strength or --mask"
        )


def _sized(experiment: Experiment, params: Any, height: int | None, width: int | None) -> Model:
    """The model for pictures of this size, checked on shapes only."""
    if height is None and width is None:
        return experiment.picture_model()
    try:
        model = experiment.picture_model(height, width)
        inputs = example_inputs(model.network, 1, model.diffused.shape)
        jax.eval_shape(lambda network: model.network.apply({"params": network}, *inputs), params[NETWORK])
    except UserError as error:
        raise UserError(f"--height and --width: {error}") from error
    return model
