"""diffusers' scheduler classes: their fields with defaults, and the corresponding samplers here."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

CHAIN = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
CLIPPED = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "rescale_betas_zero_snr": False,
}
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_CHAIN_IN_SIGMA = {**CHAIN, **SIGMAS, "timestep_spacing": "linspace"}
_LATE_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_SOLVER = {
    **_CHAIN_IN_SIGMA,
    "solver_order": 2,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "lower_order_final": True,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "rescale_betas_zero_snr": False,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_DPM = {
    **_SOLVER,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "euler_at_final": False,
    "use_lu_lambdas": False,
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
}
FLOW = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    **SIGMAS,
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
}
_VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
Say = Callable[[str], None]
"""Takes a line that describes a setting which cannot be used as it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A scheduler class: its fields with defaults, its sampler, and the way in which it spaces steps."""

    fields: Mapping[str, Any]
    sampler: Callable[[Mapping[str, Any], Say], dict[str, Any]]
    spacing: str  # "ddpm", "euler" or "dpm"
    steps: int = 50


def _plain(name: str) -> Callable[[Mapping[str, Any], Say], dict[str, Any]]:
    return lambda fields, say: {"name": name}


def _ddpm(fields: Mapping[str, Any], say: Say) -> dict[str, Any]:
    kind = fields["variance_type"]
    if kind not in _VARIANCES:
        say(f"variance_type={kind!r} is not supported: the smaller fixed variance is used")
    return {"name": "ddpm", "variance": _VARIANCES.get(kind, "small")}


def _ddim(fields: Mapping[str, Any], say: Say) -> dict[str, Any]:
    if fields["clip_sample"]:
        say("clip_sample: the noise is made to agree with the clipped data, as with use_clipped_model_output=True")
    if fields["timestep_spacing"] == "linspace":
        say("timestep_spacing='linspace': a step ends where the next one begins, and not at a distance of 1 / steps")
    return {"name": "ddim"}


def _euler(fields: Mapping[str, Any], say: Say) -> dict[str, Any]:
    if fields["rescale_betas_zero_snr"]:
        say("rescale_betas_zero_snr: ddim is used, which is Euler's method with a first step from pure noise")
        return {"name": "ddim"}
    return {"name": "euler"}


def _multistep(fields: Mapping[str, Any], say: Say) -> dict[str, Any]:
    algorithm, order = fields["algorithm_type"], fields["solver_order"]
    if algorithm in ("sde-dpmsolver++", "sde-dpmsolver"):
        if algorithm == "sde-dpmsolver":
            say("algorithm_type='sde-dpmsolver' is not supported: 'sde-dpmsolver++' is used")
        return {"name": f"dpmpp_{min(max(order, 2), 3)}m_sde"} if order > 1 else {"name": "euler_ancestral"}
    if order == 1:
        return {"name": "ddim"}
    family = {"dpmsolver++": "dpmpp", "dpmsolver": "dpm_solver"}.get(algorithm)
    if family is None or order > 3:
        say(f"algorithm_type={algorithm!r} of order {order} is not supported: DPM-Solver++ of order 2 is used")
        family, order = "dpmpp", 2
    return {"name": f"{family}_{order}m", **_solver_type(fields, say), "lower_order_final": fields["lower_order_final"]}


def _singlestep(fields: Mapping[str, Any], say: Say) -> dict[str, Any]:
    algorithm, order = fields["algorithm_type"], fields["solver_order"]
    family = {"dpmsolver++": "dpmpp", "dpmsolver": "dpm_solver"}.get(algorithm)
    if family is None or order > 3:
        say(f"algorithm_type={algorithm!r} of order {order} is not supported: DPM-Solver++ of order 2 is used")
        family, order = "dpmpp", 2
    if order == 1:
        return {"name": "ddim"}
    final = fields["lower_order_final"] or fields["final_sigmas_type"] == "zero"
    return {"name": f"{family}_{order}s", **_solver_type(fields, say), "lower_order_final": final}


def _solver_type(fields: Mapping[str, Any], say: Say) -> dict[str, Any]:
    kind = fields["solver_type"]
    if kind not in ("midpoint", "heun"):
        say(f"solver_type={kind!r} is not supported: 'midpoint' is used")
        kind = "midpoint"
    return {"solver_type": kind}


def _unipc(fields: Mapping[str, Any], say: Say) -> dict[str, Any]:
    order, kind = fields["solver_order"], fields["solver_type"]
    if order > 3 or kind not in ("bh1", "bh2"):
        say(f"solver_order={order} with solver_type={kind!r} is not supported: order 2 of 'bh2' is used")
        order, kind = 2, "bh2"
    final = fields["lower_order_final"]
    return {"name": "unipc", "solver_order": order, "solver_type": kind, "lower_order_final": final}


def _deis(fields: Mapping[str, Any], say: Say) -> dict[str, Any]:
    order = fields["solver_order"]
    if order > 3 or fields["algorithm_type"] != "deis" or fields["solver_type"] != "logrho":
        say("algorithm_type, solver_type or solver_order needs an unsupported solver: DEIS in log rho is used")
    return {"name": "deis", "solver_order": min(order, 3), "lower_order_final": fields["lower_order_final"]}


_DDPM_FIELDS = {**CHAIN, **CLIPPED, "timestep_spacing": "leading"}
_DDIM_KIND = Kind(fields={**_DDPM_FIELDS, "set_alpha_to_one": True}, sampler=_ddim, spacing="ddpm")
_DDPM_KIND = Kind(fields={**_DDPM_FIELDS, "variance_type": "fixed_small"}, sampler=_ddpm, spacing="ddpm", steps=1000)
KINDS: Mapping[str, Kind] = {
    "DDPMScheduler": _DDPM_KIND,
    "DDPMParallelScheduler": _DDPM_KIND,
    "DDIMScheduler": _DDIM_KIND,
    "DDIMParallelScheduler": _DDIM_KIND,
    "PNDMScheduler": Kind(
        fields={**CHAIN, "timestep_spacing": "leading", "skip_prk_steps": False, "set_alpha_to_one": False},
        sampler=_plain("pndm"),
        spacing="ddpm",
    ),
    "LMSDiscreteScheduler": Kind(fields=_CHAIN_IN_SIGMA, sampler=_plain("lms"), spacing="euler"),
    "EulerDiscreteScheduler": Kind(
        fields={
            **_CHAIN_IN_SIGMA,
            "interpolation_type": "linear",
            "sigma_min": None,
            "sigma_max": None,
            "timestep_type": "discrete",
            "rescale_betas_zero_snr": False,
            "final_sigmas_type": "zero",
        },
        sampler=_euler,
        spacing="euler",
    ),
    "EulerAncestralDiscreteScheduler": Kind(
        fields={**CHAIN, "timestep_spacing": "linspace", "rescale_betas_zero_snr": False},
        sampler=_plain("euler_ancestral"),
        spacing="euler",
    ),
    "HeunDiscreteScheduler": Kind(
        fields={**_CHAIN_IN_SIGMA, **_LATE_BETAS, "clip_sample": False, "clip_sample_range": 1.0},
        sampler=_plain("heun"),
        spacing="euler",
    ),
    "KDPM2DiscreteScheduler": Kind(fields={**_CHAIN_IN_SIGMA, **_LATE_BETAS}, sampler=_plain("dpm2"), spacing="euler"),
    "KDPM2AncestralDiscreteScheduler": Kind(
        fields={**_CHAIN_IN_SIGMA, **_LATE_BETAS}, sampler=_plain("dpm2_ancestral"), spacing="euler"
    ),
    "DPMSolverMultistepScheduler": Kind(fields=_DPM, sampler=_multistep, spacing="dpm"),
    "DPMSolverSinglestepScheduler": Kind(
        fields={**_DPM, "lower_order_final": False}, sampler=_singlestep, spacing="dpm"
    ),
    "UniPCMultistepScheduler": Kind(
        fields={
            **_SOLVER,
            "solver_type": "bh2",
            "predict_x0": True,
            "disable_corrector": [],
            "solver_p": None,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
        sampler=_unipc,
        spacing="dpm",
    ),
    "DEISMultistepScheduler": Kind(
        fields={**_SOLVER, "algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"},
        sampler=_deis,
        spacing="dpm",
    ),
}
FLOWS = {"FlowMatchEulerDiscreteScheduler": "flow_euler", "FlowMatchHeunDiscreteScheduler": "flow_heun"}
