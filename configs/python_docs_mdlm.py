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

from configs.common import text


def get_config() -> ConfigDict:
    """The recipe."""
    config = text("python_docs", length=128)

    config.model = ConfigDict(
        dict(name="ddit", hidden_size=128, depth=4, num_heads=4, conditioning_size=64, dropout=0.1)
    )
    config.objective = ConfigDict(dict(name="mdlm", num_tokens=256))

    config.train.steps = 2_000
    config.train.batch_size = 32
    config.optimizer.update(name="adamw", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0)
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.optimizer.clip_norm = 1.0
    config.ema.decays = (0.995,)

    config.sampling.sampler = ConfigDict(dict(name="mdlm"))
    config.sampling.steps = 128
    config.sampling.batch_size = 64
    config.log.every = 25
    config.log.validate_every = config.log.sample_every = 500
    config.log.num_samples = 8
    config.checkpoint.every = 500
    config.evaluation.metrics = ("perplexity",)
    config.evaluation.num_samples = 20
    config.evaluation.likelihood_images = 256
    return config
