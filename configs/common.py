"""What the configs of papers start from: the fields of the runner, and those of the data that several papers share.

A paper's own config states everything that is the paper's.
"""

from ml_collections import ConfigDict


def cifar10() -> ConfigDict:
    """CIFAR-10 (50,000 images of 32x32, 10 classes), flipped at random; 10,000 are held out."""
    config = _runner()
    config.data = _data("cifar10", image_size=32, validation_split="test", flip=True)
    config.log.validate_every = 5_000
    config.log.validation_examples = 10_000
    config.log.sample_every = 20_000
    config.checkpoint.keep_best = 1
    config.evaluation.metrics = ("nearest_neighbours",)
    config.evaluation.num_samples = 1_000
    return config


def imagenet64() -> ConfigDict:
    """ImageNet at 64x64 as TFDS has it (Chrabaszcz et al. 2017), with the 1000 classes."""
    config = _runner()
    config.data = _data("imagenet_resized/64x64", image_size=64, validation_split="validation", flip=True)
    return _judged_at_the_end(config)


def imagenet256() -> ConfigDict:
    """ImageNet at 256x256 pixels: half-sized until near, then the central square (Dhariwal & Nichol 2021)."""
    config = _runner()
    config.data = _data("imagenet2012", image_size=256, validation_split="validation", flip=True)
    config.data.crop = "adm"
    return _judged_at_the_end(config)


def celeba_hq256() -> ConfigDict:
    """CelebA-HQ at 256x256: 30,000 faces without classes, of which the last 1,000 are held out."""
    config = _runner()
    config.data = _data("celeb_a_hq/256", image_size=256, validation_split="train[29000:]", flip=True)
    config.data.split = "train[:29000]"
    return _judged_at_the_end(config)


def latents(image_size: int, channels: int = 4) -> ConfigDict:
    """A stand-in for ImageNet's latents: Gaussian mixtures of their shape with 1000 classes, nothing held out."""
    config = _runner()
    config.data = _data("synthetic_latents", image_size=image_size, validation_split="", flip=False)
    config.data.options = ConfigDict(dict(size=image_size, channels=channels))
    return config


def openwebtext() -> ConfigDict:
    """OpenWebText in 1024 of GPT-2's tokens, an end of text at both ends; the last 100,000 documents are held out."""
    config = _runner()
    config.data = _data("text", image_size=None, validation_split="test", flip=False)
    config.data.options = ConfigDict(dict(corpus="openwebtext", length=1024))
    # A schedule, a prediction and a way to draw times belong to images; the tokens' process is the objective's own.
    config.schedule = ConfigDict(dict(name="rectified_flow"))
    config.prediction = ConfigDict(dict(name="velocity"))
    config.time_input = ConfigDict(dict(name="scaled_t", scale=1000.0))
    config.time_sampler = ConfigDict(dict(name="uniform"))
    config.log.validate_every = 10_000
    config.log.validation_examples = 5_120
    config.log.sample_every = 50_000
    config.log.num_samples = 16
    config.checkpoint.keep_best = 1
    config.sampling.batch_size = 16
    config.evaluation.metrics = ("perplexity",)
    config.evaluation.num_samples = 16
    return config


def _data(dataset: str, *, image_size: int | None, validation_split: str, flip: bool) -> ConfigDict:
    data = ConfigDict()
    data.dataset = dataset
    data.split = "train"
    data.validation_split = validation_split
    data.data_dir = ""
    data.image_size = image_size
    data.crop = "none"
    data.flip = flip
    data.num_workers = 0
    return data


def _judged_at_the_end(config: ConfigDict) -> ConfigDict:
    config.log.validate_every = 10_000
    config.log.validation_examples = 10_000
    config.log.sample_every = 20_000
    config.checkpoint.keep_best = 1
    config.evaluation.metrics = ("nearest_neighbours",)
    config.evaluation.num_samples = 1_000
    return config


def _runner() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.train = ConfigDict()
    config.train.steps = 1
    config.train.batch_size = 128
    config.train.accumulation = 1
    config.train.dtype = "float32"
    config.train.class_conditional = False
    config.train.conditioning_dropout = 0.0

    config.optimizer = ConfigDict()
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "constant"
    config.optimizer.decay_steps = 0
    config.optimizer.clip_norm = 0.0

    config.ema = ConfigDict()
    config.ema.decays = ()
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
    config.sampling.sampler = ConfigDict()
    config.sampling.grid = ConfigDict(dict(name="uniform"))
    config.sampling.steps = 1
    config.sampling.guidance = ConfigDict(dict(name="classifier_free", scale=1.0, interval=(), rescale=0.0))
    config.sampling.projection = ConfigDict(dict(name="replacement"))  # of experiments.sample --task=inpaint
    config.sampling.inversion = ConfigDict(dict(name="ddim"))  # of its --task=invert and --task=edit
    config.sampling.clip_x0 = False
    config.sampling.ema = ""
    config.sampling.batch_size = 250

    config.log = ConfigDict()
    config.log.every = 100
    config.log.validate_every = 0
    config.log.validation_examples = 256
    config.log.sample_every = 0
    config.log.num_samples = 64

    config.checkpoint = ConfigDict()
    config.checkpoint.directory = ""
    config.checkpoint.every = 5_000
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 0
    config.checkpoint.best_metric = "validation_loss"
    config.checkpoint.best_mode = "min"

    config.evaluation = ConfigDict()
    config.evaluation.metrics = ()
    config.evaluation.num_samples = 64
    config.evaluation.max_real = 50_000
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
