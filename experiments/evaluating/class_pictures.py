"""Pictures of a subject's class, drawn from the model before it is trained (prior preservation, DreamBooth).

They lie in the workdir, one file each, and are data of the run from then on. Picture i depends only on the seed and i,
so an interrupted drawing continues with the batches in which a picture is missing.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffusion_jax import parallel
from diffusion_jax.data import to_uint8
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json, replace_file
from experiments.building.checks import check_class
from experiments.building.experiment_data import CLASS_PICTURES
from experiments.building.kinds import open_experiment
from experiments.building.sources import read_groups
from experiments.building.wiring import Experiment
from experiments.evaluating.asked import asked_in_words
from experiments.evaluating.evaluation import generator
from experiments.ground import workdir
from experiments.ground.fields import ADAPTER, INIT
from experiments.ground.progress import ProgressBar

RECIPE = "drawn.json"  # beside the pictures: the settings that they were drawn with


def without_class(experiment: Experiment) -> Experiment:
    """The same training without prior preservation, which can be checked before the pictures exist.

    Raises:
      UserError: there is nothing to draw from, or a batch or a loss does not fit a subject and its class.
    """
    config = experiment.config.copy_and_resolve_references()
    if not experiment.has_base:
        raise UserError(
            f"pictures of the class are drawn from a model: name it with {INIT}, or set data.class_pictures"
        )
    if not config.data.class_prompt.strip():
        raise UserError('data.class_prompt is empty: say what to draw, such as "a photo of a dog"')
    check_class(config, experiment.objective)
    with config.unlocked():
        config.data.num_class_images = 0
        if "prior_loss_weight" in config.objective:
            del config.objective.prior_loss_weight
    return open_experiment(config, devices=experiment.devices, directory=experiment.directory, shared=experiment.base)


def ensure(experiment: Experiment, directory: Path) -> None:
    """Draw the pictures of the class that are not yet in the workdir.

    Raises:
      UserError: the workdir belongs to another training, or its pictures were drawn from another model or in another
        way.
    """
    if (directory / "config.json").is_file():
        there = workdir.to_json(workdir.read_config(directory, whole=False))
        workdir.require_same_config(there, experiment.config, directory, but=(*workdir.AFTER_TRAINING, workdir.STEPS))
    count, folder = experiment.config.data.num_class_images, directory / CLASS_PICTURES
    missing = [i for i in range(count) if not _file(folder, i).is_file()]
    if parallel.any_process(bool(missing)):
        _draw(experiment, folder, missing)


def _draw(experiment: Experiment, folder: Path, missing: list[int]) -> None:
    """Draw and write the batches with missing pictures, with the config's sampling settings."""
    plain = _plain(experiment)
    prompt, count = experiment.config.data.class_prompt, experiment.config.data.num_class_images
    like = {**plain.abstract_state.params, **plain.frozen_groups}
    params, known = read_groups(plain.sources, like)
    recipe = {
        "prompt": prompt,
        "seed": experiment.config.seed,
        "sampling": workdir.to_json(ConfigDict({"sampling": plain.config.sampling}))["sampling"],
        "model": {name: one["fingerprint"] for name, one in known.items()},
    }
    del recipe["sampling"]["batch_size"]
    if parallel.is_primary():
        _claim(folder, recipe)
        print(f"{len(missing)} of {count} pictures of the class are drawn: {prompt!r}, into {folder}", flush=True)
    make = generator(plain)
    starts = sorted({i // make.batch_size * make.batch_size for i in missing})
    primary, done = parallel.is_primary(), count - len(missing)
    with ProgressBar(total=count, start=done, description="class", primary=primary) as bar:
        for start in starts:
            stop = min(start + make.batch_size, count)
            asked = asked_in_words(plain, [prompt])
            (made,) = make.batches(params, asked, stop, experiment.config.seed, start=start)
            if primary:
                for index, picture in zip(range(start, stop), to_uint8(made), strict=True):
                    _write(_file(folder, index), picture)
            bar.update(sum(_file(folder, i).is_file() for i in range(count)))
    parallel.wait_for_all("class pictures")


def _plain(experiment: Experiment) -> Experiment:
    """The unchanged model, without an adapter and without a subject's class."""
    config = without_class(experiment).config
    with config.unlocked():
        if ADAPTER in config:
            del config[ADAPTER]
        config.train.update(trained=(), text_encoder=False)
    return open_experiment(config, devices=experiment.devices, shared=experiment.base)


def _claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Record the settings that the pictures are drawn with, or check that they are the same."""
    file = folder / RECIPE
    there = read_json(file) if file.is_file() else recipe
    different = sorted(name for name in recipe if there.get(name) != recipe[name])
    if different:
        raise UserError(
            f"some pictures in {folder} were drawn from another {' and '.join(different)}: remove that folder, or give "
            "another --workdir"
        )
    replace_file(file, (json.dumps(recipe, indent=2) + "\n").encode())


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _write(path: Path, picture: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, format="PNG")
    replace_file(path, buffer.getvalue())
