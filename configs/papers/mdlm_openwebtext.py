"""MDLM on OpenWebText: masked diffusion of text.

Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models" (arXiv:2406.07524): DDiT-small (12 blocks of
768 channels) without the time as an input, 1024 of GPT-2's tokens, the log-linear schedule, AdamW 3e-4 without weight
decay after 2,500 steps of warm-up, batch 512, clipping at 1, dropout 0.1, EMA 0.9999, bfloat16, 1 million steps.

Published: a perplexity of at most 23.21 on held-out OpenWebText. Not run here.

Topology: TPU v5e 8x8 (64 chips); the train step needs 8.2 GB per chip (compiled by libtpu 0.0.42.1).

    python -m experiments.prepare_data --dataset=text --corpus=openwebtext --text=openwebtext.jsonl.gz \\
        --held_out=100000 --tokenizer=gpt2/tokenizer.json --begin='<|endoftext|>' --end='<|endoftext|>'
    python -m experiments.train --config=configs/papers/mdlm_openwebtext.py --workdir=runs/mdlm_openwebtext
"""

from ml_collections import ConfigDict

from configs.common import openwebtext

CLAIMS = {
    "paper": "Sahoo et al. 2024, arXiv:2406.07524",
    "parameters": {"value": 169_627_218, "source": "counted on the authors' code"},
    "sampler": {"nfe": 1000, "source": "the authors' script for OpenWebText"},
    "weights": "mdlm",
    "results": [
        {
            "metric": "perplexity",
            "value": 23.21,
            "sampler": "mdlm_cached",
            "nfe": 1000,
            "num_samples": 16,
            "reference": "OpenWebText, last 100,000 documents",
            "source": "Table 2",
            "checked": False,
        }
    ],
}

SMOKE = {
    "model": {"hidden_size": 64, "depth": 2, "num_heads": 2, "conditioning_size": 32},
    "times_the_steps": 2,  # a bound on tokens learns slowly
}
"""What `experiments.reproduce --scale=smoke` trains instead of the recipe's own values."""


def get_config() -> ConfigDict:
    """The recipe."""
    config = openwebtext()

    config.model = ConfigDict(dict(name="ddit", size="small", dropout=0.1, remat="full"))
    config.process = ConfigDict(dict(name="tokens", num_tokens=50_257, token_schedule="linear"))
    config.objective = ConfigDict(dict(name="mdlm"))

    config.train.steps = 1_000_000
    config.train.batch_size = 512
    config.train.dtype = "bfloat16"
    config.optimizer.update(name="adamw", learning_rate=3e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    config.optimizer.warmup_steps = 2_500
    config.optimizer.clip_norm = 1.0
    config.ema.decays = (0.9999,)

    config.sampling.sampler = ConfigDict(dict(name="mdlm_cached"))
    config.sampling.steps = 1_000
    return config
