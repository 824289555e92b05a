"""Class-conditional EDM on latents of scikit-learn's handwritten digits: latent diffusion at its smallest.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752), with the
quickstart's network, process and budget (`digits_unet.py`), on 4x4 latents with 4 channels of a first stage that was
trained before:

    python -m experiments.train --config=configs/digits_autoencoder.py --workdir=runs/digits_ae
    python -m experiments.prepare_latents --first_stage=runs/digits_ae --dataset=digits --out=data/digits_latents
    python -m experiments.train --config=configs/digits_latent.py --workdir=runs/digits_latent

With --config.first_stage.online=True, --config.data.dataset=digits and --config.data.image_size=8 pictures are encoded
in every step instead, and nothing is prepared.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe; `first_stage.path` and `data.dataset` name what was trained and prepared."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.dataset = "latents:data/digits_latents"
    config.data.split = "train"
    config.data.validation_split = "test"
    config.data.data_dir = ""
    config.data.image_size = 4
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
    config.prediction = ConfigDict(dict(name="edm", sigma_data=1.0))
    config.time_input = ConfigDict(dict(name="quarter_log_sigma"))
    config.time_sampler = ConfigDict(dict(name="log_normal", uniforms="low_discrepancy"))
    config.objective = ConfigDict(dict(name="denoising", weighting="uniform"))

    config.first_stage = ConfigDict(dict(path="runs/digits_ae", online=False))

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
    config.optimizer.decay_steps = 0
    config.optimizer.clip_norm = 1.0

    config.ema = ConfigDict()
    config.ema.decays = ()
    config.ema.half_lives = (10_000,)
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
    config.sampling.sampler = ConfigDict(dict(name="heun"))
    config.sampling.grid = ConfigDict(dict(name="uniform"))
    config.sampling.steps = 18
    config.sampling.guidance_scale = 1.0
    config.sampling.guidance_interval = ()
    config.sampling.guide = ""  # the workdir of a worse network, for autoguidance
    config.sampling.guide_ema = ""
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
    config.evaluation.inception = ""  # a file of weights, for fid and its kin
    config.evaluation.convention = "tf"
    config.evaluation.reference = ""
    config.evaluation.dinov2 = ""  # the same for fd_dinov2
    config.evaluation.dinov2_reference = ""
    config.evaluation.clip = ""  # a folder, for cmmd and clip_score
    config.evaluation.prompt = "a photo of a {}"
    config.evaluation.likelihood_images = 360
    config.evaluation.bins = 17
    return config
