"""Recipes of all objectives on one network, data and budget: `configs/digits_unet.py:objective=NAME`.

Each recipe gives the quickstart another objective, and the schedule, prediction and sampler that belong to it. A recipe
that learns from a trained network names the run of that network:

    python -m experiments.train --config=configs/digits_unet.py:objective=meanflow --workdir=runs/meanflow
    python -m experiments.train --config=configs/digits_unet.py:objective=consistency_distillation \
        --workdir=runs/consistency --config.teacher.workdir=runs/digits

The configs in configs/distill/ start from `student`. They train few-step students of any trained run and take the run's
data, first stage, network, conditions and process.
"""

from ml_collections import ConfigDict

from configs.base import runner

# Fields by which an objective's recipe differs from the quickstart's; a name without a dot replaces the whole group,
# and None leaves out a group that the objective does not read.
FLOW = {
    "process.schedule": dict(name="rectified_flow"),
    "process.prediction": dict(name="velocity"),
    "process.time_input": dict(name="scaled_t", scale=1000.0),
    "time_sampler": dict(name="uniform", uniforms="low_discrepancy"),
    "sampling.sampler": dict(name="flow_heun"),
}
# Losses with a derivative in time need a time embedding without high frequencies.
SMOOTH = dict(name="scaled_t", scale=10.0)
FLOW_MAP = {
    **FLOW,
    "model.num_times": 2,
    "process.time_input": SMOOTH,
    "sampling.sampler": dict(name="flow_map"),
    "sampling.steps": 4,
}
CHAIN = {
    "process.schedule": dict(name="cosine", num_steps=1000),
    "process.prediction": dict(name="epsilon"),
    "process.time_input": dict(name="discrete_index", num_steps=1000),
    "time_sampler": dict(name="discrete_uniform", num_steps=1000, uniforms="low_discrepancy"),
    "model.out_channels": 2,
    "sampling.sampler": dict(name="ddpm", variance="learned"),
    "sampling.steps": 100,
    "sampling.clip_x0": True,  # at t = 1 hardly any signal is left, and an error of epsilon is thousands in x0
}
# Consistency models keep the quickstart's schedule and network; they jump from t = 1, and again from the middle.
CONSISTENCY = {
    "process.prediction": dict(name="consistency", sigma_data=0.5),
    "sampling.sampler": dict(name="consistency"),
    "sampling.grid": dict(name="trailing"),
    "sampling.steps": 2,
}
ANGLE = {
    "process.schedule": dict(name="trigflow"),
    "process.prediction": dict(name="v"),
    "process.time_input": SMOOTH,
    "time_sampler": dict(name="log_normal", mean=-1.0, std=1.4),
    "sampling.sampler": dict(name="scm"),
    "sampling.steps": 2,
    "optimizer.learning_rate": 5e-4,
}
# The digits have 17 levels, from 0 to 16. Objectives of tokens draw their times themselves.
TOKENS = {
    "process": dict(name="tokens", num_tokens=17),
    "time_sampler": None,
    "sampling.steps": 64,
}
NO_TIMES = {"time_sampler": None}  # these draw pairs of neighbouring levels by their own rule
RECIPES = {
    "denoising": {},
    "flow_matching": {**FLOW, "objective": dict(name="flow_matching")},
    "stochastic_interpolant": {
        **FLOW,
        "process.schedule": dict(name="gvp"),
        "objective": dict(name="stochastic_interpolant"),
        "sampling.sampler": dict(name="sit_sde"),
        "sampling.steps": 64,
    },
    "jit": {
        **FLOW,
        "process.prediction": dict(name="x0"),
        "time_sampler": dict(name="logit_normal", mean=0.8, std=0.8),
        "objective": dict(name="jit"),
    },
    # On digits_dit.py's network; the features of the digits come from `python -m experiments.prepare_features`.
    "repa": {
        **FLOW,
        "model": dict(
            name="dit",
            patch_size=2,
            hidden_size=128,
            depth=4,
            num_heads=4,
            align_depth=2,
            align_channels=768,
            num_times=1,
        ),
        "data.features": "",
        "objective": dict(name="repa", weight=0.5),
    },
    "reflow": {**FLOW, "objective": dict(name="reflow"), "sampling.steps": 4},
    "hybrid": {**CHAIN, "objective": dict(name="hybrid", num_steps=1000, bins=17)},
    "vlb": {
        **CHAIN,
        "time_sampler": dict(name="loss_second_moment", num_steps=1000),
        "objective": dict(name="vlb", num_steps=1000, bins=17),
    },
    "vdm": {
        "process.schedule": dict(name="vdm_linear"),
        "process.prediction": dict(name="epsilon"),
        "time_sampler": dict(name="uniform", t_min=0.0, uniforms="low_discrepancy"),
        "objective": dict(name="vdm", learned=True, bins=17),
        "sampling.sampler": dict(name="ddpm"),
        "sampling.steps": 100,
    },
    "consistency_training": {
        **CONSISTENCY,
        **NO_TIMES,
        "objective": dict(name="consistency_training", last=40, total_steps=900),
    },
    "ict": {**CONSISTENCY, **NO_TIMES, "objective": dict(name="ict", last=160, total_steps=900)},
    "ect": {**CONSISTENCY, "objective": dict(name="ect", doubling=150)},
    "consistency_distillation": {
        **CONSISTENCY,
        **NO_TIMES,
        "objective": dict(name="consistency_distillation"),
    },
    "scm": {**ANGLE, "objective": dict(name="scm", warmup=400)},
    "scd": {**ANGLE, "objective": dict(name="scd", warmup=400)},
    "progressive_distillation": {
        **NO_TIMES,
        "objective": dict(name="progressive_distillation", num_steps=8, weighting=dict(name="edm", sigma_data=0.5)),
        "sampling.sampler": dict(name="ddim"),
        "sampling.grid": dict(name="trailing"),
        "sampling.steps": 8,
    },
    "shortcut": {**FLOW_MAP, "objective": dict(name="shortcut")},
    "meanflow": {
        **FLOW_MAP,
        "time_sampler": dict(name="logit_normal", mean=-0.4, std=1.0),
        "objective": dict(name="meanflow"),
        "sampling.steps": 1,
    },
    "d3pm": {
        **TOKENS,
        "process": dict(name="token_chain", num_tokens=17, num_steps=64, kind="gaussian"),
        "objective": dict(name="d3pm", cross_entropy_weight=0.1),
        "sampling.sampler": dict(name="d3pm_ancestral"),
    },
    "mdlm": {**TOKENS, "objective": dict(name="mdlm"), "sampling.sampler": dict(name="mdlm")},
    "sedd": {
        **TOKENS,
        "process": dict(name="tokens", num_tokens=17, told="sigma"),
        "objective": dict(name="sedd"),
        "sampling.sampler": dict(name="sedd_analytic"),
    },
    "discrete_flow": {
        **TOKENS,
        "objective": dict(name="discrete_flow"),
        "sampling.sampler": dict(name="discrete_flow_euler"),
    },
}
# They skip along the flow of the quickstart's network, on its schedule.
RECIPES["lcm"] = {
    **NO_TIMES,
    "objective": dict(name="lcm", solver_steps=18),
    "sampling.sampler": dict(name="lcm"),
    "sampling.grid": dict(name="trailing"),
    "sampling.steps": 2,
}
RECIPES["tcd"] = {
    **RECIPES["lcm"],
    "objective": dict(name="tcd", solver_steps=18),
    "sampling.sampler": dict(name="tcd"),
}
RECIPES["guidance_distillation"] = {
    "objective": dict(name="guidance_distillation"),
    "sampling.sampler": dict(name="heun"),
}
RECIPES["meanflow_distillation"] = {**RECIPES["meanflow"], "objective": dict(name="meanflow_distillation")}
RECIPES["shortcut_distillation"] = {**RECIPES["shortcut"], "objective": dict(name="shortcut_distillation")}
RECIPES["dmd"] = {
    **NO_TIMES,
    "objective": dict(name="dmd", num_steps=2, prediction=dict(name="edm", sigma_data=0.5)),
    "sampling.sampler": dict(name="lcm"),
    "sampling.grid": dict(name="uniform"),
    "sampling.steps": 2,
}
# These learn from the quickstart's network on another schedule, from which they cannot start.
for _name in ("reflow", "scd", "meanflow_distillation", "shortcut_distillation"):
    RECIPES[_name]["teacher.initialize"] = False


def with_objective(config: ConfigDict, argument: str) -> ConfigDict:
    """The config with one of `RECIPES` for the argument "objective=NAME", or unchanged for "".

    Raises:
      ValueError: the argument is anything else.
    """
    objective = argument.removeprefix("objective=")
    if argument and (objective == argument or objective not in RECIPES):
        raise ValueError(f"{argument!r} is not objective=NAME with one of {', '.join(RECIPES)}")
    for name, value in RECIPES.get(objective, {}).items():
        group, _, field = name.partition(".")
        if field:
            config[group][field] = value
        elif value is None:
            del config[group]
        else:
            config[group] = ConfigDict(value)
    return config


def student(**objective: object) -> ConfigDict:
    """A student of the run that `teacher.workdir` names, with this objective, started from the teacher's weights.

    The teacher is guided with a scale from 2 to 5, which the student is told; `sampling.guidance.scale` chooses the
    scale of samples.
    """
    config = runner()
    config.update(
        model=dict(guidance_channels=64),
        objective=objective,
        train=dict(steps=3_000, batch_size=32),
        optimizer=dict(name="adam", learning_rate=5e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0, warmup_steps=100),
        ema=dict(half_lives=(10_000,)),
        sampling=dict(sampler=dict(name="ddim"), steps=4, grid=dict(name="trailing"), guidance=dict(scale=3.0)),
        log=dict(every=50, validate_every=1_000, sample_every=1_000, num_samples=32),
        checkpoint=dict(every=500),
    )
    config.teacher.update(inherit=True, guidance_scale=(2.0, 5.0))
    return config
