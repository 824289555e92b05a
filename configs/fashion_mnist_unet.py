"""Class-conditional flow matching on Fashion-MNIST.

Rectified flow (Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747) with the logit-normal times of
Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206); a small DDPM U-Net on squares of 2x2 of the 28x28 pixels;
Euler's method, 32 steps.

Prepare the data once, from the idx files of Debian's package dataset-fashion-mnist or a directory of your own:

    python -m experiments.prepare_data --dataset=fashion_mnist [--idx_dir=...]

Expected: nothing published at this size. A classifier trained on the real images (86% on held-out ones) should name the
asked-for class of the samples at a similar rate; not run to the end here. The report of a run states what it measured.

Topology: TPU v5e 2x2 (4 chips); the train step needs 0.10 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.train --config=configs/fashion_mnist_unet.py --workdir=runs/fashion
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.dataset = "fashion_mnist"
    config.data.split = "train"
    config.data.validation_split = "test"
    config.data.data_dir = ""
    config.data.image_size = 28
    config.data.crop = "none"
    config.data.flip = True
    config.data.num_workers = 0

    config.model = ConfigDict(dict(
        name="unet",
        patch_size=2,
        base_channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
    ))  # fmt: skip

    config.schedule = ConfigDict(dict(name="rectified_flow"))
    config.prediction = ConfigDict(dict(name="velocity"))
    config.time_input = ConfigDict(dict(name="scaled_t", scale=1000.0))
    config.time_sampler = ConfigDict(dict(name="logit_normal", mean=0.0, std=1.0, uniforms="low_discrepancy"))
    config.objective = ConfigDict(dict(name="flow_matching"))

    config.train = ConfigDict()
    config.train.steps = 10_000
    config.train.batch_size = 128
    config.train.accumulation = 1
    config.train.dtype = "float32"
    config.train.class_conditional = True
    config.train.conditioning_dropout = 0.1

    config.optimizer = ConfigDict(dict(name="adam", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8))
    config.optimizer.warmup_steps = 500
    config.optimizer.decay = "cosine"
    config.optimizer.decay_steps = 0
    config.optimizer.clip_norm = 1.0

    config.ema = ConfigDict()
    config.ema.decays = ()
    config.ema.half_lives = (200_000,)
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
    config.sampling.sampler = ConfigDict(dict(name="flow_euler"))
    config.sampling.grid = ConfigDict(dict(name="uniform"))
    config.sampling.steps = 32
    config.sampling.guidance = ConfigDict(dict(name="classifier_free", scale=1.0, interval=(), rescale=0.0))
    config.sampling.projection = ConfigDict(dict(name="replacement"))  # of experiments.sample --task=inpaint
    config.sampling.inversion = ConfigDict(dict(name="ddim"))  # of its --task=invert and --task=edit
    config.sampling.clip_x0 = True
    config.sampling.ema = ""
    config.sampling.batch_size = 250

    config.log = ConfigDict()
    config.log.every = 50
    config.log.validate_every = 1_000
    config.log.validation_examples = 1_024
    config.log.sample_every = 1_000
    config.log.num_samples = 100

    config.checkpoint = ConfigDict()
    config.checkpoint.directory = ""
    config.checkpoint.every = 1_000
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1
    config.checkpoint.best_metric = "validation_loss"
    config.checkpoint.best_mode = "min"

    config.evaluation = ConfigDict()
    config.evaluation.metrics = ("class_accuracy", "nearest_neighbours")
    config.evaluation.num_samples = 500
    config.evaluation.max_real = 10_000
    config.evaluation.inception = ""  # a file of weights, for fid and its kin
    config.evaluation.convention = "tf"
    config.evaluation.reference = ""
    config.evaluation.dinov2 = ""  # the same for fd_dinov2
    config.evaluation.dinov2_reference = ""
    config.evaluation.clip = ""  # a folder, for cmmd and clip_score
    config.evaluation.prompt = "a photo of a {}"
    config.evaluation.likelihood_images = 1000
    config.evaluation.bins = 256
    return config
