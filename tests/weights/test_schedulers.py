"""diffusers' schedulers as config groups: their steps and noise levels, and messages for unsupported settings."""

import json
import pathlib

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.samplers import SAMPLERS
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Parameterization
from diffusion_jax.weights import ASSUMED, describe_sampling, read_sampling
from diffusion_jax.weights.diffusers_kinds import FLOWS, KINDS

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "weights"
CASES = json.loads((GOLDEN / "diffusers_steps.json").read_text())


def built(sampling):
    """Build everything that a description names."""
    parts = Parameterization.build(
        schedule=sampling.schedule, prediction=sampling.prediction, time_input=sampling.time_input
    )
    return parts.schedule, GRIDS.build(sampling.grid), SAMPLERS.build(sampling.sampler)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["config"]["_class_name"])
def test_steps_and_noise_levels_are_those_of_diffusers(case):
    """Steps and levels equal `timesteps` and `alphas_cumprod` of diffusers 0.42.1 (tests/golden/weights/README.md)."""
    config, num = case["config"], case["config"].get("num_train_timesteps", 1000)
    sampling = read_sampling(config)
    schedule, rule, _ = built(sampling)
    grid = rule(schedule, case["steps"])
    first = 0 if sampling.time_input["name"] == "scaled_t" else 1
    expected = np.array(list(dict.fromkeys(case["timesteps"])))  # some are visited twice
    found = (grid.times * num - first)[: len(expected)]
    assert grid.num_steps == case["steps"]
    tolerance = 1e-3
    if config.get("shift", 1.0) != 1.0:  # reported: diffusers shifts the smallest time twice
        assert "shift=3" in sampling.notes[0]
        tolerance = 6
    elif any(name.startswith("use_") for name in config):  # spaced in noise levels; in diffusers on or between steps
        tolerance = 0.5
    np.testing.assert_allclose(found, expected, atol=tolerance)
    if case["alphas_cumprod"] is not None:
        alphas = schedule.alpha(np.array([1, num // 2 + 1, num]) / num)
        np.testing.assert_allclose(alphas**2, case["alphas_cumprod"], atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, *FLOWS])
def test_defaults_of_every_class(kind):
    sampling = read_sampling({"_class_name": kind})
    schedule, rule, _ = built(sampling)
    grid = rule(schedule, sampling.steps)
    assert grid.num_steps == sampling.steps
    assert sampling.clip_x0 == kind.startswith(("DDPM", "DDIM"))


def test_what_defines_the_diffusion_is_taken():
    config = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 500,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.001,
        "beta_end": 0.01,
        "prediction_type": "v_prediction",
        "variance_type": "fixed_large",
        "clip_sample": False,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    found = read_sampling(config)
    base = {"name": "scaled_linear", "num_steps": 500, "beta_start": 0.001, "beta_end": 0.01}
    assert found.schedule == {"name": "zero_terminal_snr", "base": base}
    assert found.prediction == {"name": "v"}
    assert found.time_input == {"name": "discrete_index", "num_steps": 500}
    assert found.sampler == {"name": "ddpm", "variance": "large"}
    assert (found.steps, found.clip_x0, found.notes) == (500, False, ())
    assert read_sampling({**config, "prediction_type": "sample"}).prediction == {"name": "x0"}
    table = list(np.linspace(0.1, 0.2, 500))
    assert read_sampling({**config, "trained_betas": table}).schedule["base"]["table"] == tuple(table)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("DDPMScheduler", "thresholding", True),
        ("DDPMScheduler", "clip_sample_range", 2.0),
        ("DDPMScheduler", "variance_type", "learned"),
        ("DDIMScheduler", "set_alpha_to_one", False),
        ("PNDMScheduler", "skip_prk_steps", False),
        ("EulerDiscreteScheduler", "interpolation_type", "log_linear"),
        ("EulerDiscreteScheduler", "timestep_type", "continuous"),
        ("EulerDiscreteScheduler", "sigma_max", 80.0),
        ("EulerDiscreteScheduler", "use_beta_sigmas", True),
        ("DPMSolverMultistepScheduler", "euler_at_final", True),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", -5.1),
        ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver"),
        ("UniPCMultistepScheduler", "disable_corrector", [0]),
        ("UniPCMultistepScheduler", "predict_x0", False),
        ("DEISMultistepScheduler", "solver_type", "midpoint"),
        ("FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting", True),
        ("FlowMatchEulerDiscreteScheduler", "use_karras_sigmas", True),
    ],
)
def test_what_is_not_here_is_told_by_name(kind, field, value):
    found = read_sampling({"_class_name": kind, field: value})
    built(found)
    assert any(field in line for line in found.notes)


@pytest.mark.parametrize(
    "config",
    [
        [],
        {},
        {"_class_name": 3},
        {"_class_name": "LCMScheduler"},
        {"_class_name": "DDPMScheduler", "beta_schedule": "laplace"},
        {"_class_name": "DDPMScheduler", "prediction_type": "flow_prediction"},
        {"_class_name": "DDPMScheduler", "timestep_spacing": "none"},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 10**12},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": "1000"},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 0},
        {"_class_name": "DDPMScheduler", "beta_start": None},
        {"_class_name": "DDPMScheduler", "beta_start": float("nan")},
        {"_class_name": "DDPMScheduler", "beta_end": 3},
        {"_class_name": "DDPMScheduler", "clip_sample": "yes"},
        {"_class_name": "DDPMScheduler", "trained_betas": [0.1]},
        {"_class_name": "DDPMScheduler", "steps_offset": -1},
        {"_class_name": "DDPMScheduler", "eta_of_the_future": 1},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "eta_of_the_future": 1},
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
        {"_class_name": "UniPCMultistepScheduler", "solver_order": 10**9},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0},
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_files_name(config):
    with pytest.raises(UserError, match=r"scheduler_config\.json"):
        read_sampling(config)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "ddpm_linear"},
        {"name": "scaled_linear", "num_steps": 200, "beta_end": 0.0195},
        {"name": "cosine"},
        {"name": "sigmoid_betas"},
        {"name": "beta_table", "table": (0.1, 0.2, 0.3)},
        {"name": "zero_terminal_snr", "base": "scaled_linear"},
        {"name": "zero_terminal_snr", "base": {"name": "ddpm_linear", "num_steps": 100}},
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_there_and_back(schedule, prediction):
    table = SCHEDULES.build(schedule)
    steps = table.base.num_steps if schedule["name"] == "zero_terminal_snr" else table.num_steps
    time_input = {"name": "discrete_index", "num_steps": steps}
    found = read_sampling(describe_sampling(schedule, {"name": prediction}, time_input))
    times = np.linspace(0, 1, 7)
    np.testing.assert_allclose(SCHEDULES.build(found.schedule).alpha(times), table.alpha(times), rtol=1e-12)
    assert found.prediction == {"name": prediction}
    assert found.time_input == time_input
    assert found.notes == ()


def test_a_flow_there_and_back_and_what_diffusers_has_not():
    flow = {"name": "rectified_flow"}, {"name": "velocity"}, {"name": "scaled_t", "scale": 1000.0}
    found = read_sampling(describe_sampling(*flow))
    assert (found.schedule, found.prediction, found.time_input) == flow
    assert describe_sampling({"name": "edm"}, {"name": "edm"}, {"name": "quarter_log_sigma"}) is None
    assert describe_sampling({"name": "cosine", "offset": 0.01}, {"name": "v"}, {"name": "discrete_index"}) is None
    assert describe_sampling({"name": "ddpm_linear"}, {"name": "v"}, {"name": "discrete_index", "num_steps": 9}) is None


def test_without_a_scheduler_what_is_assumed_is_told():
    built(ASSUMED)
    assert "are assumed" in ASSUMED.notes[0]
