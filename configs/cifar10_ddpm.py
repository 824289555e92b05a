"""DDPM on CIFAR-10, unconditional: the paper's recipe.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239): 35,746,307 parameters, linear betas from
1e-4 to 0.02 in 1000 steps, epsilon-prediction, Adam 2e-4 after 5000 steps of warm-up, batch 128, dropout 0.1, random
flips, gradient clipping at 1, EMA 0.9999, 800k steps.

Published: FID 3.17, Inception Score 9.46 with ancestral sampling of the larger variance at 1000 network evaluations
(50,000 samples against the training set). Not run here: the paper's run took 10.6 hours on a TPU v3-8. With Inception's
weights, `--config.evaluation.inception=...`, the metrics `fid` and `inception_score` measure both.

Topology: TPU v5e 2x2 (4 chips); the train step needs 1.8 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=cifar10
    python -m experiments.train --config=configs/cifar10_ddpm.py --workdir=runs/cifar10_ddpm
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.dataset = "cifar10"
    config.data.split = "train"
    config.data.validation_split = "test"
    config.data.data_dir = ""
    config.data.image_size = 32
    config.data.crop = "none"
    config.data.flip = True
    config.data.num_workers = 0

    config.model = ConfigDict(
        dict(
            name="unet",
            base_channels=128,
            channel_multipliers=(1, 2, 2, 2),
            num_res_blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
        )
    )

    config.schedule = ConfigDict(dict(name="ddpm_linear", num_steps=1000, beta_start=1e-4, beta_end=0.02))
    config.prediction = ConfigDict(dict(name="epsilon"))
    config.time_input = ConfigDict(dict(name="discrete_index", num_steps=1000))
    config.time_sampler = ConfigDict(dict(name="discrete_uniform", num_steps=1000))
    config.objective = ConfigDict(dict(name="denoising", weighting="uniform"))

    config.train = ConfigDict()
    config.train.steps = 800_000
    config.train.batch_size = 128
    config.train.accumulation = 1
    config.train.dtype = "float32"
    config.train.class_conditional = False
    config.train.conditioning_dropout = 0.0

    config.optimizer = ConfigDict(dict(name="adam", learning_rate=2e-4, b1=0.9, b2=0.999, eps=1e-8))
    config.optimizer.warmup_steps = 5_000
    config.optimizer.decay = "constant"
    config.optimizer.decay_steps = 0
    config.optimizer.clip_norm = 1.0

    config.ema = ConfigDict()
    config.ema.decays = (0.9999,)
    config.ema.half_lives = ()
    config.ema.widths = ()
    config.ema.ramp_up_ratio = 0.05

    config.parallel = ConfigDict()
    config.parallel.strategy = "jit"
    config.parallel.data = -1
    config.parallel.fsdp = 1
    config.parallel.tensor = 1
    config.parallel.context = 1
    config.parallel.rules = ()

    config.sampling = ConfigDict()
    config.sampling.sampler = ConfigDict(dict(name="ddpm", variance="large"))
    config.sampling.grid = ConfigDict(dict(name="uniform"))
    config.sampling.steps = 1_000
    config.sampling.guidance_scale = 1.0
    config.sampling.clip_x0 = True
    config.sampling.ema = ""
    config.sampling.batch_size = 250

    config.log = ConfigDict()
    config.log.every = 100
    config.log.validate_every = 5_000
    config.log.validation_examples = 10_000
    config.log.sample_every = 20_000
    config.log.num_samples = 64

    config.checkpoint = ConfigDict()
    config.checkpoint.directory = ""
    config.checkpoint.every = 5_000
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1
    config.checkpoint.best_metric = "validation_loss"
    config.checkpoint.best_mode = "min"

    config.evaluation = ConfigDict()
    config.evaluation.metrics = ("nearest_neighbours",)
    config.evaluation.num_samples = 1_000
    config.evaluation.max_real = 50_000
    config.evaluation.inception = ""  # a file of weights, for fid and its kin
    config.evaluation.convention = "tf"
    config.evaluation.reference = ""
    config.evaluation.likelihood_images = 1000
    config.evaluation.bins = 256
    return config
