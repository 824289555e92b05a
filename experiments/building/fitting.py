"""Checks that an objective, a sampler or a layout fits the rest; refusals say what would fit."""

import inspect
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax import parallel
from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES, Objective, of_process
from diffusion_jax.samplers import SAMPLERS, Sampler, TokenSampler, samplers_of
from diffusion_jax.schedulers import Process, with_process
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Recipe
from experiments.building.conditions import plain


def name_of(spec: Any) -> Any:
    """The name in the spec of a part: the spec itself, or its field `name`."""
    return spec.get("name") if hasattr(spec, "get") else spec


def require_objective(spec: Any, process: Process) -> None:
    """Raise UserError if an objective belongs to another kind of process; an unknown one passes."""
    name = name_of(spec)
    if not isinstance(name, str) or name not in OBJECTIVES:
        return
    kind = OBJECTIVES.example(name).process_kind
    if kind != process.process_kind:
        raise UserError(
            f"objective {name} is for process {_names(kind)}, but process.name is "
            f"{_names(process.process_kind)}, which fits objective "
            f"{', '.join(of_process(process.process_kind))}: change one of the two"
        )


def require_data(spec: DataSpec, process: Process) -> None:
    """Raise UserError if the data is tokens and the process diffuses numbers."""
    if spec.kind == "tokens" and not process.discrete:
        fitting = [name for kind in ("tokens", "token_chain") for name in with_process(kind)]
        raise UserError(
            f"process.name is {_names(process.process_kind)}, which is for numbers; the data is "
            f"text: use process {' or '.join(fitting)}, with objective mdlm or sedd"
        )


def built_sampler(spec: Any, process: Process) -> Sampler | TokenSampler:
    """The sampler that a name or a group of a config names.

    Raises:
      UserError: there is none of that name, or it is of another kind of process.
    """
    sampler, wanted = SAMPLERS.build(spec), process.process_kind
    if sampler.process_kind != wanted:
        raise UserError(
            f"sampler {name_of(spec)} is for process {_names(sampler.process_kind)}, but process.name is "
            f"{_names(wanted)}: use sampler {', '.join(samplers_of(wanted))}"
        )
    return sampler


def require_denoiser(sampler: Sampler, spec: Any, objective: Objective, trained: Any) -> None:
    """Raise UserError if a sampler needs something else than the objective trains; specs give the names."""
    made, wanted = objective.makes, sampler.denoiser_kind
    if made != wanted and not (made == "flow_map" and wanted == "denoiser"):
        others = [n for n in samplers_of("gaussian") if SAMPLERS.example(n).denoiser_kind == made]
        raise UserError(
            f"sampler {name_of(spec)} needs a {wanted}, but objective {name_of(trained)} trains a {made}: use "
            f"{', '.join(others)}"
        )


def recipe(config: ConfigDict, objective: Objective) -> Recipe:
    """How the model of a config is sampled where nobody says."""
    sampling = config.sampling
    return Recipe(
        **{name: plain(sampling[name]) for name in ("sampler", "grid", "guidance")},
        steps=sampling.steps,
        most_steps=objective.most_steps,
        clip_x0=sampling.clip_x0,
        makes=objective.makes,
        asking=objective.asking,
    )


def built_layout(spec: Any, devices: Any) -> parallel.Layout:
    """The placement that `config.parallel` names.

    Raises:
      UserError: there is none of that name, or axes are set that it does not have.
    """
    axes = dict(spec)
    name = axes.pop("strategy")
    known = inspect.signature(parallel.LAYOUTS[name]).parameters
    if any(axes[axis] != 1 for axis in ("fsdp", "tensor", "context") if axis not in known):
        raise UserError(
            f"parallel.strategy={name} knows data parallelism only: use fsdp=1, tensor=1 and context=1, or jit"
        )
    read = {axis: value for axis, value in axes.items() if axis in known}
    return parallel.LAYOUTS.build({"name": name, **read}, devices=devices)


def _names(kind: str) -> str:
    return " or ".join(with_process(kind))
