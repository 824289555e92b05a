"""Masked diffusion of text, byte by byte, on the reference topics that CPython carries: small enough for a laptop.

MDLM (Sahoo et al. 2024, arXiv:2406.07524) with a small DDiT on sequences of 128 bytes. The text (`pydoc_data.topics`,
half a million characters; every tenth topic is held out) comes with Python, so nothing is downloaded.

Expected: nothing published. A byte by its frequency alone costs 4.77 bits, a perplexity of 27. Measured with Python
3.11: a perplexity of at most 8.02 (7.73 to 8.32) on 251 held-out sequences, and samples that look like words; 12
minutes on one CPU core.

    python -m experiments.train --config=configs/python_docs_mdlm.py --workdir=runs/python_docs
    python -m experiments.sample --workdir=runs/python_docs --num_samples=4      # samples/samples.txt
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.dataset = "text"
    config.data.options = ConfigDict(dict(corpus="python_docs", length=128))
    config.data.split = "train"
    config.data.validation_split = "test"
    config.data.data_dir = ""
    config.data.num_workers = 0

    config.model = ConfigDict(dict(
        name="ddit",
        hidden_size=128,
        depth=4,
        num_heads=4,
        conditioning_size=64,
        dropout=0.1,
    ))  # fmt: skip

    # A schedule, a prediction and a way to draw times belong to images; the tokens' process is the objective's own.
    config.schedule = ConfigDict(dict(name="rectified_flow"))
    config.prediction = ConfigDict(dict(name="velocity"))
    config.time_input = ConfigDict(dict(name="scaled_t", scale=1000.0))
    config.time_sampler = ConfigDict(dict(name="uniform"))
    config.objective = ConfigDict(dict(name="mdlm", num_tokens=256))

    config.train = ConfigDict()
    config.train.steps = 2_000
    config.train.batch_size = 32
    config.train.accumulation = 1
    config.train.dtype = "float32"
    config.train.class_conditional = False
    config.train.conditioning_dropout = 0.0

    config.optimizer = ConfigDict(dict(name="adamw", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0))
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.optimizer.decay_steps = 0
    config.optimizer.clip_norm = 1.0

    config.ema = ConfigDict()
    config.ema.decays = (0.995,)
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
    config.sampling.sampler = ConfigDict(dict(name="mdlm"))
    config.sampling.grid = ConfigDict(dict(name="uniform"))
    config.sampling.steps = 128
    config.sampling.guidance = ConfigDict(dict(name="classifier_free", scale=1.0, interval=(), rescale=0.0))
    config.sampling.clip_x0 = False
    config.sampling.ema = ""
    config.sampling.batch_size = 64

    config.log = ConfigDict()
    config.log.every = 25
    config.log.validate_every = 500
    config.log.validation_examples = 256
    config.log.sample_every = 500
    config.log.num_samples = 8

    config.checkpoint = ConfigDict()
    config.checkpoint.directory = ""
    config.checkpoint.every = 500
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 0
    config.checkpoint.best_metric = "validation_loss"
    config.checkpoint.best_mode = "min"

    config.evaluation = ConfigDict()
    config.evaluation.metrics = ("perplexity",)
    config.evaluation.num_samples = 20
    config.evaluation.likelihood_images = 256
    return config
