"""Class-conditional DiT on scikit-learn's handwritten digits: v-prediction, Min-SNR weighting, guidance.

A Diffusion Transformer (Peebles & Xie 2023, arXiv:2212.09748) of four blocks on 2x2 patches, trained by v-prediction
(Salimans & Ho 2022, arXiv:2202.00512) on the cosine schedule with Min-SNR-5 weights (Hang et al. 2023,
arXiv:2303.09556); sampled by DPM-Solver++(2M) at 20 steps with classifier-free guidance 1.5.

Expected: a classifier trained on the real digits names the asked-for class in over 95% of 500 samples (20 network
evaluations, twice the work for guidance); 99.6% was measured, after 7 minutes on two busy CPU cores.

Topology: TPU v5e 2x2 (4 chips); the train step needs 0.11 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.train --config=configs/digits_dit.py --workdir=runs/digits_dit
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
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

    config.model = ConfigDict(
        dict(
            name="dit",
            patch_size=2,
            hidden_size=128,
            depth=4,
            num_heads=4,
        )
    )

    config.schedule = ConfigDict(dict(name="cosine", num_steps=1000))
    config.prediction = ConfigDict(dict(name="v"))
    config.time_input = ConfigDict(dict(name="discrete_index", num_steps=1000))
    config.time_sampler = ConfigDict(dict(name="discrete_uniform", num_steps=1000, uniforms="low_discrepancy"))
    config.objective = ConfigDict(dict(name="denoising"))
    config.objective.weighting = ConfigDict(dict(name="min_snr", gamma=5.0))

    config.train = ConfigDict()
    config.train.steps = 1_500
    config.train.batch_size = 128
    config.train.accumulation = 1
    config.train.dtype = "float32"
    config.train.class_conditional = True
    config.train.conditioning_dropout = 0.1

    config.optimizer = ConfigDict(dict(name="adamw", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0))
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.optimizer.decay_steps = 0
    config.optimizer.clip_norm = 1.0

    config.ema = ConfigDict()
    config.ema.decays = ()
    config.ema.half_lives = (20_000,)
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
    config.sampling.sampler = ConfigDict(dict(name="dpmpp_2m"))
    config.sampling.grid = ConfigDict(dict(name="uniform"))
    config.sampling.steps = 20
    config.sampling.guidance = ConfigDict(dict(name="classifier_free", scale=1.5, interval=(), rescale=0.0))
    config.sampling.projection = ConfigDict(dict(name="replacement"))  # of experiments.sample --task=inpaint
    config.sampling.inversion = ConfigDict(dict(name="ddim"))  # of its --task=invert and --task=edit
    config.sampling.clip_x0 = True
    config.sampling.ema = ""
    config.sampling.batch_size = 250

    config.log = ConfigDict()
    config.log.every = 50
    config.log.validate_every = 500
    config.log.validation_examples = 256
    config.log.sample_every = 500
    config.log.num_samples = 100

    config.checkpoint = ConfigDict()
    config.checkpoint.directory = ""
    config.checkpoint.every = 500
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
