"""Load models from a run, from a folder that `save_model` wrote, or from published weights."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from diffusion_jax import weights
from diffusion_jax.adapters import merge
from diffusion_jax.conditioning import Conditioning, Label
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json
from diffusion_jax.models import MODELS
from diffusion_jax.pipelines.families import FAMILIES
from diffusion_jax.pipelines.model import read_model as read_published
from diffusion_jax.pipelines.parts import INDEX
from diffusion_jax.schedulers import Parameterization
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import (
    ADAPTERS,
    CODEC,
    CONDITIONING,
    NETWORK,
    Model,
    Params,
    fingerprint,
    load_first_stage,
    read_description,
    read_model,
    within,
)
from diffusion_jax.systems.folder import ABOUT, WEIGHTS
from diffusion_jax.training import OBJECTIVE, Checkpointer
from diffusion_jax.weights.components import read_part


def load_model(
    path: Path | str,
    *,
    step: int | None = None,
    average: str = "",
    dtype: DTypeLike = jnp.float32,
    image_size: int | None = None,
) -> tuple[Model, Params]:
    """Load a model and its parameters.

        model, params = load_model("runs/digits")

    Args:
      path: the workdir of a run, a folder written by `save_model`, or a folder of diffusers.
      step: for a run, the checkpoint to load; by default the newest.
      average: for a run, the average of the parameters, such as "half_life_10000", or "params" for the parameters
        themselves; by default the first average.
      dtype: for published weights, the type in which the network computes activations.
      image_size: for a published pipeline whose network has no size of its own (Flux), the side of the pictures in
        pixels; by default 1024.

    Raises:
      UserError: there is nothing, a part or a file cannot be read, or an option does not apply to this path.
    """
    path = expanded(path)
    if not path.exists():
        raise UserError(f"there is no model in {path}: no such file or folder")
    if (path / "config.json").is_file() and ((path / "data.json").is_file() or (path / ABOUT).is_file()):
        return _of_run(path, step, average)
    if step is not None or average:
        raise UserError(f"{path} is not a run: step and average have no meaning there, leave them out")
    if (path / WEIGHTS).is_file() and (path / ABOUT).is_file():
        return read_model(path)
    return _published(path, dtype, image_size)


def _of_run(path: Path, step: int | None, average: str) -> tuple[Model, Params]:
    if not (path / ABOUT).is_file():
        raise UserError(
            f"the run in {path} has no {ABOUT}: run its training command again to write it, unless it trains "
            "a first stage"
        )
    model, about = read_description(path)
    with _without_remarks():
        trained, record = _checkpointed(about.get("checkpoints") or path / "checkpoints", step, average, about)
    frozen = _of_models(path, record.get("frozen", {}))
    for name, known in record.get("frozen", {}).items():
        if name not in frozen:
            frozen[name] = _frozen(path, name, known, model)
    return model, {**{name: group for name, group in trained.items() if name != OBJECTIVE}, **frozen}


def load_base(
    path: Path | str, *, dtype: DTypeLike = jnp.float32, image_size: int | None = None
) -> tuple[Model, Params]:
    """A model to start from, read like `load_model`; its adapters are added to its parameters."""
    model, params = load_model(path, dtype=dtype, image_size=image_size)
    if not model.adapters:
        return model, params
    if model.steering:
        raise UserError(
            f"{path} has the adapter {model.steering[0].name}, which steers by pictures and is not part of a network's "
            "parameters: start from the model that it was trained on"
        )
    owns = within(ADAPTERS, params)
    base = {name: group for name, group in params.items() if not name.startswith(f"{ADAPTERS}/")}
    return dataclasses.replace(model, adapters=()), merge(base, [owns[one.name] for one in model.adapters])


def _of_models(path: Path, frozen: Mapping[str, Mapping[str, Any]]) -> Params:
    """The frozen groups of the run in `path` that belong to the model which it started from."""
    found: Params = {}
    for source in sorted({known["source"] for known in frozen.values() if known.get("of_model")}):
        _, params = load_base(source)
        for name, known in frozen.items():
            if known.get("of_model") and known["source"] == source:
                if name not in params or fingerprint(params[name]) != known["fingerprint"]:
                    raise UserError(f"{path} was trained with another {name} than the one in {source} now")
                found[name] = params[name]
    return found


def _frozen(path: Path, name: str, known: Mapping[str, str], model: Model) -> PyTree:
    """A frozen group of the run in `path`, which its checkpoints do not hold: read from its source."""
    if name == CODEC:
        stage = load_first_stage(known["source"])
        if stage.fingerprint != known["fingerprint"]:
            raise UserError(f"{path} was trained with another first stage than the one in {stage.path} now")
        return stage.read_params()
    parts = {f"{CONDITIONING}/{next(iter(part.gives))}": part for part in model.conditioning.parts}
    if name not in parts or (parts[name].encoder is None and parts[name].pictures is None):
        raise UserError(f"{path}: {name} is frozen, but the model has no such group")
    if parts[name].pictures is None:
        params = weights.read_text_encoder(parts[name].encoder)
    else:
        params = read_part(known["source"]).params
    if fingerprint(params) != known["fingerprint"]:
        raise UserError(f"{path} was trained with another {name} than the one in {known['source']} now")
    return params


def _checkpointed(
    directory: Path | str, step: int | None, average: str, about: Mapping[str, Any]
) -> tuple[Params, Mapping[str, Any]]:
    """The trained groups of a run, and the record of the checkpoint."""
    checkpoints = Checkpointer(directory, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps or step not in (None, *steps):
            there = ", ".join(map(str, steps)) or "none"
            asked = "" if step is None else f" {step}"
            raise UserError(f"no checkpoint{asked} in {checkpoints.directory}; there are: {there}")
        chosen = steps[-1] if step is None else step
        _, trained, record = checkpoints.restore_params(chosen, average or about.get("average", ""))
    finally:
        checkpoints.close()
    return trained, record


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Suppress the warnings about its own options that Orbax prints through absl's logger."""
    logger, remarks = logging.getLogger("absl"), _not_of_orbax
    logger.addFilter(remarks)
    try:
        yield
    finally:
        logger.removeFilter(remarks)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _published(path: Path, dtype: DTypeLike, image_size: int | None) -> tuple[Model, Params]:
    index = path / INDEX
    if index.is_file() and read_json(index).get("_class_name") in FAMILIES:
        return read_published(path, dtype, image_size=image_size)
    located = weights.locate(path) if path.is_dir() else None
    if located is None or located.config is None:
        raise UserError(
            f"{path} does not name its network: give a run, a folder by save_model, or a folder of diffusers"
        )
    spec, form = weights.network_spec(read_json(located.config), origin=located.config)
    sampling = weights.ASSUMED
    if located.scheduler is not None:
        sampling = weights.read_sampling(read_json(located.scheduler), origin=located.scheduler)
    network = MODELS.build(spec, dtype=dtype)
    params = weights.load_params(network, weights.read_weights(path).tensors, form=form)
    kind = "pixels" if network.image_channels in (1, 3) else "latents"
    model = Model(
        data=DataSpec(kind=kind, shape=network.image_shape),
        network=network,
        process=Parameterization.build(
            schedule=sampling.schedule, prediction=sampling.prediction, time_input=sampling.time_input
        ),
        conditioning=Conditioning(parts=(Label(num_classes=network.num_classes),) if network.num_classes else ()),
    )
    return model, {NETWORK: params}
