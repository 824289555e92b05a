"""The noise schedule, prediction and sampler that a diffusers folder's scheduler_config.json describes.

Settings that define the diffusion which the network was trained for (betas, prediction type) are used exactly, or
refused. Settings of sampling are used if they exist here; otherwise a line names the field and what is done instead. A
missing field has diffusers' default.
"""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.schedulers import SCHEDULES, TIME_INPUTS
from diffusion_jax.weights.diffusers_fields import read_fields
from diffusion_jax.weights.diffusers_kinds import FLOWS, KINDS, SIGMAS, Say

# Fields that have only one value here, and what is done if the file has another.
_ONE_WAY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "thresholding": ((False,), "samples are not thresholded"),
    "use_beta_sigmas": ((False,), "the spacing is that of the other fields"),
    "euler_at_final": ((False,), "the last step is of the solver's own order"),
    "lambda_min_clipped": ((-math.inf, "-inf", "-Infinity", None), "all noise levels are visited"),
    "interpolation_type": (("linear",), "noise levels between two steps are interpolated in the logarithm of alpha"),
    "timestep_type": (("discrete",), "the network sees steps"),
    "sigma_min": ((None,), "the noise levels are those of the betas"),
    "sigma_max": ((None,), "the noise levels are those of the betas"),
    "predict_x0": ((True,), "the solver is that of the predicted data"),
    "disable_corrector": (([], (), None), "the corrector is on at all steps"),
    "solver_p": ((None,), "the solver is its own predictor"),
    "use_dynamic_shifting": ((False,), "the times are not shifted by the image's size"),
    "invert_sigmas": ((False,), "the times run from noise to data"),
    "shift_terminal": ((None,), "the last time is not shifted"),
    "stochastic_sampling": ((False,), "sampling is deterministic"),
    "skip_prk_steps": ((True,), "the start is that of PLMS, without Runge-Kutta"),
    "clip_sample_range": ((1.0, 1), "data is clipped to [-1, 1]"),
}
_SCHEDULES = {
    "linear": "ddpm_linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid_betas",
}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Groups of a config as specs, and lines about settings that could not be used as they are.

    Attributes:
      schedule, prediction, time_input, time_sampler, sampler, grid: specs of their registries.
      steps: steps of sampling.
      clip_x0: whether predicted data is clipped to [-1, 1].
      notes: the lines.
    """

    schedule: dict[str, Any]
    prediction: dict[str, Any]
    time_input: dict[str, Any]
    time_sampler: dict[str, Any]
    sampler: dict[str, Any]
    grid: dict[str, Any]
    steps: int = 50
    clip_x0: bool = False
    notes: tuple[str, ...] = ()


ASSUMED = Sampling(
    schedule={"name": "ddpm_linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    prediction={"name": "epsilon"},
    time_input={"name": "discrete_index", "num_steps": 1000},
    time_sampler={"name": "discrete_uniform", "num_steps": 1000},
    sampler={"name": "ddim"},
    grid={"name": "uniform"},
    notes=(
        "no scheduler_config.json is there: DDPM's 1000 steps with linear betas from 1e-4 to 0.02, a network that "
        "predicts the noise, and 50 steps of ddim are assumed",
    ),
)
"""The assumptions for a network without a scheduler."""


def read_sampling(config: Mapping[str, Any], *, origin: object = "scheduler_config.json") -> Sampling:
    """The settings that a scheduler's config describes.

    Args:
      config: content of scheduler_config.json.
      origin: its name in errors and lines.

    Raises:
      UserError: it is no object, a value has a wrong type, or a class, a table of betas or a prediction is unknown
        here.
    """
    kind = config.get("_class_name") if isinstance(config, Mapping) else None
    if kind in FLOWS:
        return _flow(config, FLOWS[kind], origin)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{origin} describes a {kind}; known: {', '.join((*KINDS, *FLOWS))}. Give the schedule and the sampler "
            "yourself, with --config"
        )
    known = KINDS[kind]
    notes: list[str] = []
    say = _teller(notes, origin)
    fields = _fields(config, kind, say, origin)
    steps, to_clean = fields["num_train_timesteps"], _ends_clean(fields, say)
    sampler = known.sampler(fields, say)
    return Sampling(
        schedule=_schedule(fields, origin),
        prediction={"name": _named(fields, "prediction_type", _PREDICTIONS, origin)},
        time_input={"name": "discrete_index", "num_steps": steps},
        time_sampler={"name": "discrete_uniform", "num_steps": steps},
        sampler=sampler,
        grid=_grid(fields, known.spacing, to_clean, say, origin),
        steps=min(known.steps, steps),
        clip_x0=bool(fields.get("clip_sample", False)),
        notes=tuple(notes),
    )


def _teller(notes: list[str], origin: object) -> Say:
    return lambda line: notes.append(f"{origin}: {line}")


def _fields(config: Mapping[str, Any], kind: str, say: Say, origin: object) -> dict[str, Any]:
    """All fields of the class, with lines about those that cannot be used as they are."""
    fields = read_fields(config, kind, origin=origin)
    others = [name for name in config if name not in fields and not name.startswith("_")]
    if others:
        say(f"{', '.join(others)}: not fields of {kind}, which ignores them too")
    for name, value in fields.items():
        allowed, instead = _ONE_WAY.get(name, ((value,), ""))
        clips = name != "clip_sample_range" or fields.get("clip_sample", False)
        if value not in allowed and clips:
            say(f"{name}={value!r} is not supported: {instead}")
    if fields.get("use_flow_sigmas"):
        raise UserError(
            f"{origin} has use_flow_sigmas=true, which is not supported: give schedule and sampler with --config"
        )
    return fields


def _named(fields: Mapping[str, Any], field: str, known: Mapping[str, str], origin: object) -> str:
    if fields[field] not in known:
        raise UserError(f"{origin} has {field}={fields[field]!r}; known: {', '.join(known)}")
    return known[fields[field]]


def _schedule(fields: Mapping[str, Any], origin: object) -> dict[str, Any]:
    betas, steps = fields["trained_betas"], fields["num_train_timesteps"]
    if betas is not None:
        numbers = isinstance(betas, (list, tuple)) and all(isinstance(beta, float) and 0 < beta < 1 for beta in betas)
        if not numbers or len(betas) != steps:
            raise UserError(f"{origin} has trained_betas that are not {steps} numbers between 0 and 1")
        table: dict[str, Any] = {"name": "beta_table", "table": tuple(betas)}
    else:
        name = _named(fields, "beta_schedule", _SCHEDULES, origin)
        table = {"name": name, "num_steps": steps}
        if name != "cosine":
            for field in ("beta_start", "beta_end"):
                if not 0 < fields[field] < 1:
                    raise UserError(f"{origin} has {field}={fields[field]!r}; it should lie between 0 and 1")
                table[field] = float(fields[field])
    return {"name": "zero_terminal_snr", "base": table} if fields.get("rescale_betas_zero_snr") else table


def _ends_clean(fields: Mapping[str, Any], say: Say) -> bool:
    """Whether the last step goes to clean data; the name of the field varies."""
    if "set_alpha_to_one" in fields:
        field, clean = "set_alpha_to_one=false", fields["set_alpha_to_one"]
        stands = fields["timestep_spacing"] == "linspace"
        stands = stands or (fields["timestep_spacing"] == "leading" and not fields["steps_offset"])
    elif "final_sigmas_type" in fields:
        kind = fields["final_sigmas_type"]
        if kind not in ("zero", "sigma_min"):
            say(f"final_sigmas_type={kind!r} is not supported: the last step goes to clean data")
        field, clean, stands = f"final_sigmas_type={kind!r}", kind != "sigma_min", "interpolation_type" in fields
    else:
        return True
    if not clean and stands:
        say(f"{field}: there the last step stands still at the first noise level; here it goes to clean data")
        return True
    return clean


def _grid(fields: Mapping[str, Any], spacing: str, to_clean: bool, say: Say, origin: object) -> dict[str, Any]:
    steps, kind, offset = fields["num_train_timesteps"], fields.get("timestep_spacing"), fields["steps_offset"]
    end = {} if to_clean else {"to_clean": False}
    for field, name in (
        ("use_karras_sigmas", "karras"),
        ("use_exponential_sigmas", "exponential"),
        ("use_lu_lambdas", "exponential"),
    ):
        if fields.get(field):
            return {"name": name, "t_min": 1 / steps, **end}
    chain = {"num_train_steps": steps, **end}
    if kind == "leading":
        moved = {"offset": offset} if offset else {}
        return {"name": "dpm_leading" if spacing == "dpm" else "leading", **chain, **moved}
    if kind == "trailing":
        return {"name": "trailing", **chain, "rounded": True}
    if kind != "linspace":
        raise UserError(f"{origin} has timestep_spacing={kind!r}; known: linspace, leading, trailing")
    if spacing == "dpm":
        return {"name": "dpm_linspace", **chain}
    return {"name": "linspace", **chain, **({"rounded": True} if spacing == "ddpm" else {})}


def _flow(config: Mapping[str, Any], sampler: str, origin: object) -> Sampling:
    notes: list[str] = []
    say = _teller(notes, origin)
    fields = _fields(config, str(config["_class_name"]), say, origin)
    for field in SIGMAS:
        if fields[field] and field != "use_beta_sigmas":
            say(f"{field} is not supported: the times are spaced equally")
    steps, shift = fields["num_train_timesteps"], float(fields["shift"])
    if shift <= 0:
        raise UserError(f"{origin} has shift={fields['shift']!r}; it should be more than 0")
    grid: dict[str, Any] = {"name": "linspace", "num_train_steps": steps}
    if shift != 1.0:
        grid = {"name": "shift", "shift": shift, "base": grid}
        say(f"shift={shift:g}: it is applied once; diffusers shifts the smallest of the times twice")
    return Sampling(
        schedule={"name": "rectified_flow"},
        prediction={"name": "velocity"},
        time_input={"name": "scaled_t", "scale": float(steps)},
        time_sampler={"name": "uniform"},
        sampler={"name": sampler},
        grid=grid,
        steps=min(50, steps),
        notes=tuple(notes),
    )


def describe_sampling(
    schedule: Mapping[str, Any], prediction: Mapping[str, Any], time_input: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The scheduler_config.json of a schedule and a prediction, given as specs; None if diffusers has none.

    Its sampler is DDIM, or Euler's method along a flow.
    """
    time = _complete(TIME_INPUTS, time_input)
    if schedule["name"] == "rectified_flow" and prediction["name"] == "velocity" and time["name"] == "scaled_t":
        steps = float(time["scale"])
        said = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": int(steps), "shift": 1.0}
        return said if steps.is_integer() and steps > 0 else None
    zero = schedule["name"] == "zero_terminal_snr"
    table = _complete(SCHEDULES, schedule.get("base", "ddpm_linear") if zero else schedule)
    names = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    betas = _describe_betas(table)
    if betas is None or prediction["name"] not in names or time["name"] != "discrete_index":
        return None
    if betas["num_train_timesteps"] != time["num_steps"]:
        return None
    return {
        "_class_name": "DDIMScheduler",
        **betas,
        "prediction_type": names[prediction["name"]],
        "rescale_betas_zero_snr": zero,
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }


def _describe_betas(table: Mapping[str, Any]) -> dict[str, Any] | None:
    names = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    if table["name"] == "beta_table":
        return {"num_train_timesteps": len(table["table"]), "trained_betas": list(table["table"])}
    if table["name"] not in names:
        return None
    betas = {"num_train_timesteps": table["num_steps"], "beta_schedule": names[table["name"]]}
    if table["name"] == "cosine":
        return betas if (table["offset"], table["max_beta"]) == (0.008, 0.999) else None
    return {**betas, "beta_start": table["beta_start"], "beta_end": table["beta_end"]}


def _complete(registry: Registry, spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """A spec together with the defaults of the part that it names."""
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    factory = registry[given["name"]]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return {**defaults, **given}
