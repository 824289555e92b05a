"""Class-conditional EDM on scikit-learn's handwritten digits: the quickstart; and every other objective, by name.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv:2206.00364): EDM
preconditioning, log-normal noise levels, Heun's sampler; a small DDPM U-Net on 1,437 real 8x8 images, which come with
scikit-learn. No download.

Expected: a classifier trained on the real digits names the asked-for class in over 95% of 500 samples, with Heun at 18
steps (35 network evaluations), after about 3 minutes on two CPU cores.

Topology: TPU v5e 2x2 (4 chips); the train step needs 0.07 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.train --config=configs/digits_unet.py --workdir=runs/digits

`:objective=NAME` after the file gives the same network, data and budget with another objective, and the schedule,
prediction and sampler that belong to it (`RECIPES` below). Those that learn from a trained network name its run:

    python -m experiments.train --config=configs/digits_unet.py:objective=meanflow --workdir=runs/meanflow
    python -m experiments.train --config=configs/digits_unet.py:objective=consistency_distillation \
        --workdir=runs/consistency --config.teacher.workdir=runs/digits
"""

from ml_collections import ConfigDict

# Fields by which an objective's recipe differs from the quickstart's; a name without a dot replaces the whole group.
FLOW = {
    "schedule": dict(name="rectified_flow"),
    "prediction": dict(name="velocity"),
    "time_input": dict(name="scaled_t", scale=1000.0),
    "time_sampler": dict(name="logit_normal", uniforms="low_discrepancy"),
    "sampling.sampler": dict(name="flow_heun"),
}
FLOW_MAP = {
    **FLOW,
    "model.num_times": 2,
    "time_sampler": dict(name="uniform"),
    "sampling.sampler": dict(name="flow_map"),
    "sampling.steps": 4,
}
TABLE = {
    "schedule": dict(name="cosine", num_steps=1000),
    "prediction": dict(name="epsilon"),
    "time_input": dict(name="discrete_index", num_steps=1000),
    "time_sampler": dict(name="discrete_uniform", num_steps=1000),
    "sampling.sampler": dict(name="ddpm", variance="learned"),
    "sampling.steps": 100,
    "model.out_channels": 2,
}
CONSISTENCY = {"sampling.sampler": dict(name="consistency"), "sampling.steps": 2}
TOKENS = {"sampling.steps": 64}
RECIPES = {
    "denoising": {},
    "flow_matching": {**FLOW, "objective": dict(name="flow_matching")},
}


def get_config(argument: str = "") -> ConfigDict:
    """The quickstart, or "objective=NAME" for one of `RECIPES`."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.dataset = "digits"
    config.data.split = "train"
    config.data.validation_split = "test"
    config.data.data_dir = ""
    config.data.image_size = 8
    config.data.crop = "none"
    config.data.flip = False
    config.data.num_workers = 0

    config.model = ConfigDict(dict(
        name="unet",
        base_channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout=0.1,
    ))  # fmt: skip

    config.schedule = ConfigDict(dict(name="edm", sigma_min=0.002, sigma_max=80.0, rho=7.0))
    config.prediction = ConfigDict(dict(name="edm", sigma_data=0.5))
    config.time_input = ConfigDict(dict(name="quarter_log_sigma"))
    config.time_sampler = ConfigDict(dict(name="log_normal", uniforms="low_discrepancy"))
    config.objective = ConfigDict(dict(name="denoising", weighting="uniform"))

    config.teacher = ConfigDict(dict(workdir="", initialize=True))

    config.train = ConfigDict()
    config.train.steps = 900
    config.train.batch_size = 128
    config.train.accumulation = 1
    config.train.dtype = "float32"
    config.train.class_conditional = True
    config.train.conditioning_dropout = 0.1

    config.optimizer = ConfigDict(dict(name="adam", learning_rate=2e-3, b1=0.9, b2=0.99, eps=1e-8))
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.optimizer.clip_norm = 1.0

    config.ema = ConfigDict()
    config.ema.decays = ()
    config.ema.half_lives = (10_000,)
    config.ema.ramp_up_ratio = 0.05

    config.parallel = ConfigDict()
    config.parallel.strategy = "jit"
    config.parallel.data = -1
    config.parallel.fsdp = 1
    config.parallel.tensor = 1
    config.parallel.rules = ()

    config.sampling = ConfigDict()
    config.sampling.sampler = ConfigDict(dict(name="heun"))
    config.sampling.grid = ConfigDict(dict(name="uniform"))
    config.sampling.steps = 18
    config.sampling.guidance_scale = 1.0
    config.sampling.clip_x0 = False
    config.sampling.ema = ""
    config.sampling.batch_size = 250

    config.log = ConfigDict()
    config.log.every = 25
    config.log.validate_every = 150
    config.log.validation_examples = 256
    config.log.sample_every = 150
    config.log.num_samples = 100

    config.checkpoint = ConfigDict()
    config.checkpoint.directory = ""
    config.checkpoint.every = 150
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1
    config.checkpoint.best_metric = "validation_loss"
    config.checkpoint.best_mode = "min"

    config.evaluation = ConfigDict()
    config.evaluation.metrics = ("class_accuracy", "nearest_neighbours")
    config.evaluation.num_samples = 500
    config.evaluation.max_real = 50_000

    objective = argument.removeprefix("objective=")
    if argument and (objective == argument or objective not in RECIPES):
        raise ValueError(f"{argument!r} is not objective=NAME with one of {', '.join(RECIPES)}")
    for name, value in RECIPES.get(objective, {}).items():
        group, _, field = name.partition(".")
        if field:
            config[group][field] = value
        else:
            config[group] = ConfigDict(value)
    return config
